"""Warm-up, turns and amounts under a clock that the test turns by hand."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest

from edgetl.measure.latency import Effort, Timed, measure

TICK = 1 / 1024  # seconds; a power of two, so that sums of ticks are exact
QUICK = Effort(seconds=100 * TICK, runs=10, warmup=2, turn_seconds=50 * TICK)


class HandClock:
    """Time passes only when a call says so, in ticks; `log` is who ran, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, ticks: Callable[[int], float]) -> Callable[[], None]:
        def run() -> None:
            self.now += ticks(self.log.count(name)) * TICK
            self.log.append(name)

        return run


def test_each_call_gets_its_own_times() -> None:
    clock = HandClock()
    calls = {"a": Timed(clock.call("a", lambda n: 2.0)), "b": Timed(clock.call("b", lambda n: 5.0))}
    found = measure(calls, QUICK, clock)
    assert set(found["a"].wall_ms) == {2 * TICK * 1000}
    assert set(found["b"].wall_ms) == {5 * TICK * 1000}
    assert found["a"].warmup_runs == 2
    for timing in found.values():
        assert len(timing.wall_ms) >= QUICK.runs
        assert sum(timing.wall_ms) >= QUICK.seconds * 1000


def test_calls_take_turns() -> None:
    clock = HandClock()
    calls = {name: Timed(clock.call(name, lambda n: 10.0)) for name in "ab"}
    measure(calls, QUICK, clock)
    timed = "".join(clock.log[4:])  # after two warm-up runs each
    # A turn is an untimed run and five of 10 ticks; two turns make 100.
    assert timed == "aaaaaabbbbbb" * 2


def test_runs_are_told_by_turn_and_the_machine_is_watched_between_rotations() -> None:
    clock = HandClock()
    calls = {name: Timed(clock.call(name, lambda n: 10.0)) for name in "ab"}
    found = measure(calls, QUICK, clock, lambda: clock.log.append("|"))
    assert "".join(clock.log) == "aabb|" + "aaaaaabbbbbb|" * 2
    assert found["a"].turns == found["b"].turns == [5, 5]


def test_one_long_run_does_not_end_it_after_a_few_turns() -> None:
    for turns in (1, 10):
        clock = HandClock()
        seen = measure(
            {"a": Timed(clock.call("a", lambda n: 5000.0 if n == 7 else 1.0))},
            replace(QUICK, runs=1, turns=turns),
            clock,
        )["a"]
        assert len(seen.turns) == turns
        assert sum(seen.turns) == len(seen.wall_ms)


def test_a_planted_outlier_is_kept() -> None:
    clock = HandClock()
    found = measure({"a": Timed(clock.call("a", lambda n: 500.0 if n == 7 else 1.0))}, QUICK, clock)["a"]
    assert max(found.wall_ms) == 500 * TICK * 1000
    assert sum(found.turns) == len(found.wall_ms)


def test_a_planted_sleep_shows_as_what_it_is() -> None:
    clock = HandClock()
    plain = clock.call("plain", lambda n: 20.0)
    slow = clock.call("slow", lambda n: 20.0)

    def slept() -> None:
        slow()
        clock.now += 5 * TICK

    found = measure({"plain": Timed(plain), "slow": Timed(slept)}, QUICK, clock)
    assert [b - a for a, b in zip(found["plain"].wall_ms, found["slow"].wall_ms, strict=False)] == [
        5 * TICK * 1000
    ] * min(len(f.wall_ms) for f in found.values())


def test_a_drift_of_the_machine_falls_on_both() -> None:
    clock = HandClock()

    def slower_by_the_minute(_: int) -> float:
        return 1.0 + clock.now / TICK / 1000

    calls = {name: Timed(clock.call(name, slower_by_the_minute)) for name in "ab"}
    found = measure(calls, Effort(seconds=4, runs=1, warmup=0, turn_seconds=0.1), clock)
    means = [sum(t.wall_ms) / len(t.wall_ms) for t in found.values()]
    assert means[0] == pytest.approx(means[1], rel=0.05)
    assert max(found["a"].wall_ms) > 2 * min(found["a"].wall_ms)


def test_warm_up_lasts_until_the_median_is_steady() -> None:
    clock = HandClock()
    calls = {"a": Timed(clock.call("a", lambda n: 100.0 if n < 15 else 1.0))}
    found = measure(calls, Effort(seconds=0.01, runs=5, warmup_seconds=60), clock)["a"]
    assert found.steady
    assert found.warmup_runs >= 40
    assert max(found.wall_ms) == TICK * 1000


def test_a_call_that_never_settles_is_measured_and_said() -> None:
    clock = HandClock()
    calls = {"a": Timed(clock.call("a", lambda n: 1.0 + n))}
    found = measure(calls, Effort(seconds=0.0, runs=3, warmup_seconds=0.5), clock)["a"]
    assert not found.steady
    assert found.wall_ms


def test_a_failing_call_keeps_its_error_and_the_other_is_measured() -> None:
    clock = HandClock()

    def broken() -> None:
        raise RuntimeError("no memory")

    def breaks_later(n: int) -> float:
        if n > 6:
            raise RuntimeError("too hot")
        return 5.0

    calls = {
        "broken": Timed(broken),
        "later": Timed(clock.call("later", breaks_later)),
        "good": Timed(clock.call("good", lambda n: 5.0)),
    }
    found = measure(calls, QUICK, clock)
    assert str(found["broken"].error) == "no memory"
    assert str(found["later"].error) == "too hot"
    assert found["good"].error is None
    assert len(found["good"].wall_ms) >= QUICK.runs


def test_the_devices_own_time_is_kept() -> None:
    clock = HandClock()
    calls = {
        "gpu": Timed(clock.call("gpu", lambda n: 4.0), lambda: 1.5),
        "cpu": Timed(clock.call("cpu", lambda n: 4.0)),
    }
    found = measure(calls, QUICK, clock)
    assert set(found["gpu"].device_ms) == {1.5}
    assert len(found["gpu"].device_ms) == len(found["gpu"].wall_ms)
    assert found["cpu"].device_ms == []


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_sleeps_while_timing_and_is_left_as_it_was(collecting: bool) -> None:
    clock, seen = HandClock(), []

    def run() -> None:
        clock.now += 0.02
        seen.append(gc.isenabled())

    was = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        measure({"a": Timed(run)}, Effort(seconds=0.1, runs=3, warmup=0), clock)
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if was else gc.disable)()
    assert not any(seen)


def test_nothing_to_measure() -> None:
    assert measure({}, QUICK) == {}
