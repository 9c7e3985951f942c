"""How long a call takes: warm-up until it is steady, then turns of several calls in rotation.

One after the other, a machine that heats up or gets busy favours whoever came first. In turns
(A B A B ...) each disturbance falls on all alike. The clock is handed in, so that tests decide the time.
"""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Callable, Dict, Iterator, List, Mapping, Optional

Call = Callable[[], object]
Clock = Callable[[], float]

WINDOW = 10  # runs whose median stands for "now" during warm-up
TURNS = 10  # of a bench, at least
STEADY = 0.03  # two windows' medians closer than this share are the same


@dataclass(frozen=True)
class Effort:
    """How much to measure: at least `runs` timed runs, `seconds` of them and `turns` for each call.

    `warmup`: a fixed number of runs before; None: until steady, for at most `warmup_seconds` (None: as long
    as `seconds`, at least one) each.
    `turn_seconds`: how long one call is timed before the next has its turn.
    """

    seconds: float = 5.0
    runs: int = 30
    warmup: Optional[int] = None
    warmup_seconds: Optional[float] = None
    turn_seconds: float = 0.2
    turns: int = 1

    @classmethod
    def of_bench(cls, seconds: float, warmup: Optional[int] = None) -> Effort:
        """What a bench of `seconds` does: TURNS turns at least, however short it is and however long one run takes.

        What varies from turn to turn is what intervals are made from.
        """
        return cls(seconds=seconds, warmup=warmup, turn_seconds=min(0.2, seconds / TURNS), turns=TURNS)


@dataclass
class Timing:
    """What was seen of one call: wall milliseconds by run, the device's own where it tells, or its error.

    `turns`: how many of the runs, in order, belong to each turn. No run is ever left out, however long it took.
    """

    wall_ms: List[float] = field(default_factory=list)
    device_ms: List[float] = field(default_factory=list)
    turns: List[int] = field(default_factory=list)
    warmup_runs: int = 0
    steady: bool = True
    error: Optional[Exception] = None


@dataclass(frozen=True)
class Timed:
    """A call to time, and where to read the device's own milliseconds of its last run (None: it tells none)."""

    run: Call
    device_ms: Callable[[], Optional[float]] = lambda: None


def measure(
    calls: Mapping[str, Timed],
    effort: Effort,
    clock: Clock = time.perf_counter,
    between: Callable[[], object] = lambda: None,
) -> Dict[str, Timing]:
    """Warm each call up, then time them in turns. A call that raises keeps its error and is left out.

    `between` is called once before the first rotation and after each: whoever watches the machine does it there.
    """
    out = {name: Timing() for name in calls}
    for name, call in calls.items():
        with _errors_into(out[name]):
            _warm_up(call, out[name], effort, clock)
    waiting = [name for name in calls if out[name].error is None]
    between()
    while waiting:
        for name in waiting:
            with _errors_into(out[name]), _no_garbage_collection():
                _turn(calls[name], out[name], effort, clock)
        between()
        waiting = [name for name in waiting if out[name].error is None and not _enough(out[name], effort)]
    return out


def _warm_up(call: Timed, timing: Timing, effort: Effort, clock: Clock) -> None:
    """Run until the median of the last WINDOW runs is that of the WINDOW before, or time is up."""
    if effort.warmup is not None:
        for _ in range(effort.warmup):
            call.run()
        timing.warmup_runs = effort.warmup
        return
    seen: List[float] = []
    limit = max(1.0, effort.seconds) if effort.warmup_seconds is None else effort.warmup_seconds
    end = clock() + limit
    timing.steady = False
    while not timing.steady and clock() < end:
        start = clock()
        call.run()
        seen.append(clock() - start)
        if len(seen) >= 2 * WINDOW and len(seen) % WINDOW == 0:
            before, now = median(seen[-2 * WINDOW : -WINDOW]), median(seen[-WINDOW:])
            timing.steady = abs(now - before) <= STEADY * before
    timing.warmup_runs = len(seen)


def _turn(call: Timed, timing: Timing, effort: Effort, clock: Clock) -> None:
    call.run()  # untimed: it finds the caches as the others left them
    before, end = len(timing.wall_ms), clock() + effort.turn_seconds
    while True:
        start = clock()
        call.run()
        stop = clock()
        timing.wall_ms.append((stop - start) * 1000.0)
        device = call.device_ms()
        if device is not None:
            timing.device_ms.append(device)
        if stop >= end:
            timing.turns.append(len(timing.wall_ms) - before)
            return


def _enough(timing: Timing, effort: Effort) -> bool:
    counted = len(timing.wall_ms) >= effort.runs and len(timing.turns) >= effort.turns
    return counted and sum(timing.wall_ms) >= effort.seconds * 1000.0


@contextmanager
def _errors_into(timing: Timing) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a third-party runtime raises is that one call's failure
        timing.error = error


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
