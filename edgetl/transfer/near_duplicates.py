"""Near-duplicates across splits: images that are not equal byte for byte, but show the same picture.

Recompressed, resized, brightened, mirrored or turned copies, copies that were cut at a corner, at a side or all around,
and the frames of a burst: where one lies in train and one in val or test, the figures of val and test are too good.
Two images are called near-duplicates when their perceptual hashes are near *and* their small grey pictures correlate
more than images of their class do by chance. The second half is what keeps digits quiet, where any two ones look alike
(docs/log.md has the rates that were measured).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from edgetl.transfer.fingerprint import Fingerprints
from edgetl.transfer.hamming import near
from edgetl.transfer.views import PLAIN, REARRANGED, STEPS, View, codes, cuts, thumbs

RADIUS = 12  # bits of 64; random photographs are 32 +- 4 apart
CUT_RADIUS = 9  # of the many views of a cut: each bit less costs a look at fewer places, and 4 of 5 are saved here
LEAST = 0.8  # correlation, however different the images of a class are
EXPECTED = 0.05  # pairs of a whole set that chance may pass
MOST, MOST_CUT = 1000, 50  # pictures that one image is held against at most, in each way: bounds the time in a crowd
NEARLY = 0.15  # a cut that lies between two views may correlate so much less than its limit, until it is aligned
DRAWN = 4000  # pairs a class from which its chance is learned

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Match:
    """Row `image` looks like row `like`; `correlation` of their small pictures; `how`: plain, mirrored, turned, cut."""

    image: int
    like: int
    correlation: float
    how: str


@dataclass(frozen=True)
class _Way:
    """How a copy was made: which view of the one is held against the other as it is.

    `of_like`: the view is of the image that is looked among, else of the one that is looked for.
    """

    view: View
    of_like: bool = False
    radius: int = RADIUS
    most: int = MOST

    @property
    def tries(self) -> int:
        """Which limit counts: 0 of the few ways that leave a picture whole, 1 of the many that cut it."""
        return int(self.view.how == "cut")


_WAYS = (
    *(_Way(view) for view in (PLAIN, *REARRANGED)),
    *(_Way(view, of_like, CUT_RADIUS, MOST_CUT) for view in cuts() for of_like in (False, True)),
)
_TRIES = (1, (1 + len(STEPS)) * sum(way.tries for way in _WAYS))  # of one pair, for each kind of limit


def matches(prints: Fingerprints, queries: Ints, among: Ints, limits: Floats) -> list[Match]:
    """For each of `queries` (rows) a near-duplicate found among `among` (rows), if any, in order of the queries.

    `limits` float64 (N, 2) are the correlations that each image asks for (`limits_of`). No image is compared with
    itself.
    """
    queries, among = (rows[~prints.flat[rows]] for rows in (queries, among))
    found: dict[int, Match] = {}
    for way in _WAYS:
        left, right = prints.codes[queries], prints.codes[among]
        if way.of_like:
            right = codes(prints.pictures[among], way.view)
        else:
            left = codes(prints.pictures[queries], way.view)
        open_ = np.array([int(row) not in found for row in queries], bool)
        tried = np.zeros(len(queries), np.int64)
        for pairs in near(left, right, way.radius, open_):
            query, code = _first(*pairs, tried, open_, way.most)
            images, likes = queries[query], among[code]
            limit = np.maximum(limits[images, way.tries], limits[likes, way.tries])
            correlation = _of_way(prints, way, images, likes, limit)
            same = (correlation > limit) & (images != likes)
            open_[query[same]] = False
            for i in np.flatnonzero(same)[np.argsort(correlation[same], kind="stable")]:  # the best one stays
                row = int(images[i])
                found[row] = Match(row, int(likes[i]), round(float(correlation[i]), 4), way.view.how)
    return [found[row] for row in sorted(found)]


def _of_way(prints: Fingerprints, way: _Way, images: Ints, likes: Ints, limit: Floats) -> Floats:
    """The correlation of each pair; of a cut that nearly reaches its `limit` the best over the cuts beside it."""
    shown, plain = (likes, images) if way.of_like else (images, likes)
    out = _correlation(prints, shown, plain, way.view)
    if way.tries:
        nearly = np.flatnonzero((out <= limit) & (out > limit - NEARLY))
        for step in STEPS:
            aligned = _correlation(prints, shown[nearly], plain[nearly], way.view.moved(step))
            out[nearly] = np.maximum(out[nearly], aligned)
    return out


def _first(query: Ints, code: Ints, tried: Ints, open_: Flags, most: int) -> tuple[Ints, Ints]:
    """The pairs of queries that are open, `most` of each at most; counts them in `tried` and closes who had so many."""
    begins = np.flatnonzero(np.diff(query, prepend=-1))  # a query's pairs come in a row
    place = np.arange(len(query)) - np.repeat(begins, np.diff(begins, append=len(query)))
    kept = open_[query] & (place + tried[query] < most)
    query, code = query[kept], code[kept]
    np.add.at(tried, query, 1)
    open_[tried >= most] = False
    return query, code


def limits_of(prints: Fingerprints, targets: Ints, seed: int) -> Floats:
    """The correlation above which chance does not explain that an image is like another, float64 (N, 2), by class.

    The first is for a pair that is held together once, the second for one that is tried with every cut.
    Correlations of random pairs of a class are about normal after Fisher's z = atanh(r) (Fisher 1915). Its centre
    and its lower half give mean and deviation: true near-duplicates lie in the upper tail, and pairs whose hashes
    are near take no part. The limit is where EXPECTED of all the set's pairs would lie above.
    """
    rng = np.random.default_rng(seed)
    usable = np.flatnonzero(~prints.flat)
    out = np.full((len(prints), len(_TRIES)), LEAST)
    pooled = _chance(prints, usable, len(usable), rng)
    nothing = np.full(len(_TRIES), LEAST)
    for target in np.unique(targets):
        rows = usable[targets[usable] == target]
        limit = _chance(prints, rows, len(usable), rng)
        found = next((chance for chance in (limit, pooled) if chance is not None), nothing)
        out[targets == target] = np.maximum(LEAST, found)
    return out


def _chance(prints: Fingerprints, rows: Ints, images: int, rng: np.random.Generator) -> Floats | None:
    """The limits (2,) that pairs of these rows suggest; None where there are too few different ones to tell."""
    if len(rows) < 2:
        return None
    left, right = (rng.choice(rows, DRAWN) for _ in range(2))
    apart = np.bitwise_count(prints.codes[left] ^ prints.codes[right]) > RADIUS
    if apart.sum() < DRAWN // 10:
        return None  # one burst: what is the same picture throughout says nothing of chance
    z = np.arctanh(np.clip(_correlation(prints, left[apart], right[apart]), -0.999999, 0.999999))
    low, middle, high = np.percentile(z, (15.87, 50, 97.72))
    deviation = max(middle - low, (high - middle) / 2)
    shares = [min(0.5, EXPECTED / (images * (images - 1) / 2) / tries) for tries in _TRIES]
    return np.tanh([middle - NormalDist().inv_cdf(share) * deviation for share in shares])


def _correlation(prints: Fingerprints, rows: Ints, others: Ints, view: View = PLAIN) -> Floats:
    """Of the view of each of `rows` with the one of `others` beside it, as that is; float64 (len(rows),).

    Few at a time, since as vectors all pictures of a large set fill memory.
    """
    out = np.empty(len(rows))
    for start in range(0, len(rows), 1 << 12):
        part = slice(start, start + (1 << 12))
        left, right = _vectors(prints, rows[part], view), _vectors(prints, others[part], PLAIN)
        out[part] = np.einsum("nhw,nhw->n", left, right)
    return out


def _vectors(prints: Fingerprints, rows: Ints, view: View) -> npt.NDArray[np.float32]:
    """A view of each of `rows` as a vector of mean 0 and length 1, float32 (len(rows), 16, 16)."""
    different, place = np.unique(rows, return_inverse=True)  # in a crowd the same few come again and again
    vectors = thumbs(prints.pictures[different], view)
    vectors -= vectors.mean(axis=(1, 2), keepdims=True)
    vectors /= np.maximum(np.sqrt((vectors**2).sum(axis=(1, 2), keepdims=True)), 1e-6)
    return vectors[place]
