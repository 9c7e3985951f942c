"""Random views of training images: a function of (seed, epoch, image digest) and of nothing else.

So a resumed run, another batch size or another order of the images sees the very same views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from edgetl.images import Sample, fitted, rank_of
from edgetl.spec import Fit, Preprocess

Pixels = npt.NDArray[np.uint8]
CROP_SCALE = (0.5, 1.0)  # of the area
JITTER = 0.2


class Views:
    """Callable (samples, epoch) -> uint8 (B, S, S, 3): one random view of each."""

    def __init__(self, image: Callable[[Sample], Pixels], spec: Preprocess, seed: int, flips: bool) -> None:
        self._image = image
        self._spec = spec
        self._seed = seed
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(
                spec.size, scale=CROP_SCALE, interpolation=InterpolationMode(spec.interpolation), antialias=True
            )
        ]
        if flips:
            steps.append(v2.RandomHorizontalFlip())
        steps.append(v2.ColorJitter(JITTER, JITTER, JITTER))
        self._transform = v2.Compose(steps)

    def __call__(self, samples: Sequence[Sample], epoch: int) -> Pixels:
        """The views of this epoch."""
        return np.stack([self._view(sample, epoch) for sample in samples])

    def _view(self, sample: Sample, epoch: int) -> Pixels:
        pixels = self._image(sample)
        if self._spec.fit is not Fit.CROP:
            pixels = np.asarray(fitted(Image.fromarray(pixels), self._spec))
        tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        generator = torch.default_generator  # v2 draws from it; not torch.manual_seed, which reseeds the GPUs too
        saved = generator.get_state()
        generator.manual_seed(stream_seed(self._seed, "view", epoch, sample.digest))
        try:
            view: torch.Tensor = self._transform(tensor)
        finally:
            generator.set_state(saved)
        return view.permute(1, 2, 0).numpy()


def stream_seed(seed: int, *key: object) -> int:
    """A 63-bit seed for the random stream named by `key`."""
    text = "/".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def epoch_order(samples: Sequence[Sample], seed: int, epoch: int) -> list[Sample]:
    """The training images in this epoch's order."""
    return sorted(samples, key=lambda s: (rank_of(stream_seed(seed, "order", epoch), s.digest), s.path))
