"""The steps of a deploy, each with its time, bytes and outcome; and what has to be done, decided before it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from edgetl.deploy.cargo import Cargo, volume

DONE, SKIPPED, PLANNED, FAILED = "done", "skipped", "planned", "failed"


@dataclass
class Step:
    """One line of the table: cli.md's {"name", "seconds", "bytes", "status"}."""

    name: str
    seconds: float = 0.0
    bytes: int = 0
    status: str = DONE

    def as_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {"name": self.name, "seconds": round(self.seconds, 3), "bytes": self.bytes, "status": self.status}


@dataclass
class Steps:
    """What was done so far."""

    all: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time what happens inside; an error marks it failed and goes on."""
        found = Step(name)
        self.all.append(found)
        started = time.monotonic()
        try:
            yield found
        except BaseException:
            found.status = FAILED
            raise
        finally:
            found.seconds = time.monotonic() - started

    def note(self, name: str, status: str, size: int = 0) -> None:
        """A step that took no time."""
        self.all.append(Step(name, bytes=size, status=status))


@dataclass(frozen=True)
class Plan:
    """What a device lacks of a cargo. `missing`: files to push; `fresh`: it does not serve this release yet."""

    missing: tuple[Mapping[str, Any], ...]
    fresh: bool
    variants: tuple[str, ...]  # precisions to build or run, prove and measure

    @property
    def bytes(self) -> int:
        """That will be pushed."""
        return volume(self.missing)


def plan(state: Mapping[str, Any], missing: Sequence[Mapping[str, Any]], cargo: Cargo, precision: str | None) -> Plan:
    """Decide from what the probe told: nothing but a bench where this release serves already, as asked.

    `missing` may speak of files of other profiles; only the cargo's own are pushed.
    """
    own = {piece.sha256 for piece in cargo.pieces}
    serve = state.get("serve") or {}
    lacking = tuple(entry for entry in missing if entry["sha256"] in own)  # what serves may be damaged
    serves = state.get("current") == cargo.release and bool(serve) and precision in (None, serve.get("precision"))
    precisions = tuple(dict.fromkeys(record["precision"] for record in cargo.records))
    if serves and not lacking:
        return Plan((), False, (str(serve["precision"]),))
    return Plan(lacking, True, precisions)


def fastest(rows: Sequence[Mapping[str, Any]], proven: Mapping[str, bool]) -> Mapping[str, Any] | None:
    """The row of the proven variant with the lowest median latency at the smallest batch; None: none is left.

    Where nothing could be timed the first proven one is taken: then there is nothing to choose by.
    """
    good = [row for row in rows if row["status"] == "ok" and proven.get(row["precision"])]
    if not good:
        return None
    smallest = min(row["batch"] for row in good)
    timed = [row for row in good if row["batch"] == smallest and row.get("latency_ms")]
    return min(timed, key=lambda row: row["latency_ms"]["p50"]) if timed else good[0]
