"""Near-duplicates across splits: images that are not equal byte for byte, but show the same picture.

Recompressed, resized, brightened, slightly cut or mirrored copies and the frames of a burst: where one lies in
train and one in val or test, the figures of val and test are too good. Two images are called near-duplicates when
their perceptual hashes are within RADIUS bits *and* their small grey pictures correlate more than images of their
class do by chance. The second half is what keeps digits quiet, where any two ones look alike (docs/log.md has the
rates that were measured).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from edgetl.transfer.fingerprint import INNER, MIRRORED, PLAIN, Fingerprints
from edgetl.transfer.hamming import near

RADIUS = 12  # bits of 64; random photographs are 32 +- 4 apart
LEAST = 0.8  # correlation, however different the images of a class are
EXPECTED = 0.05  # pairs of a whole set that chance may pass
MOST = 1000  # pictures that one image is held against at most, in each way: bounds the time where all hashes are near
DRAWN = 4000  # pairs a class from which its chance is learned

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Thumbs = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Match:
    """Row `image` looks like row `like`; `correlation` of their small pictures; `how`: "plain", "mirrored", "cut"."""

    image: int
    like: int
    correlation: float
    how: str


# How a copy was made: which view of the image is held against which of the other.
_WAYS = (("plain", PLAIN, PLAIN), ("mirrored", MIRRORED, PLAIN), ("cut", INNER, PLAIN), ("cut", PLAIN, INNER))


def matches(prints: Fingerprints, queries: Ints, among: Ints, limits: Floats) -> list[Match]:
    """For each of `queries` (rows) a near-duplicate found among `among` (rows), if any, in order of the queries.

    `limits` float64 (N,) is the correlation that each image asks for (`limits_of`). No image is compared with itself.
    """
    queries, among = (rows[~prints.flat[rows]] for rows in (queries, among))
    views = _views(prints)
    found: dict[int, Match] = {}
    for how, view, other in _WAYS:
        open_ = np.array([int(row) not in found for row in queries], bool)
        tried = np.zeros(len(queries), np.int64)
        for pairs in near(prints.codes[queries, view], prints.codes[among, other], RADIUS, open_):
            query, code = _first(*pairs, tried, open_)
            images, likes = queries[query], among[code]
            correlation = _correlation(views[view], views[other], images, likes)
            same = (correlation > np.maximum(limits[images], limits[likes])) & (images != likes)
            open_[query[same]] = False
            for i in np.flatnonzero(same)[np.argsort(correlation[same], kind="stable")]:  # the best one stays
                row = int(images[i])
                found[row] = Match(row, int(likes[i]), round(float(correlation[i]), 4), how)
    return [found[row] for row in sorted(found)]


def _first(query: Ints, code: Ints, tried: Ints, open_: Flags) -> tuple[Ints, Ints]:
    """The pairs of queries that are open, MOST of each at most; counts them in `tried` and closes who had so many."""
    begins = np.flatnonzero(np.diff(query, prepend=-1))  # a query's pairs come in a row
    place = np.arange(len(query)) - np.repeat(begins, np.diff(begins, append=len(query)))
    kept = open_[query] & (place + tried[query] < MOST)
    query, code = query[kept], code[kept]
    np.add.at(tried, query, 1)
    open_[tried >= MOST] = False
    return query, code


def limits_of(prints: Fingerprints, targets: Ints, seed: int) -> Floats:
    """The correlation above which chance does not explain that an image is like another, float64 (N,), by class.

    Correlations of random pairs of a class are about normal after Fisher's z = atanh(r) (Fisher 1915). Its centre
    and its lower half give mean and deviation: true near-duplicates lie in the upper tail, and pairs whose hashes
    are near take no part. The limit is where EXPECTED of all the set's pairs would lie above.
    """
    rng = np.random.default_rng(seed)
    views = _views(prints)
    usable = np.flatnonzero(~prints.flat)
    out = np.full(len(prints), LEAST)
    pooled = _chance(prints, views[PLAIN], usable, len(usable), rng)
    for target in np.unique(targets):
        rows = usable[targets[usable] == target]
        limit = _chance(prints, views[PLAIN], rows, len(usable), rng)
        out[targets == target] = max(LEAST, (pooled if limit is None else limit) or LEAST)
    return out


def _chance(prints: Fingerprints, thumbs: Thumbs, rows: Ints, images: int, rng: np.random.Generator) -> float | None:
    """The limit that pairs of these rows suggest; None where there are too few different ones to tell."""
    if len(rows) < 2:
        return None
    left, right = (rng.choice(rows, DRAWN) for _ in range(2))
    apart = np.bitwise_count(prints.codes[left, PLAIN] ^ prints.codes[right, PLAIN]) > RADIUS
    if apart.sum() < DRAWN // 10:
        return None  # one burst: what is the same picture throughout says nothing of chance
    z = np.arctanh(np.clip(_correlation(thumbs, thumbs, left[apart], right[apart]), -0.999999, 0.999999))
    low, middle, high = np.percentile(z, (15.87, 50, 97.72))
    deviation = max(middle - low, (high - middle) / 2)
    share = min(0.5, EXPECTED / (images * (images - 1) / 2))
    return float(np.tanh(middle - NormalDist().inv_cdf(share) * deviation))


def _views(prints: Fingerprints) -> tuple[Thumbs, Thumbs, Thumbs]:
    """The small pictures of the three views, each uint8 (N, 16, 16)."""
    thumbs = prints.thumbs
    return thumbs[:, 0], thumbs[:, 0, :, ::-1], thumbs[:, 1]


def _correlation(left: Thumbs, right: Thumbs, rows: Ints, others: Ints) -> Floats:
    """Of each pair, float64 (len(rows),); few at a time, since as vectors all pictures of a large set fill memory."""
    out = np.empty(len(rows))
    for start in range(0, len(rows), 1 << 12):
        part = slice(start, start + (1 << 12))
        out[part] = np.einsum("nhw,nhw->n", _vectors(left[rows[part]]), _vectors(right[others[part]]))
    return out


def _vectors(thumbs: Thumbs) -> npt.NDArray[np.float32]:
    """Pictures as vectors of mean 0 and length 1, float32 (N, 16, 16)."""
    vectors = thumbs.astype(np.float32)
    vectors -= vectors.mean(axis=(1, 2), keepdims=True)
    vectors /= np.maximum(np.sqrt((vectors**2).sum(axis=(1, 2), keepdims=True)), 1e-6)
    return vectors
