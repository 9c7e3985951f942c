"""What quantisation-aware training may be told."""

from __future__ import annotations

from dataclasses import dataclass

from edgetl.errors import InputError


@dataclass(frozen=True)
class QatOptions:
    """`epochs` over the images at most, fewer where they would take longer than `minutes`.

    `lr` is in ranges a step: a weight moves by at most about this share of the range of its channel. `scale_lr`:
    an activation's range by about this share of itself; 0 leaves the ranges as they are.
    `temperature` softens both sides of the distillation loss. `threads` 0: all cores.
    """

    epochs: int = 8
    minutes: float = 5.0
    lr: float = 3e-5
    scale_lr: float = 1e-2
    batch: int = 32
    temperature: float = 4.0
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.scale_lr < float("inf"):
            raise InputError(
                "the scale_lr of quantisation-aware training must not be below 0",
                self.scale_lr,
                "0 leaves the ranges as they are",
            )
        for name in ("epochs", "minutes", "lr", "batch", "temperature"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise InputError(
                    f"the {name} of quantisation-aware training must be above 0",
                    value,
                    "leave it at its default, or give a number",
                )
