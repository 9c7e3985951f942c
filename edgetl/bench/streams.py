"""Throughput with several callers at once: N threads, each with a backend of its own, as a server would have them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgetl.bench.clocks import timeable
from edgetl.bench.entry import Entry, line_of
from edgetl.measure.timing import encoded_pool, from_array
from edgetl.monitor import Monitor
from edgetl.stats import percentiles

if TYPE_CHECKING:
    from edgetl.bench.protocol import BenchData, BenchOptions

_WARM_RUNS = 3
_PASSES = 2  # there and back, A B B A: so that a drift of the machine falls on all


@dataclass
class Caller:
    """What one thread saw: milliseconds by run, runs a second, or its error."""

    wall_ms: list[float] = field(default_factory=list)
    runs_per_s: float = 0.0
    error: Exception | None = None


def stream_all(entries: Sequence[Entry], data: BenchData, options: BenchOptions, monitor: Monitor) -> None:
    """Fill in streams: each candidate, batch size and number of callers for `effort.seconds`, array to array."""
    if not options.streams:
        return
    pool = encoded_pool(data.root, data.samples)
    jobs = [(e, b, n) for b in options.batches for n in options.streams for e in timeable(entries) if e.at(b).times]
    passes: list[list[list[Caller]]] = [[] for _ in jobs]
    order = [index for turn in range(_PASSES) for index in range(len(jobs))[:: 1 if turn % 2 == 0 else -1]]
    for done, index in enumerate(order, start=1):
        entry, batch, streams = jobs[index]
        with ExitStack() as closing:
            try:
                calls = []
                for _ in range(streams):
                    backend = entry.candidate.opens()
                    closing.callback(backend.close)
                    calls.append(from_array(backend, pool, data.preprocess, batch))
                found = side_by_side(calls, options.effort.seconds / _PASSES)
            except Exception as error:  # opening one more may fail where the first did not: memory, a licence
                found = [Caller(error=error)]
        passes[index].append(found)
        monitor.progress("streams", done, len(order))
    for (entry, batch, streams), seen in zip(jobs, passes, strict=True):
        failed = next((caller.error for callers in seen for caller in callers if caller.error is not None), None)
        if failed is not None:
            monitor.warn(f"{entry.name}, batch {batch}, {streams} streams: {line_of(failed)}")
        figures = None if failed is not None else _figures(seen, batch)
        entry.at(batch).streams = {**(entry.at(batch).streams or {}), str(streams): figures}


def side_by_side(calls: Sequence[Callable[[], object]], seconds: float) -> list[Caller]:
    """Each call in a thread of its own, again and again for `seconds` from a common start."""
    callers = [Caller() for _ in calls]
    start = threading.Barrier(len(calls))
    threads = [
        threading.Thread(target=_again_and_again, args=(call, caller, start, seconds), daemon=True)
        for call, caller in zip(calls, callers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return callers


def _again_and_again(call: Callable[[], object], caller: Caller, start: threading.Barrier, seconds: float) -> None:
    try:
        for _ in range(_WARM_RUNS):
            call()
        start.wait()
        began = before = time.perf_counter()
        while not caller.wall_ms or before < began + seconds:  # once at least, or there is no rate
            call()
            now = time.perf_counter()
            caller.wall_ms.append((now - before) * 1000.0)
            before = now
        caller.runs_per_s = len(caller.wall_ms) / (before - began)
    except threading.BrokenBarrierError:
        pass  # another caller failed, and says why
    except Exception as error:  # whatever a third-party runtime raises is this one candidate's failure
        caller.error = error
        start.abort()


def _figures(passes: Sequence[Sequence[Caller]], batch: int) -> dict[str, Any]:
    """Of all callers together. Each one's own rate: a last run that outlasts the others' would count as idleness."""
    found = percentiles([value for callers in passes for caller in callers for value in caller.wall_ms])
    rates = [sum(caller.runs_per_s for caller in callers) for callers in passes]
    return {
        "throughput_ips": batch * sum(rates) / len(rates),
        "p50_ms": found["p50"],
        "p99_ms": found["p99"],
        "n": found["n"],
    }
