"""Class-activation maps: which parts of an image a fine-tuned network names a class by.

HiResCAM (Draelos and Carin 2020, section 3.4) on the last layer that still has a place for each part of the image,
through the grad-cam package: gradient of the class's log-odds times activation, summed over the channels; what speaks
for the class stays. Behind a mean over the places and a linear head this is Grad-CAM (Selvaraju et al. 2017) and CAM;
behind fully connected layers or attention Grad-CAM's averaging of gradients would point elsewhere (docs/log.md).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from PIL import Image
from pytorch_grad_cam import HiResCAM

from edgetl.errors import BackboneError, BundleError
from edgetl.images import placement
from edgetl.transfer import backbones
from edgetl.transfer.network import deployed

if TYPE_CHECKING:
    from edgetl.bundle import Bundle
    from edgetl.spec import Preprocess

SHORTEST, LONGEST = 224, 640  # pixels of an overlay's sides: small photos are enlarged, large ones shrunk
COLOURS = "turbo"
HEAT = 0.6  # of an overlay where the map is 1; nothing where it is 0
UNSEEN = 0.35  # brightness of what the network is not shown

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]


class Explainer:
    """Maps of one bundle's checkpoint, in PyTorch on the CPU."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises BundleError for an adopted bundle: its graph has no gradients."""
        if not bundle.artifacts("checkpoint"):
            raise BundleError(
                "class-activation maps want the PyTorch network, and this bundle has none",
                bundle.path,
                "an adopted graph cannot be explained; leave --explain out",
            )
        network = deployed(bundle)
        # Only what lies between the image and its logit is wanted, not the gradients of all weights.
        network.requires_grad_(False)
        self._spec = backbones.row(bundle.manifest["model"]["backbone"])
        layer = backbones.last_map_of(network.backbone, self._spec)
        self._cam = HiResCAM(network, [layer], _LAYOUTS[self._spec.map_layout])
        self._cam.compute_input_gradient = True
        self.places = 0  # on a side of the last map; known after the first image

    def map(self, pixels: Pixels, target: int) -> Map:
        """What speaks for class `target` in pixels uint8 (S, S, 3): float32 (S, S), 0 to 1 at its strongest place.

        All 0 where nothing does. Raises BackboneError where the map has one place only.
        """
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        found = np.asarray(self._cam(image, [partial(_log_odds, target=target)])[0], np.float32)
        places = self.places = int(self._cam.activations_and_grads.activations[0].shape[-1])
        if places < 2:
            raise BackboneError(
                "the network's last map has a single place at this size, which tells no parts apart",
                f"{self._spec.name} at {len(pixels)} px",
                "fine-tune with a larger --image-size",
            )
        if self._spec.map_corner:  # the package spreads each place over its cell; without this, half a cell off
            shift = round((len(found) / places - 1) / 2)
            found = np.pad(found[shift:, shift:], (0, shift), mode="edge")
        peak = float(found.max())
        return found / np.float32(peak) if peak > 0 else found


def _log_odds(logits: torch.Tensor, target: int) -> torch.Tensor:
    """log p / (1 - p) of a class, from logits (C,): a logit alone says nothing, as all may be shifted alike."""
    others = torch.cat([logits[:target], logits[target + 1 :]])
    return logits[target] - torch.logsumexp(others, 0)


def _tokens_as_map(tokens: torch.Tensor) -> torch.Tensor:
    """(B, 1 + H*W, C) -> (B, C, H, W), the class token left out; networks here are given squares."""
    batch, count, width = tokens.shape
    side = round((count - 1) ** 0.5)
    return tokens[:, 1:].reshape(batch, side, side, width).permute(0, 3, 1, 2)


_LAYOUTS: dict[str, Any] = {"nchw": None, "nhwc": lambda found: found.permute(0, 3, 1, 2), "tokens": _tokens_as_map}


def overlay(photo: Pixels, cam: Map, spec: Preprocess) -> Pixels:
    """A map float32 (S, S) laid over the whole photo, uint8 (H, W, 3): the photo's shape, its sides within bounds.

    Colours are blended in by the map's strength; what the network's crop leaves out is darkened.
    """
    height, width = photo.shape[:2]
    scale = min(max(1.0, SHORTEST / min(width, height)), LONGEST / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    x, y, left, top = placement((width, height), spec)
    # From the overlay's points to the input's, as Image.transform wants it.
    where = (x * width / size[0], 0, -left, 0, y * height / size[1], -top)
    laid = Image.fromarray(cam).transform(size, Image.Transform.AFFINE, where, Image.Resampling.BILINEAR)
    seen = Image.fromarray(np.full(cam.shape, 255, np.uint8)).transform(size, Image.Transform.AFFINE, where)
    strength = np.clip(np.asarray(laid), 0, 1)
    shown = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC), np.float32)
    shown = shown * np.where(np.asarray(seen) > 0, 1.0, UNSEEN)[..., None]
    heat = colormaps[COLOURS](strength)[..., :3] * 255
    weight = HEAT * strength[..., None]
    return np.asarray(np.rint(shown * (1 - weight) + heat * weight), np.uint8)
