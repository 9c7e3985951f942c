"""The order of the rows, and which of them no other beats in everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def best_first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By the probe's accuracy, LogME deciding between equals, then the cheaper one."""
    return sorted(rows, key=lambda r: (-r["probe_accuracy"], -r["logme"], r["macs"], str(r["weights"])))


def on_front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is Pareto-optimal: no other is at most as costly in all and less costly in one."""
    return [not any(_dominates(other, point) for other in costs) for point in costs]


def _dominates(other: Sequence[float], point: Sequence[float]) -> bool:
    pairs = list(zip(other, point, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
