"""Several callers at once: rates add up where nothing is shared, and one caller's failure is told."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from edgetl.bench.streams import Caller, _figures, side_by_side


def test_callers_that_only_wait_do_not_hinder_each_other() -> None:
    slept = lambda: time.sleep(0.02)  # noqa: E731  # a call that needs no core, so that any machine will do
    rates = []
    for count in (1, 4):
        callers = side_by_side([slept] * count, 0.5)
        assert all(caller.error is None for caller in callers)
        assert all(value >= 20.0 for caller in callers for value in caller.wall_ms)
        rates.append(_figures([callers], batch=1)["throughput_ips"])
    assert rates[0] <= 50.0
    assert rates[1] > 2 * rates[0]


def test_callers_that_share_one_thing_share_its_rate() -> None:
    waiting: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()

    def serve() -> None:
        while (request := waiting.get()) is not None:
            time.sleep(0.005)
            request.set()

    def ask() -> None:
        answered = threading.Event()
        waiting.put(answered)
        answered.wait()

    server = threading.Thread(target=serve)
    server.start()
    one, three = (_figures([side_by_side([ask] * count, 0.4)], 8) for count in (1, 3))
    waiting.put(None)
    server.join()
    assert three["throughput_ips"] < 2 * one["throughput_ips"]
    assert three["p50_ms"] > 1.5 * one["p50_ms"]  # what each waits for the others is in its latency


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
