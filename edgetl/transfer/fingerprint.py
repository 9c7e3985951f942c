"""What is kept of an image to recognise it by: a small grey picture, and the perceptual hash of it.

1 kB an image, made from pixels that are decoded anyway; 100,000 images take 100 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetl.transfer.views import SIDE, codes, thumbs

FLAT = 2.0  # standard deviation of the small picture, of 255, below which there is nothing to recognise

Pixels = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint64]
Fingerprint = bytes  # of SIDE x SIDE grey values


@dataclass(frozen=True)
class Fingerprints:
    """One row an image: `pictures` uint8 (N, 32, 32), and their hashes, `codes` uint64 (N,)."""

    pictures: Pixels
    codes: Codes

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def flat(self) -> npt.NDArray[np.bool_]:
        """Which images show nothing, bool (N,): their hash is that of their noise."""
        # Block by block: the deviations of all pictures of a large set at once would fill memory.
        starts = range(0, len(self), 4096)
        blocks = (thumbs(self.pictures[i : i + 4096]).std(axis=(1, 2)) < FLAT for i in starts)
        return np.concatenate([np.zeros(0, bool), *blocks])


def fingerprint(pixels: Pixels) -> Fingerprint:
    """uint8 (H, W, 3) -> the bytes of the grey picture that imagehash.phash makes first."""
    return Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS).tobytes()


def stacked(found: Sequence[Fingerprint]) -> Fingerprints:
    """Many of them as arrays."""
    pictures = np.frombuffer(b"".join(found), np.uint8).reshape(-1, SIDE, SIDE)
    return Fingerprints(pictures, codes(pictures))
