"""`bench` on the device: cli.md's rows, and beside each the conditions that they were measured under. Python 3.8.

Latency is taken of all backends in turns (a board that heats up slows all alike); energy of each alone, since the
meter does not know whose watts it sees.
"""

from __future__ import annotations

import io
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
from PIL import Image

from edgetl.bundle import Bundle
from edgetl.device import conditions, power
from edgetl.device.accuracy import Scores, score
from edgetl.device.chosen import Chosen, evidence_here, latency_evidence
from edgetl.device.system import System
from edgetl.errors import BundleError, EdgetlError
from edgetl.images import Sample, read_bytes, to_batch, to_input
from edgetl.measure.environment import environment
from edgetl.measure.latency import Effort
from edgetl.measure.memory import peak_of
from edgetl.measure.parity import golden
from edgetl.measure.rows import SCHEMA, Row
from edgetl.measure.timing import Times, encoded_pool, time_backends
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import Backend

CLOCKS_FREE = "clocks are not locked: latency and energy vary with them (`sudo jetson_clocks` locks)"


@dataclass(frozen=True)
class Images:
    """What is measured on. `split` as rows say it; "golden": only timed, since training images prove nothing.

    `pool`: encoded images to time with; `photos`: they are as a camera or user gave them, so that decoding them
    is what an application does.
    """

    split: str
    pool: Sequence[bytes]
    photos: bool = True
    root: Path = Path()
    samples: Sequence[Sample] = ()


@dataclass(frozen=True)
class Effects:
    """How much to measure. `idle_seconds` and `power_seconds`: of the meter, before and for each backend."""

    batches: Sequence[int] = (1,)
    effort: Effort = field(default_factory=Effort)
    idle_seconds: float = 2.0
    power_seconds: float = 3.0
    threads: int = 0
    peaks: bool = True
    seed: int = 0


@dataclass
class _Entry:
    """One file on its way through the bench; `error` ends it while the others go on."""

    chosen: Chosen
    backend: Optional[Backend] = None
    error: Optional[Exception] = None
    scores: Optional[Scores] = None
    times: Dict[int, Times] = field(default_factory=dict)
    facts: Dict[int, Dict[str, Any]] = field(default_factory=dict)
    peak_mb: Optional[float] = None


def images_for(bundle: Bundle, samples: Optional[Sequence[Sample]], root: Path, split: str) -> Images:
    """The images of a bench: `samples` under `root`, else the golden photos, else the golden pixels as PNG.

    Raises BundleError where there are none at all.
    """
    if samples:
        return Images(split, encoded_pool(root, samples), True, root, samples)
    photos = bundle.artifacts("golden-image")
    if photos:
        return Images("golden", [read_bytes(bundle.file(record)) for record in photos])
    cases = golden(bundle)
    if cases is None:
        raise BundleError("the bundle holds no images to time with", bundle.path, "give some with --data")
    return Images("golden", [_png(pixels) for pixels in cases[0]], photos=False)


