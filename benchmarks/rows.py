"""A benchmark's row: what was measured, where, on which commit. Checked against row.schema.json before it is kept."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema

from edgetl.errors import InputError
from edgetl.measure.environment import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SCHEMA: dict[str, Any] = json.loads((HERE / "row.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What a suite runs once; `name` is the same in every run, so that rows can be compared over time."""

    suite: str
    name: str
    quick: bool


def row(case: Case, threads: int, values: Mapping[str, float | int | str | bool | None]) -> Row:
    """A row of `case`; the names in `values` end in their units."""
    where = environment(threads)
    return {
        "schema": 1,
        "suite": case.suite,
        "case": case.name,
        "quick": case.quick,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "environment": {key: where[key] for key in ("id", "cpu", "cores", "threads", "load_1m", "python", "versions")},
        "values": dict(values),
    }


def append(new: Row, results: Path = RESULTS) -> None:
    """Add one line to <results>/<suite>.jsonl. Raises jsonschema.ValidationError: a wrong row is not kept."""
    VALIDATOR.validate(new)
    results.mkdir(parents=True, exist_ok=True)
    line = json.dumps(new, ensure_ascii=False, allow_nan=False) + "\n"
    handle = os.open(results / f"{new['suite']}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode("utf-8"))  # one write, so that two runs never interleave
    finally:
        os.close(handle)


def read(results: Path = RESULTS) -> Iterator[Row]:
    """Every kept row, suite by suite, oldest first; each is checked.

    Raises jsonschema.ValidationError, InputError naming the file and line of one that is cut short.
    """
    for path in sorted(results.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                found = json.loads(line)
            except ValueError as error:  # a line that a killed writer or a full disk cut short
                raise InputError(
                    "a row cannot be read", f"{path} line {number} ({error})", "remove that line"
                ) from error
            VALIDATOR.validate(found)
            yield found


def latest(rows: Iterator[Row], suite: str) -> list[Row]:
    """The newest full (not quick) row of each case of a suite, in the order the cases first came."""
    newest: dict[str, Row] = {}
    for found in rows:
        if found["suite"] == suite and not found["quick"]:
            newest[found["case"]] = found
    return list(newest.values())


def _commit() -> str | None:
    """The commit that was measured, with "+" where files were changed since; None outside a repository."""
    try:
        said = [
            subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0] + ("+" if said[1] else "")
