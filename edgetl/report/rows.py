"""The bench rows a bundle keeps, as far as they speak of what is in it now; damage is told and hides nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgetl.bundle import Bundle
from edgetl.errors import BundleError, InputError
from edgetl.measure.rows import ADDED, FIELDS, Row

BENCH = "runs/bench.jsonl"
ENVIRONMENTS = "runs/environments.jsonl"


@dataclass(frozen=True)
class Measured:
    """One row as it was kept. `at`: ISO 8601; `host`: of the device, without its user, "" where it was this PC;
    `extra`: what is beside the row (a device's conditions)."""

    row: Row
    at: str
    host: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def candidate(self) -> str:
        """The row's id without its batch: the name that answers go by."""
        return self.row.id.removesuffix(f"-b{self.row.batch}")

    @property
    def ok(self) -> bool:
        """Whether it measured anything."""
        return self.row.status == "ok"

    def p50(self) -> float | None:
        """Median latency in ms, array to array; None where it was not measured."""
        found = (self.row.latency_ms or {}).get("p50")
        return None if found is None else float(found)


def read_lines(bundle: Bundle, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(the JSON objects of a file of lines, what is wrong with it); nothing where there is no such file.

    A line that a power cut or a full disk cut short is left out and named: the others were written whole.
    Raises BundleError where the file cannot be read at all.
    """
    path = bundle.path / name
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise BundleError("a file of results cannot be read", f"{path} ({error.strerror})", "restore it") from error
    found, broken = [], []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            broken.append(number)
    return found, [_told(name, broken)] if broken else []


def _told(name: str, lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:5])) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
    return f"{name} is damaged: line {shown} cannot be read and is left out; run `edgetl bench` again"


def measured(bundle: Bundle) -> tuple[list[Measured], list[str]]:
    """(the newest row of each id and host that speaks of the bundle as it is now, notes). Raises BundleError."""
    lines, notes = read_lines(bundle, BENCH)
    found: list[Measured] = []
    odd = 0
    for line in lines:
        try:
            found.append(_measured(line))
        except InputError:
            odd += 1
    if odd:
        notes.append(f"{odd} of {len(lines)} rows of {BENCH} are not such as `edgetl bench` writes, and are left out")
    kept = _current(found, _files(bundle), int(bundle.manifest["generation"]))
    if len(kept) < len(found):
        older = len(found) - len(kept)
        notes.append(f"{older} rows of earlier graphs or earlier generations are left out")
    newest = {(one.host, one.row.id): one for one in sorted(kept, key=lambda one: one.at)}
    return list(newest.values()), notes


def _measured(line: Mapping[str, Any]) -> Measured:
    # A row of an older edgetl lacks what was added since: not measured. What is needed is checked by from_json.
    row = Row.from_json({key: line.get(key) for key in (*FIELDS, *ADDED)})
    extra = {key: value for key, value in line.items() if key not in (*FIELDS, *ADDED, "at", "host")}
    return Measured(row, str(line.get("at", "")), _machine(str(line.get("host") or "")), extra)


def _machine(host: str) -> str:
    """`user@orin` -> `orin`: a user's name is nobody's business."""
    return host.rpartition("@")[2]


def _files(bundle: Bundle) -> set[str]:
    return {str(record["sha256"]) for record in bundle.artifacts()}


def _current(found: Sequence[Measured], files: set[str], generation: int) -> list[Measured]:
    """Rows of files that are in the bundle, and PyTorch's rows where the same bench measured such a file.

    A row of PyTorch names no file: beside no graph of today it may be of an earlier generation's network.
    """
    with_file = [one for one in found if one.row.graph_sha256 is not None]
    benches = {(one.host, one.at) for one in with_file if one.row.graph_sha256 in files}
    others = {(one.host, one.at) for one in with_file}
    kept = []
    for one in found:
        bench = (one.host, one.at)
        alone = bench not in others and generation == 1
        if one.row.graph_sha256 in files or (one.row.graph_sha256 is None and (bench in benches or alone)):
            kept.append(one)
    return kept


def environments(bundle: Bundle) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """({environment id: what the machine was}, notes); the newest of each id. Raises BundleError."""
    lines, notes = read_lines(bundle, ENVIRONMENTS)
    return {str(line["id"]): line for line in lines if "id" in line}, notes
