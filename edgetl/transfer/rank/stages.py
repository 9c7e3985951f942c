"""What a network says at several depths, in one pass: its head's input, and the pooled maps of the stages before.

A probe of the head's input sees the source task: the last layers were made for it, and fine-tuning is what remakes
them. What fine-tuning can build on is whatever can be read anywhere in the network (Alain & Bengio 2017, "Understanding
intermediate layers using linear classifier probes"; Evci et al. 2022, "Head2Toe", whose probes of intermediate features
come close to fine-tuning). So each stage is asked, and the last one by the head's input, which is its pooled map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from edgetl.errors import WeightsError
from edgetl.images import Sample
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer.backbones import BackboneRow, headless
from edgetl.transfer.feature_store import FeatureStore, model_key
from edgetl.transfer.features import Inputs
from edgetl.transfer.pretrained import Floats, Pretrained
from edgetl.transfer.recipe import stages_of

LAYER = (
    "input of the head, then mean and deviation of up to 28 x 28 places of earlier stages' maps"  # in the store's key
)
_SIDE = 28  # places of a map that are looked at, each way
_PROBED = 3  # images that tell a map from a table of weights


def features_of(
    network: Pretrained, samples: Sequence[Sample], inputs: Inputs, store: FeatureStore, monitor: Monitor = SILENT
) -> tuple[Floats, list[Floats]]:
    """(the head's input (N, D), pooled map of each stage but the last (N, 2 C_i)), from one pass; kept in `store`.

    Raises WeightsError where they are no finite numbers, and what `store` raises.
    """
    staged = Staged(network.network, network.network.backbone, network.spec, network.preprocess.size)
    try:
        with headless(network.network.backbone, network.spec):
            key = model_key(network.network, network.spec.name, network.preprocess, network.arguments, LAYER)
            what = f"features, {network.name}"
            rows = store.features(staged, key, samples, inputs, network.device, what, monitor)
    finally:
        staged.close()
    if not np.isfinite(rows).all():
        do = "leave these weights out, or look at what they were trained with"
        raise WeightsError("what the network makes of the images is no finite numbers", network.describe(), do)
    features, *stages = np.split(rows, np.cumsum(staged.widths)[:-1], axis=1)
    return features, stages


class Staged(nn.Module):
    """A headless network that answers with (B, D + sum of 2 C_i): the head's input (D), then each stage's map pooled.

    Of a map (B, C, H, W), (B, H, W, C) or (B, T, C) the mean and the standard deviation over its places. `widths`: D
    and the 2 C_i. Stages are recipe.stages_of's but the last; one without any such map is left out. `close` takes the
    hooks off.
    """

    def __init__(self, network: nn.Module, backbone: nn.Module, spec: BackboneRow, size: int) -> None:
        """`network` is `backbone` behind its normalisation and takes (B, 3, `size`, `size`).

        It has its head still, and is to be asked within backbones.headless.
        """
        super().__init__()
        self._network = network.eval()
        self._pooled: dict[int, torch.Tensor] = {}
        device = next(backbone.parameters()).device
        stages = stages_of(backbone, spec)[:-1]
        parents = _parents(backbone)
        ends = [[end for module in stage if (end := _end(module, parents))] for stage in stages]
        hooks = self._watch([end for found in ends for end in found])
        with headless(backbone, spec), torch.inference_mode():
            features = self._network(torch.zeros(_PROBED, 3, size, size, device=device))
        for hook in hooks:
            hook.remove()
        # The last of a stage that is called (attention reads its projection's weights itself) with a map an image.
        there = [[end for end in found if len(self._pooled.get(id(end[0]), ())) == _PROBED] for found in ends]
        self._kept = [found[-1] for found in there if found]
        self.widths = (features.shape[1], *(self._pooled[id(module)].shape[1] for module, _ in self._kept))
        self._pooled.clear()
        self._hooks = self._watch(self._kept)

    def _watch(self, ends: Sequence[tuple[nn.Module, int]]) -> list[RemovableHandle]:
        def hook(channels: int) -> Callable[[nn.Module, Any, Any], None]:
            def pool(module: nn.Module, _: Any, output: Any) -> None:
                found = output[0] if isinstance(output, tuple) else output
                if isinstance(found, torch.Tensor) and (rows := pooled(found, channels)) is not None:
                    self._pooled[id(module)] = rows

            return pool

        return [module.register_forward_hook(hook(channels)) for module, channels in ends]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """float32 (B, sum of `widths`)."""
        features = self._network(image)
        return torch.cat([features, *(self._pooled[id(module)] for module, _ in self._kept)], 1)

    def close(self) -> None:
        """The network is as it was."""
        for hook in self._hooks:
            hook.remove()


def pooled(found: torch.Tensor, channels: int) -> torch.Tensor | None:
    """(B, 2 C): mean and standard deviation over the places of a map, its channels first or last; None for no map.

    Of a map over 28 x 28 (784 tokens) a grid of at most that many places is looked at. One place is none: the gates of
    squeeze-and-excitation say little.
    """
    first = found.ndim == 4 and found.shape[1] == channels
    if found.ndim not in (3, 4) or not (first or found.shape[-1] == channels) or found[0].numel() == channels:
        return None
    rows = (found.permute(0, 2, 3, 1) if first else found).float()  # channels last: the sums run over whole vectors
    side = _SIDE if rows.ndim == 4 else _SIDE**2
    for axis in range(1, rows.ndim - 1):
        # Neighbours are alike, and to look at all places of a large map would take as long as its layer.
        step = -(-rows.shape[axis] // side)
        rows = rows[(slice(None),) * axis + (slice(step // 2, None, step),)]
    rows = rows.flatten(1, -2)
    mean = rows.mean(1)
    return torch.cat([mean, (rows - mean[:, None]).square_().mean(1).sqrt_()], 1)


def _parents(backbone: nn.Module) -> dict[int, nn.Module]:
    """By id of a module: the one that ends with it, parameters being what counts; the backbone itself is none."""
    found = {}
    for module in backbone.modules():
        members = [child for child in module.children() if any(True for _ in child.parameters())]
        if members and module is not backbone:
            found[id(members[-1])] = module
    return found


def _end(module: nn.Module, parents: dict[int, nn.Module]) -> tuple[nn.Module, int] | None:
    """The largest module that ends with this one (a block's end is after its sum), and how many channels come out."""
    channels = _channels(module)
    while id(module) in parents:
        module = parents[id(module)]
    return (module, channels) if channels else None


def _channels(module: nn.Module) -> int | None:
    for name in ("out_channels", "num_features", "out_features"):
        if isinstance(found := getattr(module, name, None), int):
            return found
    return int(module.normalized_shape[-1]) if isinstance(module, nn.LayerNorm) else None
