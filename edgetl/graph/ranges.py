"""Histograms of activations, and the range each calibration method reads off one.

A histogram covers [0, 2**k) in BINS equal bins and doubles its width, joining bins in pairs, when a larger
value comes. Joining is exact, so the counts depend on the values alone: not on their order, not on the
batch size, and one pass over the images is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetl.errors import GraphError, InputError

BINS = 4096
PERCENTILE = 99.99  # NVIDIA's customary choice (pytorch-quantization)
_LEVELS = 127
_SMALLEST_EXPONENT = -100  # float32 still holds BINS / 2**-100
_KL_BINS = 2048  # TensorRT's: 2048 bins, tried from 128 up
_KL_STEP = 8

Counts = npt.NDArray[np.int64]


@dataclass
class Histogram:
    """Counts of |x|. `exponent` k: the bins cover [0, 2**k); `low`, `high`: the smallest and largest x, or 0."""

    exponent: int | None = None
    low: float = 0.0
    high: float = 0.0
    counts: Counts = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))

    def add(self, values: npt.NDArray[np.float32], name: str = "tensor", most: int | None = None) -> None:
        """Count `values` (any shape), of more than `most` every k-th; `low` and `high` know all of them.

        Raises GraphError for NaN or inf.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        peak = max(-low, high)
        if not np.isfinite(peak) or not np.isfinite(low):
            raise GraphError("NaN or inf inside the network on a calibration image", name, "check the checkpoint")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if peak > 0:
            self._widen(max(int(np.frexp(peak)[1]), _SMALLEST_EXPONENT))
        counted = values.ravel()
        if most is not None and counted.size > most:
            counted = counted[:: -(-counted.size // most) | 1]  # odd: a map's width is even as a rule
        if self.exponent is None:
            self.counts[0] += counted.size  # nothing but zeros so far: they stay in bin 0 whatever the width
            return
        scaled = np.abs(counted) * np.float32(np.ldexp(BINS, -self.exponent))
        self.counts += np.bincount(scaled.astype(np.int32), minlength=BINS)

    def _widen(self, exponent: int) -> None:
        while self.exponent is not None and self.exponent < exponent:
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([joined, np.zeros(BINS // 2, dtype=np.int64)])
            self.exponent += 1
        self.exponent = exponent if self.exponent is None else self.exponent

    @property
    def peak(self) -> float:
        """The largest |x|."""
        return max(-self.low, self.high)

    @property
    def signed(self) -> bool:
        """Whether any x was below zero."""
        return self.low < 0

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(np.ldexp(1.0 / BINS, self.exponent or 0))

    def to_json(self) -> dict[str, Any]:
        """Counts up to the last one above zero."""
        last = int(np.flatnonzero(self.counts)[-1]) + 1 if self.counts.any() else 0
        return {
            "exponent": self.exponent,
            "low": self.low,
            "high": self.high,
            "counts": self.counts[:last].tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        """Read what `to_json` wrote."""
        out = cls(data["exponent"], float(data["low"]), float(data["high"]))
        out.counts[: len(data["counts"])] = data["counts"]
        return out


def by_max(histogram: Histogram) -> float:
    """The largest value seen: nothing is clipped."""
    return histogram.peak


def by_percentile(histogram: Histogram, percent: float = PERCENTILE) -> float:
    """The bin edge below which `percent` of the values lie."""
    total = np.cumsum(histogram.counts)
    if total[-1] == 0:
        return 0.0
    index = int(np.searchsorted(total, total[-1] * percent / 100.0))
    return min(histogram.peak, (index + 1) * histogram.width)


def by_mse(histogram: Histogram) -> float:
    """The range with the least mean squared error of quantising the histogram's values to 127 levels."""
    counts = histogram.counts.astype(np.float64)
    values = (np.arange(BINS) + 0.5) * histogram.width
    kept = counts > 0
    counts, values = counts[kept], values[kept]
    candidates = histogram.peak * np.linspace(0.1, 1.0, 91)
    errors = []
    for candidate in candidates:
        scale = candidate / _LEVELS
        rounded = np.minimum(np.rint(values / scale), _LEVELS) * scale
        errors.append(float(counts @ (values - rounded) ** 2))
    return float(candidates[int(np.argmin(errors))])


def by_entropy(histogram: Histogram) -> float:
    """The range with the least KL divergence between the clipped values and their 128-level version.

    TensorRT's method (Migacz, "8-bit inference with TensorRT", GTC 2017) on |x|, as in NVIDIA's
    pytorch-quantization: bin 0 takes the count of bin 1, so that a ReLU's zeros do not decide.
    """
    counts = _rebinned(histogram)
    counts[0] = counts[1]
    if not counts.any():
        return histogram.peak
    ends = np.arange(128, _KL_BINS + 1, _KL_STEP)
    total = counts.sum()
    scores = [_divergence(counts, int(end), total) for end in ends]
    # The last of equal minima: a wider range clips less at the same cost.
    best = ends[len(ends) - 1 - int(np.argmin(scores[::-1]))]
    return float(best) * histogram.peak / _KL_BINS


def _rebinned(histogram: Histogram) -> npt.NDArray[np.float64]:
    """The counts over [0, peak] in _KL_BINS bins, each value of a bin spread evenly over it."""
    edges = np.linspace(0.0, histogram.peak, _KL_BINS + 1)
    whole = np.arange(BINS + 1) * histogram.width
    whole[np.searchsorted(whole, histogram.peak) :] = histogram.peak  # the last bin ends at the peak
    cumulative = np.concatenate([[0.0], np.cumsum(histogram.counts.astype(np.float64))])
    last = int(np.searchsorted(whole, whole[-1]))  # np.interp wants each x once
    below = np.interp(edges, np.append(whole[:last], whole[-1]), np.append(cumulative[:last], cumulative[-1]))
    return np.asarray(np.diff(below), dtype=np.float64)


def _divergence(counts: npt.NDArray[np.float64], end: int, total: float) -> float:
    reference = counts[:end].copy()
    quantised = _levelled(reference)
    reference[-1] += total - reference.sum()  # what is clipped piles up on the edge
    p, q = reference / reference.sum(), quantised / max(quantised.sum(), 1e-12)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))))


def _levelled(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Counts averaged within each of 128 levels over the bins that hold anything."""
    level = np.arange(len(counts)) * 128 // len(counts)
    sums = np.bincount(level, weights=counts, minlength=128)
    filled = np.bincount(level, weights=counts > 0, minlength=128)
    mean = np.divide(sums, filled, out=np.zeros(128), where=filled > 0)
    return np.where(counts > 0, mean[level], 0.0)


METHODS: dict[str, Callable[[Histogram], float]] = {
    "max": by_max,
    "entropy": by_entropy,
    "percentile": by_percentile,
    "mse": by_mse,
}


def check_method(method: str) -> None:
    """Raise InputError for a method this project does not have (modelopt takes an unknown one for max)."""
    if method != "auto" and method not in METHODS:
        raise InputError("unknown calibration method", method, "use one of auto, " + ", ".join(METHODS))


def ranges(
    histograms: Mapping[str, Histogram], method: str, groups: tuple[tuple[str, ...], ...] = ()
) -> dict[str, float]:
    """tensor -> amax by `method`; the tensors of a group share the largest of theirs."""
    check_method(method)
    read = METHODS[method]
    out = {name: read(h) if h.peak > 0 else 0.0 for name, h in histograms.items()}
    for group in groups:
        out.update(dict.fromkeys(group, max(out[name] for name in group)))
    return out
