"""The order of the rows, and which of them no other beats in everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BY = "stage_accuracy; within its 95 % interval imagenet_accuracy"
_INTERVAL = 1.96  # standard errors


def best_first(rows: Sequence[dict[str, Any]], images: int) -> list[dict[str, Any]]:
    """By `stage_accuracy` on `images`; of those within the 95 % interval of the best left, by `imagenet_accuracy`.

    A probe on some hundred images cannot tell networks two points apart. Between such the architecture decides, by
    what it reaches on ImageNet: over 16 networks and 12 sets that foretold the accuracy after fine-tuning (r = .96;
    Kornblith et al. 2019, "Do Better ImageNet Models Transfer Better?"). Random weights have nothing of it. Then the
    higher accuracy, and the fewer MACs.
    """
    left, out = list(rows), []
    while left:
        top = max(row["stage_accuracy"] for row in left)
        least = top - _INTERVAL * (top * (1 - top) / images) ** 0.5
        level = [row for row in left if row["stage_accuracy"] >= least]
        best = min(level, key=_preference)
        out.append(best)
        left.remove(best)
    return out


def _preference(row: dict[str, Any]) -> tuple[float, float, float, str]:
    return (-(row["imagenet_accuracy"] or 0.0), -row["stage_accuracy"], row["macs"], str(row["weights"]))


def on_front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is Pareto-optimal: no other is at most as costly in all and less costly in one."""
    return [not any(_dominates(other, point) for other in costs) for point in costs]


def _dominates(other: Sequence[float], point: Sequence[float]) -> bool:
    pairs = list(zip(other, point, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
