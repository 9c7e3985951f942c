"""Training history and bench figures as TensorBoard runs, for those who keep theirs there; needs no TensorFlow."""

from __future__ import annotations

import calendar
import io
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from edgetl.bundle import atomic_write
from edgetl.report.facts import Facts
from edgetl.report.rows import Measured

FILE = "events.out.tfevents.0.edgetl"  # one name, so that a second export replaces the first
_VERSION = "brain.Event:2"
Scalar = tuple[str, int, float]  # tag, step, value


def write_events(facts: Facts, folder: Path) -> int:
    """`folder`/<bundle>/training and one run for each measured candidate; returns how many. Raises DiskError."""
    at = _seconds(facts.at)
    runs: dict[str, list[Scalar]] = {}
    if facts.training is not None and facts.training.history:
        runs["training"] = list(_epochs(facts))
    for one in facts.measured:
        if one.ok:
            name = "-".join(part for part in (one.host, one.candidate) if part)
            runs.setdefault(name, []).extend(_figures(one))
    for name, scalars in runs.items():
        atomic_write(folder / facts.name / name / FILE, _encoded(scalars, at))
    return len(runs)


def _epochs(facts: Facts) -> Iterable[Scalar]:
    assert facts.training is not None
    for epoch in facts.training.history:
        for name in ("train_loss", "val_loss", "val_accuracy"):
            value = getattr(epoch, name)
            if value is not None:
                yield f"training/{name}", epoch.epoch, float(value)


def _figures(one: Measured) -> Iterable[Scalar]:
    """The step is the batch size: where several were timed, TensorBoard draws a curve over them."""
    row = one.row
    for name in ("accuracy", "drop_pp", "agreement", "throughput_ips", "size_bytes", "peak_rss_mb"):
        value = getattr(row, name)
        if value is not None:
            yield f"bench/{name}", row.batch, float(value)
    for name in ("latency_ms", "end_to_end_ms", "device_ms"):
        for key, value in (getattr(row, name) or {}).items():
            if value is not None and key != "n":
                yield f"bench/{name}/{key}", row.batch, float(value)


def _encoded(scalars: Iterable[Scalar], at: float) -> bytes:
    """An event file: the format's version, then one event a scalar, all at the time of the newest bench."""
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    writer.write(Event(wall_time=at, file_version=_VERSION).SerializeToString())
    for tag, step, value in scalars:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.write(Event(wall_time=at, step=step, summary=summary).SerializeToString())
    return stream.getvalue()


def _seconds(at: str) -> float:
    try:
        return float(calendar.timegm(time.strptime(at, "%Y-%m-%dT%H:%M:%SZ")))
    except ValueError:
        return 0.0  # no bench yet
