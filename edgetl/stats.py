"""Percentiles, intervals and paired tests: numpy only, Python 3.8.

All intervals are two-sided at 95 %. Each function names the source of its formula.
"""

from __future__ import annotations

import math
from typing import Dict, Optional, Sequence, Tuple, Union

import numpy as np

Interval = Tuple[float, float]
Summary = Dict[str, Union[float, int, None]]

Z95 = 1.959963984540054  # 97.5th percentile of the standard normal distribution
PERCENTILES = (50, 90, 95, 99)
MIN_BEYOND = 10  # a percentile with fewer observations beyond it is not an estimate


def percentiles(values: Sequence[float]) -> Summary:
    """{"p50", "p90", "p95", "p99", "mean", "n"} in the unit of `values`.

    A percentile with fewer than MIN_BEYOND of the n observations beyond it is None (p99 wants n >= 1000).
    Between two observations it is interpolated linearly (Hyndman & Fan 1996, type 7).
    """
    data = np.asarray(values, dtype=np.float64)
    n = int(data.size)
    out: Summary = {}
    for p in PERCENTILES:
        enough = n * (100 - p) >= MIN_BEYOND * 100  # whole numbers: no rounding decides
        out["p%d" % p] = float(np.percentile(data, p)) if enough else None
    out["mean"] = float(data.mean()) if n else None
    out["n"] = n
    return out


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927); (0, 1) where nothing was observed."""
    if not 0 <= successes <= n:
        raise ValueError("wilson wants 0 <= successes <= n, got %d of %d" % (successes, n))
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4.0 * n * n))
    # At 0 and n successes the formula's ends are exactly 0 and 1; floating point leaves 1e-17 there.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def at_least(successes: int, n: int, share: float) -> float:
    """P(X >= successes) for X ~ Bin(n, share), 0 < share < 1: how easily so many come about by chance."""
    if not 0 <= successes <= n:
        raise ValueError("at_least wants 0 <= successes <= n, got %d of %d" % (successes, n))
    failed = np.arange(n - successes + 1, dtype=np.float64)  # the sum runs over what failed: few, where much succeeds
    choose = np.concatenate([[0.0], np.cumsum(np.log((n - failed[1:] + 1) / failed[1:]))])
    logs = choose + failed * math.log1p(-share) + (n - failed) * math.log(share)
    return min(1.0, float(np.exp(logs).sum()))


def paired_difference(lost: int, won: int, n: int) -> Interval:
    """Interval of (lost - won) / n for paired yes/no outcomes; `lost` and `won` count the discordant pairs.

    Bonett & Price 2012, adjusted Wald: one pair is added to each discordant cell. A bootstrap gives
    [0, 0] when no pair is discordant, however few pairs there are; this one does not.
    """
    if lost < 0 or won < 0 or lost + won > n:
        raise ValueError("paired_difference wants 0 <= lost + won <= n, got %d + %d of %d" % (lost, won, n))
    a, b = (lost + 1.0) / (n + 2), (won + 1.0) / (n + 2)
    half = Z95 * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return max(-1.0, a - b - half), min(1.0, a - b + half)


def student(freedom: int) -> float:
    """97.5th percentile of Student's t with `freedom` degrees of freedom, a whole number of at least 1.

    Bisection on P(|T| <= t), which is a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4).
    """
    if freedom < 1:
        raise ValueError("student wants at least 1 degree of freedom, got %d" % freedom)
    low, high = 0.0, 13.0  # 12.71 with one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k + 1) / (k + 2)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def bootstrap_mean(values: Sequence[float], seed: int = 0, resamples: int = 2000) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979), the same for the same seed.

    Drawn in pieces of bounded memory, a million values at a time.
    """
    data = np.asarray(values, dtype=np.float64)
    n = int(data.size)
    if n == 0:
        raise ValueError("bootstrap_mean wants at least one value")
    rng = np.random.default_rng(seed)
    piece = max(1, 1000000 // n)
    means = [
        data[rng.integers(0, n, size=(min(piece, resamples - start), n))].mean(axis=1)
        for start in range(0, resamples, piece)
    ]
    lo, hi = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(lo), float(hi)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p-value of McNemar's test: b and c count the two kinds of discordant pairs.

    Twice the binomial tail P(X <= min(b, c)), X ~ Bin(b + c, 1/2), at most 1; 1.0 where no pair differs.
    """
    n, low = b + c, min(b, c)
    if low < 0:
        raise ValueError("mcnemar wants counts, got %d and %d" % (b, c))
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(low + 1)]
    return min(1.0, 2.0 * math.fsum(math.exp(value) for value in logs))


def images_needed(margin_pp: float, flip_rate: float) -> Optional[int]:
    """Images for a paired 95 % interval of +- `margin_pp` percentage points when `flip_rate` of them flip.

    The variance of one image's difference is at most its flip rate, so half-width m wants
    n = (1.96 / m)^2 * flip_rate: a 0.5-point drop at 2 % flips wants about 3,000 images.
    None where the margin is not above zero: no number of images resolves it.
    """
    if not 0 <= flip_rate <= 1:
        raise ValueError("flip_rate is a share, got %s" % flip_rate)
    if margin_pp <= 0:
        return None
    return math.ceil((Z95 / (margin_pp / 100.0)) ** 2 * flip_rate)
