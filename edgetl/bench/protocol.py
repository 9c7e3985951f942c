"""One bench: accuracy over the same decoded images, latency in turns, memory in children; rows out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.bench.candidate import Candidate
from edgetl.errors import BackendError, DataError, EdgetlError
from edgetl.images import Sample, stream
from edgetl.measure import Paired, Task, predict_each
from edgetl.measure.answers import Answers, of_outputs
from edgetl.measure.environment import environment
from edgetl.measure.latency import Clock, Effort
from edgetl.measure.memory import peak_of
from edgetl.measure.rows import SCHEMA, Row
from edgetl.measure.timing import Times, encoded_pool, time_backends
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import Backend
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
    """`batches`: sizes timed, a row each; `max_batch`: images a run while scoring; `memory`: measure peaks.

    A scoring run of 8 is as fast as one of 32 on a CPU and holds a quarter of the activations. Above all two
    runtimes side by side are at their peak from the second batch on: 64 images or 512 take the same memory.
    """

    batches: tuple[int, ...] = (1,)
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


@dataclass
class _Entry:
    """A candidate on its way through the bench; `error` ends it while the others go on."""

    candidate: Candidate
    backend: Backend | None = None
    error: Exception | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    paired: Paired | None = None
    times: dict[int, Times] = field(default_factory=dict)
    times_failed: dict[int, Exception] = field(default_factory=dict)
    peaks: dict[int, float | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.candidate.name


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
        raise DataError("there are no images to measure on", data.root)
    with ExitStack() as closing:
        entries = [_open(candidate, closing) for candidate in candidates]
        base = next((e for e in entries if e.name == reference.name), None) or _open(reference, closing)
        answers = _score(entries, base, data, task, options, monitor)
        _time(entries, data, options, monitor)
    if options.memory:
        _weigh(entries, options, monitor)
    where = environment(options.threads)
    identity = str(where.pop("id"))
    rows = [_row(e, e is base, batch, identity, data) for e in entries for batch in options.batches]
    result = {"schema": SCHEMA, "environments": {identity: where}, "rows": [row.to_json() for row in rows]}
    return Outcome(result, answers)


def _open(candidate: Candidate, closing: ExitStack) -> _Entry:
    entry = _Entry(candidate)
    try:
        entry.backend = candidate.opens()
        closing.callback(entry.backend.close)
    except Exception as error:  # whatever a third-party runtime raises is this one candidate's failure
        entry.error = error
    return entry


def _score(
    entries: list[_Entry], base: _Entry, data: BenchData, task: Task, options: BenchOptions, monitor: Monitor
) -> Answers:
    """Fill in metrics and paired: each image is decoded once and shown to every backend in turn."""
    scored = entries if base in entries else [*entries, base]
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
        raise BackendError("the reference failed, so no drop can be told", f"{base.name}: {_line(base.error)}")
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


def _time(entries: list[_Entry], data: BenchData, options: BenchOptions, monitor: Monitor) -> None:
    """Fill in times. Nothing is drawn meanwhile: a progress bar's own redraws would be in the p99."""
    timed = {
        e.name: (e, e.backend)
        for e in entries
        if e.error is None and e.backend is not None and e.candidate.latency_evidence is not None
    }
    if not timed:
        return
    pool = encoded_pool(data.root, data.samples)
    backends = {name: backend for name, (_, backend) in timed.items()}
    for batch in options.batches:
        monitor.say(f"timing {len(timed)} backends in turns, batch {batch}")
        times, failed = time_backends(backends, pool, data.preprocess, batch, options.effort, options.clock)
        for name, (entry, _) in timed.items():
            if name in failed:
                entry.times_failed[batch] = failed[name]
                continue
            entry.times[batch] = times[name]
            if not times[name].steady:
                monitor.warn(f"{name} was still not steady after warm-up: is this machine busy?")


def _weigh(entries: list[_Entry], options: BenchOptions, monitor: Monitor) -> None:
    """Fill in peaks: a child process for each backend and batch size."""
    jobs = [(e, b) for e in entries for b in options.batches if e.error is None and b not in e.times_failed]
    for index, (entry, batch) in enumerate(jobs):
        try:
            entry.peaks[batch] = peak_of(entry.candidate.opens, batch)
        except EdgetlError as error:
            monitor.warn(f"no peak memory for {entry.name}: {error}")
        monitor.progress("memory", index + 1, len(jobs))


def _row(entry: _Entry, is_reference: bool, batch: int, environment_id: str, data: BenchData) -> Row:
    candidate, error = entry.candidate, entry.error or entry.times_failed.get(batch)
    row: dict[str, Any] = {
        "id": f"{entry.name}-b{batch}",
        "environment": environment_id,
        "backend": candidate.backend,
        "provider": candidate.provider if entry.backend is None else entry.backend.provider,
        "profile": candidate.profile,
        "precision": candidate.precision,
        "graph_sha256": candidate.graph_sha256,
        "engine_key": candidate.engine_key,
        "status": "ok" if error is None else "failed",
        "error": None if error is None else _line(error),
        "split": data.split,
        "batch": batch,
        "n_images": len(data.samples),
        "size_bytes": candidate.size_bytes,
    }
    if error is None:
        row.update(_accuracy(entry, is_reference), **_latency(entry, batch), peak_rss_mb=entry.peaks.get(batch))
    return Row(**row)


def _accuracy(entry: _Entry, is_reference: bool) -> dict[str, Any]:
    paired = entry.paired
    if paired is None or entry.backend is None:
        return {}
    return {
        "accuracy": entry.metrics["accuracy"],
        "accuracy_ci": tuple(entry.metrics["accuracy_ci"]),
        "drop_pp": paired.drop_pp,
        # Against itself there is nothing to estimate, so no interval either.
        "drop_ci_pp": (0.0, 0.0) if is_reference else paired.drop_ci_pp,
        "agreement": paired.agreement,
        "flips": paired.flips,
        "accuracy_evidence": entry.backend.evidence,
    }


def _latency(entry: _Entry, batch: int) -> dict[str, Any]:
    times = entry.times.get(batch)
    if times is None:
        return {}
    return {
        "latency_evidence": entry.candidate.latency_evidence,
        "latency_ms": times.latency_ms,
        "device_ms": times.device_ms,
        "end_to_end_ms": times.end_to_end_ms,
        "throughput_ips": times.throughput_ips,
    }


def _line(error: Exception) -> str:
    """One line, with the type where the error is not one of ours."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, EdgetlError) else f"{type(error).__name__}: {text}"
