"""One bench: accuracy over the same decoded images, latency in turns, memory in children; rows out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.bench.candidate import Candidate
from edgetl.bench.clocks import time_all
from edgetl.bench.entry import Entry, line_of, row_of
from edgetl.bench.streams import stream_all
from edgetl.errors import BackendCrash, BackendError, DataError, EdgetlError
from edgetl.images import Sample, stream
from edgetl.measure import Task, predict_each
from edgetl.measure.answers import Answers, of_outputs
from edgetl.measure.environment import environment, load_1m
from edgetl.measure.latency import Clock, Effort
from edgetl.measure.memory import peak_of
from edgetl.measure.rows import SCHEMA
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Preprocess

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BenchData:
    """The images that are measured on; `split` is what their rows say ("test", "val", "all")."""

    root: Path
    samples: Sequence[Sample]
    split: str
    preprocess: Preprocess
    labels: Sequence[str]


@dataclass(frozen=True)
class BenchOptions:
    """`batches`: sizes timed, a row each; `streams`: numbers of concurrent callers; `memory`: measure peaks;
    `max_batch`: images a run while scoring.

    A scoring run of 8 is as fast as one of 32 on a CPU and holds a quarter of the activations. Above all two
    runtimes side by side are at their peak from the second batch on: 64 images or 512 take the same memory.
    """

    batches: tuple[int, ...] = (1,)
    streams: tuple[int, ...] = ()
    threads: int = 0
    effort: Effort = field(default_factory=Effort)
    max_batch: int = 8
    memory: bool = True
    seed: int = 0
    clock: Clock = time.perf_counter


@dataclass(frozen=True)
class Outcome:
    """`result`: the JSON object of cli.md. `answers`: what every candidate and the reference said to each image."""

    result: dict[str, Any]
    answers: Answers


def bench(
    candidates: Sequence[Candidate],
    reference: Candidate,
    data: BenchData,
    task: Task,
    options: BenchOptions = BenchOptions(),
    monitor: Monitor = SILENT,
) -> Outcome:
    """Measure `candidates` on `data`: a row for each and each batch size, and what was answered to each image.

    Drops are against `reference`, which is scored even when it is not among the candidates. A candidate
    that fails has rows of status "failed" with its error, and the others stand. Raises DataError for the
    images, BackendError when the reference itself fails: without it no drop has a meaning.
    """
    if not data.samples:
        raise DataError("there are no images to measure on", data.root, "give --data, or a split that has images")
    before = load_1m()
    entries = [Entry(candidate) for candidate in candidates]
    base = next((e for e in entries if e.name == reference.name), None) or Entry(reference)
    unknown = _weigh(entries, options, monitor) if options.memory else []
    with ExitStack() as closing:
        for entry in _with(base, entries):
            entry.open(closing)
        answers = _score(entries, base, data, task, options, monitor)
        time_all(entries, base, data, options, monitor)
        stream_all(entries, data, options, monitor)
    for entry, line in unknown:
        if entry.error is None:
            monitor.warn(line)
    where = dict(environment(options.threads), load_1m_before=before)
    identity = str(where.pop("id"))
    rows = [
        row_of(e, e is base, batch, identity, data.split, len(data.samples)).to_json()
        for e in entries
        for batch in options.batches
    ]
    return Outcome({"schema": SCHEMA, "environments": {identity: where}, "rows": rows}, answers)


def _with(base: Entry, entries: list[Entry]) -> list[Entry]:
    return entries if base in entries else [*entries, base]


def _score(
    entries: list[Entry], base: Entry, data: BenchData, task: Task, options: BenchOptions, monitor: Monitor
) -> Answers:
    """Fill in metrics and paired: each image is decoded once and shown to every backend in turn."""
    scored = _with(base, entries)
    seen = 0

    def count(images: int) -> None:
        nonlocal seen
        seen += images
        monitor.progress("images", seen, len(data.samples))

    batches = stream(data.root, data.samples, data.preprocess, options.max_batch, on_batch=count)
    running = {e.name: e.backend for e in scored if e.backend is not None}
    outputs, targets, failed = predict_each(running, batches, options.max_batch)
    for entry in scored:
        entry.error = entry.error or failed.get(entry.name)
    if base.error is not None:
        raise BackendError("the reference failed, so no drop can be told", f"{base.name}: {line_of(base.error)}")
    for entry in scored:
        if entry.error is None:
            try:
                entry.metrics = task.metrics(outputs[entry.name], targets, data.labels)
                entry.paired = task.compare(outputs[base.name], outputs[entry.name], targets, options.seed)
            except ValueError as error:  # outputs that are no answer: not finite, or of another class count
                entry.error = error
    kept = {e.name: _untempered(e.candidate, outputs[e.name]) if e.error is None else None for e in scored}
    return of_outputs(kept, base.name, data.split, data.samples, data.labels)


def _untempered(candidate: Candidate, outputs: Logits) -> Logits:
    """Outputs as if no calibration temperature were in the graph: variants are compared with each other."""
    return outputs * candidate.temperature


def _weigh(entries: list[Entry], options: BenchOptions, monitor: Monitor) -> list[tuple[Entry, str]]:
    """Fill in peak memory, in a process of its own for each backend and batch size; (entry, why it is not known).

    It comes first: a backend that takes its process down with it does so there, and is not opened here.
    """
    unknown = []
    jobs = [(e, b) for e in entries for b in options.batches]
    for index, (entry, batch) in enumerate(jobs):
        try:
            if entry.error is None:
                entry.at(batch).peak_mb = peak_of(entry.candidate.opens, batch)
        except BackendCrash as error:
            entry.error = error
        except EdgetlError as error:
            unknown.append((entry, f"no peak memory for {entry.name}: {error}"))
        monitor.progress("memory", index + 1, len(jobs))
    return unknown
