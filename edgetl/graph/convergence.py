"""How far the calibrated ranges still moved when the number of images was doubled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Convergence:
    """From `n_half` images to `n`: |range after - range before| / larger of both, 0 to 1, over the tensors.

    `largest` is that of `tensor`.
    """

    n_half: int
    n: int
    largest: float
    median: float
    tensor: str

    def __str__(self) -> str:
        """The line for people."""
        return (
            f"from {self.n_half} to {self.n} images the ranges moved by {self.median:.1%} (median), "
            f"by {self.largest:.1%} at most ({self.tensor})"
        )

    def to_json(self) -> dict[str, Any]:
        """A plain dict; `Convergence(**dict)` takes it back."""
        return asdict(self)


def convergence(before: Mapping[str, float], after: Mapping[str, float], n_half: int, n: int) -> Convergence:
    """Compare tensor -> range of `n_half` images with that of `n` images; a tensor that was dead moved by 1."""
    moved = {
        name: abs(now - before.get(name, 0.0)) / max(now, before.get(name, 0.0))
        for name, now in after.items()
        if max(now, before.get(name, 0.0)) > 0
    }
    furthest = max(sorted(moved), key=lambda name: moved[name], default="")
    return Convergence(n_half, n, moved.get(furthest, 0.0), median(moved.values()) if moved else 0.0, furthest)
