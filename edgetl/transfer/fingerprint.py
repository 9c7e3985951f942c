"""What is kept of an image to recognise it by: perceptual hashes of three views, and small grey pictures of them.

The views are the image as it is, its mirror image, and its inner part (a copy that was cut shows that). 540 bytes an
image, made from pixels that are decoded anyway; 100,000 images take 54 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

PLAIN, MIRRORED, INNER = range(3)
HASH_SIDE = 8  # 64 bits
THUMB_SIDE = 16
CUT = 0.05  # of each side, away from the inner part
FLAT = 2.0  # standard deviation of the small picture, of 255, below which there is nothing to recognise

Pixels = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint64]
Fingerprint = tuple[tuple[int, int, int], bytes]


@dataclass(frozen=True)
class Fingerprints:
    """One row an image: `codes` uint64 (N, 3), `thumbs` uint8 (N, 2, 16, 16) of the plain and the inner view."""

    codes: Codes
    thumbs: Pixels

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def flat(self) -> npt.NDArray[np.bool_]:
        """Which images show nothing, bool (N,): their hash is that of their noise."""
        # Block by block: the deviations of all pictures of a large set at once would fill memory.
        blocks = (self.thumbs[i : i + 4096, 0].std(axis=(1, 2)) < FLAT for i in range(0, len(self), 4096))
        return np.concatenate([np.zeros(0, bool), *blocks])


def fingerprint(pixels: Pixels) -> Fingerprint:
    """uint8 (H, W, 3) -> the 64-bit DCT hash (imagehash.phash) of each view, and the bytes of two 16 x 16 pictures."""
    grey = Image.fromarray(pixels).convert("L")
    width, height = grey.size
    box = (width * CUT, height * CUT, width * (1 - CUT), height * (1 - CUT))
    # phash shrinks to 32 x 32 first; shrunk once, the image serves three times.
    side = HASH_SIDE * 4
    plain, inner = (grey.resize((side, side), Image.Resampling.LANCZOS, part) for part in (None, box))
    mirrored = plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    thumbs = [view.reduce(side // THUMB_SIDE).tobytes() for view in (plain, inner)]
    return (_code(plain), _code(mirrored), _code(inner)), b"".join(thumbs)


def _code(view: Image.Image) -> int:
    bits = imagehash.phash(view, HASH_SIDE).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def stacked(found: Sequence[Fingerprint]) -> Fingerprints:
    """Many of them as arrays."""
    thumbs = np.frombuffer(b"".join(thumb for _, thumb in found), np.uint8)
    codes = np.array([code for code, _ in found], np.uint64).reshape(-1, 3)
    return Fingerprints(codes, thumbs.reshape(-1, 2, THUMB_SIDE, THUMB_SIDE))