def _png(pixels: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def bench(
    chosen: Sequence[Chosen],
    images: Images,
    effects: Effects,
    reference: Optional[Dict[str, Any]] = None,
    system: Optional[System] = None,
    monitor: Monitor = SILENT,
) -> Dict[str, Any]:
    """{"schema", "environments", "rows"} of cli.md, and "conditions": row id -> what it was measured under.

    `reference`: PyTorch's logits by image digest, against which drops and agreement are told. Raises DataError,
    BundleError; a backend that fails has rows of status "failed".
    """
    system = system or System()
    entries = [_Entry(one) for one in chosen]
    with ExitStack() as closing:
        for entry in entries:
            _open(entry, closing)
        if images.samples:
            _score(entries, images, reference, effects, monitor)
        idle = _idle(system, effects)
        for batch in effects.batches:
            _time(entries, images, batch, effects, idle, system, monitor)
    if effects.peaks:
        for entry in entries:
            _weigh(entry, monitor)
    where = environment(effects.threads, system.root)
    identity = str(where.pop("id"))
    rows, facts = [], {}
    for entry in entries:
        for batch in effects.batches:
            row = _row(entry, batch, identity, images)
            rows.append(row.to_json())
            facts[row.id] = entry.facts.get(batch)
    return {"schema": SCHEMA, "environments": {identity: where}, "rows": rows, "conditions": facts}


def _open(entry: _Entry, closing: ExitStack) -> None:
    try:
        entry.backend = entry.chosen.opens()
        closing.callback(entry.backend.close)
    except Exception as error:  # whatever a third-party runtime raises is this one backend's failure
        entry.error = error


def _score(
    entries: List[_Entry], images: Images, reference: Optional[Dict[str, Any]], effects: Effects, monitor: Monitor
) -> None:
    running = {e.chosen.name: e.backend for e in entries if e.backend is not None}
    bundle = entries[0].chosen.bundle
    found, failed = score(running, bundle, images.root, images.samples, reference, effects.seed, monitor)
    for entry in entries:
        entry.scores = found.get(entry.chosen.name)
        entry.error = entry.error or failed.get(entry.chosen.name)


def _idle(system: System, effects: Effects) -> Optional[float]:
    """Mean milliwatts while nothing of ours runs."""
    with power.Meter(system) as meter:
        if meter.source:
            time.sleep(effects.idle_seconds)
    return power.mean_mw(meter.samples)


def _time(
    entries: List[_Entry],
    images: Images,
    batch: int,
    effects: Effects,
    idle: Optional[float],
    system: System,
    monitor: Monitor,
) -> None:
    timed = {e.chosen.name: e for e in entries if e.error is None and _evidence(e) is not None}
    if not timed:
        return
    monitor.say("timing %s, batch %d" % (", ".join(timed), batch))
    before = conditions.conditions(system)
    if before["clocks"]["locked"] is False:
        monitor.warn(CLOCKS_FREE)
    backends = {name: entry.backend for name, entry in timed.items() if entry.backend is not None}
    spec = entries[0].chosen.bundle.preprocess
    times, failed = time_backends(backends, images.pool, spec, batch, effects.effort, time.perf_counter)
    after = conditions.conditions(system)
    slowed, why = conditions.throttled(before["throttle"], after["throttle"])
    for name, entry in timed.items():
        if name in failed:
            entry.error = failed[name]
            continue
        entry.times[batch] = times[name]
        facts = {"before": before, "after": after, "throttled": slowed, "why": why, "steady": times[name].steady}
        try:
            entry.facts[batch] = dict(facts, energy=_energy(entry, images, batch, effects, idle, system))
        except Exception as error:  # as above
            entry.error = error


def _energy(
    entry: _Entry, images: Images, batch: int, effects: Effects, idle: Optional[float], system: System
) -> Dict[str, Any]:
    """power.energy of array-to-array runs of this backend alone, with the meter's "source"."""
    run = _runner(entry, images, batch)
    with power.Meter(system) as meter:
        start, count = time.perf_counter(), 0
        while meter.source and time.perf_counter() - start < effects.power_seconds:
            run()
            count += batch
        spent = time.perf_counter() - start
    return dict(power.energy(power.mean_mw(meter.samples), idle, spent, count), source=meter.source)


def _runner(entry: _Entry, images: Images, batch: int) -> Callable[[], object]:
    assert entry.backend is not None
    backend, spec = entry.backend, entry.chosen.bundle.preprocess
    pixels = np.stack([to_input(images.pool[i % len(images.pool)], spec) for i in range(batch)])
    given = to_batch(pixels, backend.input.dtype)
    return lambda: backend.run(given)


def _weigh(entry: _Entry, monitor: Monitor) -> None:
    if entry.error is not None:
        return
    try:
        entry.peak_mb = peak_of(entry.chosen.opens)
    except EdgetlError as error:
        monitor.warn("no peak memory for %s: %s" % (entry.chosen.name, error))


def _evidence(entry: _Entry) -> Optional[str]:
    return None if entry.backend is None else latency_evidence(entry.chosen, entry.backend)


def _row(entry: _Entry, batch: int, identity: str, images: Images) -> Row:
    one, error = entry.chosen, entry.error
    row: Dict[str, Any] = {
        "id": "%s-b%d" % (one.name, batch),
        "environment": identity,
        "backend": one.backend,
        "provider": entry.backend.provider if entry.backend is not None else one.backend,
        "profile": one.record["profile"],
        "precision": str(one.precision),
        "graph_sha256": one.graph_sha256,
        "engine_key": one.engine_key,
        "status": "ok" if error is None else "failed",
        "error": None if error is None else _line_of(error),
        "split": images.split,
        "batch": batch,
        "n_images": len(images.samples),
        "size_bytes": int(one.record["bytes"]),
    }
    if error is None:
        row.update(_figures(entry, batch, images))
    return Row(**row)


def _line_of(error: Exception) -> str:
    """One line, with the type where the error is not one of ours."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, EdgetlError) else "%s: %s" % (type(error).__name__, text)


def _figures(entry: _Entry, batch: int, images: Images) -> Dict[str, Any]:
    out: Dict[str, Any] = {"peak_rss_mb": entry.peak_mb}
    if entry.scores is not None and entry.backend is not None:
        out.update(entry.scores.as_row(), accuracy_evidence=evidence_here(entry.backend))
    times = entry.times.get(batch)
    if times is not None:
        energy = entry.facts[batch]["energy"]["gross_mj"]
        out.update(times.as_row(), latency_evidence=_evidence(entry), energy_mj=energy)
        if not images.photos:  # decoding a PNG of the network's own pixels is nothing that an application does
            out.update(end_to_end_ms=None, end_to_end_ci_ms=None, end_to_end_parts_ms=None)
    return out
