"""The device's bench where a runtime fails in its own words: one failed row, and the others stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.bundle import Bundle
from edgetl.device.bench import Effects, bench, images_for
from edgetl.device.chosen import Wish, choose
from edgetl.device.system import System
from edgetl.measure.latency import Effort
from edgetl.measure.rows import rows_of
from edgetl.runtime.ort import OrtBackend

from .test_device_verbs import board_tree

EFFECTS = Effects(
    effort=Effort(seconds=0.0, runs=20, warmup=1, turn_seconds=0.0), idle_seconds=0.0, power_seconds=0.05, peaks=False
)


@pytest.mark.parametrize("when", ["opened", "timed", "metered"])
def test_a_runtime_that_fails_is_one_row(device_bundle: Path, tmp_path: Path, when: str) -> None:
    bundle = Bundle.open(device_bundle)
    good = choose(bundle, Wish("onnxruntime", "fp32", threads=1))
    bad = replace(good, record={**good.record, "profile": "trt8"}, opens=_failing(good.opens, when))
    system = System(board_tree(tmp_path / "root", "orin-nano-super-jp6.2.1"))
    images = images_for(bundle, None, Path(), "golden")
    told = bench([bad, good], images, EFFECTS, system=system)
    failed, ok = rows_of(told, "here")
    assert (failed.status, failed.error, failed.latency_ms) == ("failed", "RuntimeError: the driver went away", None)
    assert ok.status == "ok" and ok.latency_ms is not None and (ok.energy_mj or 0) > 0


def _failing(opens: Callable[[], Any], when: str) -> Callable[[], Any]:
    """`opens` of a backend that fails when it is opened, in its first runs, or after all runs that are timed."""
    timed = 2 * (EFFECTS.effort.runs * 2 + 1)  # by two clocks, each turn after a run of its own

    class Failing:
        def __init__(self) -> None:
            if when == "opened":
                raise RuntimeError("the driver went\n away")
            self._inner: OrtBackend = opens()
            self._runs = itertools.count(1)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def run(self, batch: np.ndarray) -> np.ndarray:
            if next(self._runs) > (3 if when == "timed" else timed):
                raise RuntimeError("the driver went\n away")
            return self._inner.run(batch)

    return Failing
