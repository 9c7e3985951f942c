"""Several callers at once: rates add up where nothing is shared, and one caller's failure is told."""

from __future__ import annotations

import threading
import time

import pytest

from edgetl.bench.streams import Caller, _figures, side_by_side


@pytest.mark.parametrize("count", [1, 4])
def test_callers_run_side_by_side(count: int) -> None:
    """The first call of each ends only when all are in theirs: one after the other they never would."""
    together, met = threading.Barrier(count, timeout=120), threading.local()

    def waits() -> None:  # a call that needs no core, so that any machine will do
        if not hasattr(met, "others"):
            together.wait()
            met.others = True
        time.sleep(0.02)

    callers = side_by_side([waits] * count, 0.2)
    assert [caller.error for caller in callers] == [None] * count
    assert all(value >= 20.0 for caller in callers for value in caller.wall_ms)
    assert 0 < _figures([callers], batch=1)["throughput_ips"] <= 50.0 * count


def test_callers_that_share_one_thing_share_its_rate() -> None:
    """Three ask one server that takes 5 ms: together they get no more than it gives, and wait for each other."""
    shared, seconds, takes = threading.Lock(), 0.4, 0.005

    def ask() -> None:
        with shared:
            time.sleep(takes)

    one, three = (_figures([side_by_side([ask] * count, seconds)], 8) for count in (1, 3))
    # What it gives in the time, and the call of each caller that was under way when the time was up.
    assert 0 < one["throughput_ips"] <= 8 * (seconds / takes + 1) / seconds
    assert 0 < three["throughput_ips"] <= 8 * (seconds / takes + 3) / seconds
    assert three["p50_ms"] >= 5.0


def test_the_figures_are_of_both_passes_and_of_the_batch() -> None:
    passes = [[Caller([10.0] * 1000, 100.0), Caller([20.0] * 500, 50.0)], [Caller([10.0] * 500, 90.0)]]
    found = _figures(passes, batch=8)
    assert found == {"throughput_ips": 8 * (150 + 90) / 2, "p50_ms": 10.0, "p99_ms": 20.0, "n": 2000}


@pytest.mark.parametrize("good_runs", [0, 4])  # while warming up, and later
def test_a_caller_that_fails_ends_the_others_and_says_why(good_runs: int) -> None:
    ran = []

    def breaks() -> None:
        ran.append(1)
        if len(ran) > good_runs:
            raise RuntimeError("out of handles")

    callers = side_by_side([breaks, lambda: time.sleep(0.001)], 0.2)
    assert str(callers[0].error) == "out of handles"
    assert callers[1].error is None
