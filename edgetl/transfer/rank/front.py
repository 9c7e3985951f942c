"""The order of the rows, and which of them no other beats in everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BY = "probe_accuracy; logme decides within one standard error of it"


def best_first(rows: Sequence[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """By the probe's accuracy on `images`; of those within one standard error of the best left, by LogME.

    A probe on some hundred images cannot tell networks a point apart. LogME sees how well the features fit, not just
    which side of the border they fall; it is what fine-tuning was found to follow best (You et al. 2021).
    """
    left, out = sorted(rows, key=lambda r: (-r["probe_accuracy"], r["macs"], str(r["weights"]))), []
    while left:
        top = left[0]["probe_accuracy"]
        error = (top * (1 - top) / images) ** 0.5
        level = [row for row in left if row["probe_accuracy"] >= top - error]
        best = max(level, key=lambda row: row["logme"])  # the first of equals
        out.append(best)
        left.remove(best)
    return out


def on_front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is Pareto-optimal: no other is at most as costly in all and less costly in one."""
    return [not any(_dominates(other, point) for other in costs) for point in costs]


def _dominates(other: Sequence[float], point: Sequence[float]) -> bool:
    pairs = list(zip(other, point, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
