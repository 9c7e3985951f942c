"""What `edgetl export` may be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgetl.errors import InputError
from edgetl.graph.ranges import check_method
from edgetl.spec import InputKind, Profile
from edgetl.target import TARGETS

CALIBRATION_MAX = 512  # images of `--calib-size auto`
RESCUES = ("none", "exclude", "qat")


@dataclass(frozen=True)
class ExportOptions:
    """The options of `edgetl export` (cli.md). Drops are in percentage points; `threads` 0: all cores."""

    fp16: bool = False
    int8: bool = False
    target: str = "jetpack6"
    calib: str | None = None
    calib_size: str = "512"
    method: str = "auto"
    max_drop: float = 0.5
    max_class_drop: float | None = None
    confident: bool = False
    guard: str = "labels"
    guard_data: str | None = None
    rescue: str = "exclude"
    input: InputKind = InputKind.FLOAT32
    output: str = "logits"
    calibrated: bool = False
    allow_unmet: bool = False
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("--target", self.target, tuple(TARGETS))
        _one_of("--output", self.output, ("logits", "probabilities"))
        _one_of("--guard", self.guard, ("labels", "agreement"))
        _one_of("--rescue", self.rescue, RESCUES)
        if self.calibrated and self.output != "probabilities":
            raise InputError(
                "--calibrated speaks of probabilities", "--output " + self.output, "say --output probabilities"
            )
        check_method(self.method)
        if self.calib_size != "auto" and not (self.calib_size.isdecimal() and int(self.calib_size) > 0):
            raise InputError(
                "--calib-size wants a number of images or auto", self.calib_size, "for example --calib-size 512"
            )
        for name, value in (("--max-drop", self.max_drop), ("--max-class-drop", self.max_class_drop)):
            if value is not None and not 0 <= value <= 100:
                raise InputError(name + " is in percentage points, 0 to 100", value, "for example 0.5")

    @property
    def profile(self) -> Profile:
        """The graph profile of `target`."""
        return Profile(TARGETS[self.target].profile)

    @property
    def image_limit(self) -> int:
        """Most images to calibrate on."""
        return CALIBRATION_MAX if self.calib_size == "auto" else int(self.calib_size)

    def to_json(self) -> dict[str, Any]:
        """What changes the bytes of a graph or the verdict on it; for the artifact's record (no paths)."""
        return {
            "target": self.target,
            "method": self.method,
            "calib_size": self.calib_size,
            "own_calibration_data": self.calib is not None,
            "max_drop": self.max_drop,
            "max_class_drop": self.max_class_drop,
            "confident": self.confident,
            "rescue": self.rescue,
            "guard": self.guard,
            "own_guard_data": self.guard_data is not None,
            "output": self.output,
            "calibrated": self.calibrated,
            "seed": self.seed,
        }


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"unknown {option}", value, "use one of " + ", ".join(allowed))
