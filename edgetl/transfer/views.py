"""How copies show a picture: mirrored, turned, cut. Each view is a linear map of a small grey picture, and has a hash.

An image is kept as 32 x 32 grey values, of which every view follows by two matrix products: a hundred views of an
image cost less than decoding it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

SIDE = 32
HASH_SIDE = 8  # 64 bits
THUMB_SIDE = 16
KEPT = (0.95, 0.9, 0.85, 0.8)  # of a side, by a cut; the hashes of what lies between two of these are near to both
STEPS = (-0.025, -0.0125, 0.0125, 0.025)  # between them
_BLOCK = 4096

Pictures = npt.NDArray[np.uint8]  # (N, 32, 32)
Floats = npt.NDArray[np.float32]
Ends = tuple[float, float]
WHOLE: Ends = (0.0, 1.0)


@dataclass(frozen=True)
class View:
    """The part from x[0] to x[1] and from y[0] to y[1], shares of the sides; from the larger to the smaller: mirrored.

    `turned`: rows and columns change places first. `how`: what a copy that shows the image so is called.
    """

    how: str
    x: Ends = WHOLE
    y: Ends = WHOLE
    turned: bool = False

    def moved(self, step: float) -> View:
        """Cut by `step` of a side less: the ends that the cut has moved go outwards."""
        return replace(self, x=_grown(self.x, step), y=_grown(self.y, step))


def _grown(ends: Ends, step: float) -> Ends:
    low, high = ends
    free = (low > 0) + (high < 1)
    share = step / max(1, free)
    return (max(0.0, low - share) if low > 0 else low, min(1.0, high + share) if high < 1 else high)


PLAIN = View("plain")
_BACK: Ends = (1.0, 0.0)
REARRANGED = (
    View("mirrored", x=_BACK),
    View("mirrored", y=_BACK),
    View("turned", x=_BACK, y=_BACK),
    View("turned", x=_BACK, turned=True),
    View("turned", y=_BACK, turned=True),
    View("turned", turned=True),
    View("turned", x=_BACK, y=_BACK, turned=True),
)


def cuts() -> Iterator[View]:
    """Four corners, four sides and the middle, for each share that is kept."""
    for kept in KEPT:
        low, high, middle = (0.0, kept), (1 - kept, 1.0), ((1 - kept) / 2, (1 + kept) / 2)
        places = [(x, y) for x in (low, WHOLE, high) for y in (low, WHOLE, high)]
        places[4] = (middle, middle)  # in place of the whole
        yield from (View("cut", x, y) for x, y in places)


def codes(pictures: Pictures, view: View = PLAIN) -> npt.NDArray[np.uint64]:
    """The 64-bit DCT hash of a view of pictures (N, 32, 32), uint64 (N,).

    That of imagehash.phash (Buchner; after Krawetz 2011, "Looks like it"): which of the 8 x 8 lowest frequencies are
    above their median.
    """
    rows, columns = (_DCT @ _resampled(*ends) for ends in (view.y, view.x))
    out = np.empty(len(pictures), np.uint64)
    for start in range(0, len(pictures), _BLOCK):
        part = slice(start, start + _BLOCK)
        low = _seen(pictures[part], view, rows, columns).reshape(-1, HASH_SIDE**2)
        bits = np.packbits(low > np.median(low, axis=1)[:, None], axis=1)
        out[part] = bits.view(">u8")[:, 0]
    return out


def thumbs(pictures: Pictures, view: View = PLAIN) -> Floats:
    """A view of pictures (N, 32, 32) at 16 x 16, float32 (N, 16, 16)."""
    rows, columns = (_HALVED @ _resampled(*ends) for ends in (view.y, view.x))
    return _seen(pictures, view, rows, columns)


def _seen(pictures: Pictures, view: View, rows: Floats, columns: Floats) -> Floats:
    pixels = pictures.astype(np.float32)
    return np.asarray(rows @ (pixels.transpose(0, 2, 1) if view.turned else pixels) @ columns.T, np.float32)


def _resampled(start: float, stop: float) -> Floats:
    """SIDE x SIDE: the part from `start` to `stop` of a side at SIDE places, by linear interpolation."""
    at = ((np.arange(SIDE) + 0.5) / SIDE * (stop - start) + start) * SIDE - 0.5
    at = np.clip(at, 0, SIDE - 1)
    left = np.minimum(at.astype(np.int64), SIDE - 2)
    out = np.zeros((SIDE, SIDE), np.float32)
    out[np.arange(SIDE), left] = 1 - (at - left)
    out[np.arange(SIDE), left + 1] += at - left
    return out


def _dct() -> Floats:
    """The lowest HASH_SIDE rows of the discrete cosine transform of SIDE values (type II, but for a factor)."""
    frequency, place = np.arange(HASH_SIDE)[:, None], np.arange(SIDE)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE)).astype(np.float32)


_DCT = _dct()
_HALVED = np.kron(np.eye(THUMB_SIDE), np.full((1, SIDE // THUMB_SIDE), THUMB_SIDE / SIDE)).astype(np.float32)
