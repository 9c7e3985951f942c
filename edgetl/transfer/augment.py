"""Random views of training images: a function of (seed, epoch, image digest) and of nothing else.

So a resumed run, another batch size, another order of the images or another process sees the very same views.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from math import exp, log
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from edgetl.images import Sample, fitted, rank_of
from edgetl.spec import Fit, Preprocess

Pixels = npt.NDArray[np.uint8]
CROP_SCALE = (0.5, 1.0)  # of the area
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height
JITTER = 0.2


class Views:
    """Callable (samples, epoch) -> uint8 (B, S, S, 3): one random view of each. Threads may call it at once.

    torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter, but with every draw from a generator of
    the view's own: torchvision's classes draw from the process's, which threads would share with each other and
    with dropout.
    """

    def __init__(self, image: Callable[[Sample], Pixels], spec: Preprocess, seed: int, flips: bool) -> None:
        self._image = image
        self._spec = spec
        self._seed = seed
        self._flips = flips
        self._interpolation = InterpolationMode(spec.interpolation)

    def __call__(self, samples: Sequence[Sample], epoch: int) -> Pixels:
        """The views of this epoch."""
        return np.stack([self._view(sample, epoch) for sample in samples])

    def _view(self, sample: Sample, epoch: int) -> Pixels:
        pixels = self._image(sample)
        if self._spec.fit is not Fit.CROP:
            pixels = np.array(fitted(Image.fromarray(pixels), self._spec))
        draw = Random(stream_seed(self._seed, "view", epoch, sample.digest))
        view: torch.Tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        size = [self._spec.size, self._spec.size]
        box = _crop(draw, *pixels.shape[:2])
        view = functional.resized_crop(view, *box, size=size, interpolation=self._interpolation, antialias=True)
        if self._flips and draw.random() < 0.5:
            view = functional.horizontal_flip(view)
        jitters = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
        draw.shuffle(jitters)
        for jitter in jitters:
            view = jitter(view, draw.uniform(1 - JITTER, 1 + JITTER))
        return np.asarray(view.permute(1, 2, 0), np.uint8)


def _crop(draw: Random, height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of CROP_SCALE of the area and an aspect of CROP_ASPECT (logarithmically).

    Szegedy et al. 2015, "Going deeper with convolutions", section 6, as torchvision draws it: ten tries, then the
    largest central crop of an aspect that is allowed.
    """
    for _ in range(10):
        area = height * width * draw.uniform(*CROP_SCALE)
        aspect = exp(draw.uniform(log(CROP_ASPECT[0]), log(CROP_ASPECT[1])))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return draw.randint(0, height - h), draw.randint(0, width - w), h, w
    w = min(width, max(1, round(height * CROP_ASPECT[1])))
    h = min(height, max(1, round(width / CROP_ASPECT[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def stream_seed(seed: int, *key: object) -> int:
    """A 63-bit seed for the random stream named by `key`."""
    text = "/".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def epoch_order(samples: Sequence[Sample], seed: int, epoch: int) -> list[Sample]:
    """The training images in this epoch's order."""
    return sorted(samples, key=lambda s: (rank_of(stream_seed(seed, "order", epoch), s.digest), s.path))
