"""Intervals of what was timed in turns. Neighbouring runs are alike, so whole turns are drawn again. Python 3.8, numpy.

An interval that takes runs for independent (the binomial one of order statistics) is several times too narrow
where the machine changes its mind every second; turns are far enough apart to count each for itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edgetl.stats import PERCENTILES, Interval, percentiles, student

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

Turns = Sequence[Sequence[float]]
Intervals = Dict[str, Optional[Interval]]

MIN_TURNS = 6  # fewer say too little of how turns differ
_MOST_TURNS = 256  # neighbours are joined beyond it
_CELLS = 2000  # runs are told apart to this share of their order
_RESAMPLES = 1000


def intervals(turns: Turns, seed: int = 0) -> Intervals:
    """95 % intervals by name of stats.percentiles; None where there is no percentile, or fewer than MIN_TURNS turns.

    Bootstrap of whole turns (clusters: Davison & Hinkley 1997, section 3.8), its quantiles widened for few turns as
    Student's t is (the expanded percentile interval of Hesterberg 2015, section 5.3).
    """
    known = percentiles([value for turn in turns for value in turn])
    wanted = [p for p in PERCENTILES if known["p%d" % p] is not None]
    out: Intervals = {"p%d" % p: None for p in PERCENTILES}
    if len(turns) < MIN_TURNS or not wanted:
        return out
    weights = _weights(_blocks(len(turns)), seed)
    drawn = _percentiles(turns, weights, wanted)
    for p, column in zip(wanted, drawn.T):
        point = float(known["p%d" % p] or 0.0)
        low, high = _ends(column, len(weights[0]))
        out["p%d" % p] = (min(low, point), max(high, point))
    return out


def ratio(turns: Turns, base: Turns, seed: int = 0) -> Optional[Tuple[float, float, float]]:
    """(p50 of `turns` over p50 of `base`, low, high): both drawn by the same rotations, so what hits both cancels.

    Turn i of both belongs to rotation i; what one has more of is left out. None with fewer than MIN_TURNS rotations.
    """
    count = min(len(turns), len(base))
    if count < MIN_TURNS:
        return None
    ours, theirs = turns[:count], base[:count]
    weights = _weights(_blocks(count), seed)
    drawn = _percentiles(ours, weights, [50])[:, 0] / _percentiles(theirs, weights, [50])[:, 0]
    point = _median(ours) / _median(theirs)
    low, high = _ends(drawn, len(weights[0]))
    return point, min(low, point), max(high, point)


def spread(turns: Turns) -> Optional[float]:
    """How far turns differ: half the distance between the 10th and 90th percentile of their medians, as a share of
    the median of all. None with fewer than MIN_TURNS turns."""
    if len(turns) < MIN_TURNS:
        return None
    low, middle, high = np.percentile([_median([turn]) for turn in turns], [10, 50, 90])
    return float((high - low) / 2 / middle) if middle > 0 else None


def split(values: Sequence[float], lengths: Sequence[int]) -> List[Sequence[float]]:
    """`values` as turns of the given lengths."""
    ends = np.cumsum(lengths).tolist()
    return [values[end - length : end] for end, length in zip(ends, lengths)]


def _median(turns: Turns) -> float:
    return float(np.median([value for turn in turns for value in turn]))


def _blocks(turns: int) -> npt.NDArray[np.int64]:
    """The block of each turn."""
    out: npt.NDArray[np.int64] = np.arange(turns) * min(turns, _MOST_TURNS) // turns
    return out


def _weights(blocks: npt.NDArray[np.int64], seed: int) -> Floats:
    """(_RESAMPLES, blocks): how often each block is drawn; with `blocks` its turns are. One row sums to the blocks."""
    count = int(blocks[-1]) + 1
    rng = np.random.default_rng(seed)
    drawn: Floats = rng.multinomial(count, np.full(count, 1.0 / count), size=_RESAMPLES).astype(np.float64)
    return drawn


def _percentiles(turns: Turns, weights: Floats, wanted: Sequence[int]) -> Floats:
    """(_RESAMPLES, wanted): weighted percentiles, the smallest value at or below which that share of weight lies."""
    blocks = _blocks(len(turns))
    values = np.concatenate([np.asarray(turn, dtype=np.float64) for turn in turns])
    of = np.repeat(blocks, [len(turn) for turn in turns])
    order = np.argsort(values, kind="stable")
    cells = np.arange(len(values)) * min(len(values), _CELLS) // len(values)  # neighbours in order share a cell
    counts = np.zeros((int(blocks[-1]) + 1, int(cells[-1]) + 1))
    np.add.at(counts, (of[order], cells), 1.0)
    middle = np.bincount(cells, weights=values[order]) / np.bincount(cells)
    below = np.cumsum(weights @ counts, axis=1)
    shares = below / below[:, -1:] + 2.0 * np.arange(len(below))[:, None]  # rows one above the other: one search
    keys = np.asarray(wanted) / 100.0 - 1e-12 + 2.0 * np.arange(len(below))[:, None]
    found = np.searchsorted(shares.ravel(), keys.ravel()).reshape(keys.shape)
    place = found - len(middle) * np.arange(len(below))[:, None]
    out: Floats = middle[np.minimum(place, len(middle) - 1)]
    return out


def _ends(drawn: Floats, clusters: int) -> Interval:
    """The expanded percentile interval of `drawn` estimates from `clusters` independent pieces."""
    z = math.sqrt(clusters / (clusters - 1.0)) * student(clusters - 1)
    tail = 50.0 * math.erfc(z / math.sqrt(2.0))  # per cent below -z of the normal distribution
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return float(low), float(high)


def as_json(found: Mapping[str, Optional[Interval]]) -> Dict[str, Any]:
    """Intervals as JSON has them: lists."""
    return {name: None if ends is None else list(ends) for name, ends in found.items()}
