"""A candidate on its way through the bench, and the row that it ends as."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from edgetl.bench.candidate import Candidate
from edgetl.errors import EdgetlError
from edgetl.measure import Paired
from edgetl.measure.rows import Row
from edgetl.measure.timing import Times
from edgetl.runtime import Backend


@dataclass
class Timed:
    """What one batch size gave: times, or the error; beside them the ratio to another row, the noise, the streams."""

    times: Times | None = None
    error: Exception | None = None
    ratio: tuple[float, float, float] | None = None
    ratio_to: str | None = None
    noise: dict[str, Any] | None = None
    streams: dict[str, Any] | None = None
    peak_mb: float | None = None


@dataclass(eq=False)
class Entry:
    """`error` ends the candidate while the others go on; `timed` is by batch size."""

    candidate: Candidate
    backend: Backend | None = None
    error: Exception | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    paired: Paired | None = None
    timed: dict[int, Timed] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    def at(self, batch: int) -> Timed:
        """What there is of this batch size, to be filled in."""
        return self.timed.setdefault(batch, Timed())

    def open(self, closing: ExitStack) -> None:
        """Open the backend, to be closed with `closing`; what goes wrong is kept as the entry's error."""
        if self.error is not None:
            return
        try:
            self.backend = self.candidate.opens()
            closing.callback(self.backend.close)
        except Exception as error:  # whatever a third-party runtime raises is this one candidate's failure
            self.error = error


def row_of(entry: Entry, is_reference: bool, batch: int, environment_id: str, split: str, images: int) -> Row:
    """The row of one batch size, "failed" where the candidate or this batch size was."""
    candidate, found = entry.candidate, entry.at(batch)
    error = entry.error or found.error
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
        "error": None if error is None else line_of(error),
        "split": split,
        "batch": batch,
        "n_images": images,
        "size_bytes": candidate.size_bytes,
    }
    if error is None:
        row.update(_accuracy(entry, is_reference), **_latency(entry, found), peak_rss_mb=found.peak_mb)
    return Row(**row)


def _accuracy(entry: Entry, is_reference: bool) -> dict[str, Any]:
    paired = entry.paired
    if paired is None or entry.backend is None:
        return {}
    shown = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "ece")
    return {
        **{name: entry.metrics[name] for name in shown if name in entry.metrics},
        "accuracy_ci": tuple(entry.metrics["accuracy_ci"]),
        "drop_pp": paired.drop_pp,
        # Against itself there is nothing to estimate, so no interval either.
        "drop_ci_pp": (0.0, 0.0) if is_reference else paired.drop_ci_pp,
        "p_mcnemar": None if is_reference else paired.p_mcnemar,
        "agreement": paired.agreement,
        "flips": paired.flips,
        "accuracy_evidence": entry.backend.evidence,
    }


def _latency(entry: Entry, found: Timed) -> dict[str, Any]:
    if found.times is None:
        return {}
    return {
        "latency_evidence": entry.candidate.latency_evidence,
        **found.times.as_row(),
        "ratio_p50": found.ratio,
        "ratio_to": found.ratio_to,
        "noise": found.noise,
        "throughput_by_streams": found.streams,
    }


def line_of(error: Exception) -> str:
    """One line, with the type where the error is not one of ours."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, EdgetlError) else f"{type(error).__name__}: {text}"
