"""`--fail-if`: a condition on rows, in a grammar small enough to be read aloud. Nothing is evaluated.

    int8.drop_pp>0.5            the rows whose precision, backend, profile or id is "int8"
    size_bytes>5e6              a bare field: all rows
    trt10.latency_ms.p99>=8     a figure of a summary; lo and hi of an interval: drop_ci_pp.hi>1
    int8.ratio_p50>0.5          latency beside the reference's, what a gate in CI should be about; .lo, .hi
    latency_ci_ms.p50.hi>9      an end of a percentile's interval
    int8.throughput_by_streams.4<100    images a second with four callers at once (`--streams 4`)

Each matching row is tested and none may fulfil the condition. No match, a null or a failed row counts
as failed: a gate that could not look must not let through.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.errors import InputError
from edgetl.measure.rows import INTERVALS, NUMERIC, PAIRS, SUMMARIES, SUMMARY_KEYS, Row

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_ENDS = ("lo", "hi")
_SHAPE = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|==|!=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_HOW = "for example 'int8.drop_pp>0.5', 'fp16.latency_ms.p99>8' or 'size_bytes>5e6'"


@dataclass(frozen=True)
class Condition:
    """`prefix` ("" for all rows), `field` and `part` ("" where the field is a number) compared with `limit`."""

    text: str
    prefix: str
    field: str
    part: str
    compare: str
    limit: float

    def covers(self, row: Row) -> bool:
        """Whether this row is one that the condition is about."""
        return not self.prefix or self.prefix in (row.precision, row.backend, row.profile, row.id)

    def value(self, row: Row) -> float | None:
        """The row's figure, or None where there is none."""
        found: Any = getattr(row, self.field)
        for step in _steps(self.field, self.part):
            if found is None:
                return None
            # A mapping may lack the key: that many streams were not measured.
            found = found.get(step) if isinstance(step, str) else found[step]
        return None if found is None else float(found)


def parse(text: str) -> Condition:
    """A Condition from its text. Raises InputError that names what is unknown and what is known."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise InputError("--fail-if cannot be read", repr(text), _HOW)
    path, compare, limit = match.groups()
    # A field's name holds no dot, a prefix (an id) might; a part of a field might too.
    names = path.split(".")
    for start in range(len(names)):
        prefix, field, part = ".".join(names[:start]), names[start], ".".join(names[start + 1 :])
        if part in _parts(field) or _is_stream(field, part):
            return Condition(text.strip(), prefix, field, part, compare, float(limit))
    known = [*NUMERIC, "ratio_p50", "throughput_by_streams.N", *(f"{p}.{{lo,hi}}" for p in (*PAIRS, "ratio_p50"))]
    known += [f"{s}.{{{','.join(SUMMARY_KEYS)}}}" for s in SUMMARIES] + [f"{i}.p50.{{lo,hi}}" for i in INTERVALS]
    raise InputError("--fail-if names no number of a row", path, "known: " + ", ".join(known))


def check_all(conditions: Sequence[Condition], rows: Sequence[Row]) -> list[str]:
    """One line for each way in which a condition is not kept; empty when all are."""
    return [line for condition in conditions for line in _check(condition, rows)]


def _check(condition: Condition, rows: Sequence[Row]) -> list[str]:
    covered = [row for row in rows if condition.covers(row)]
    if not covered:
        there = sorted({name for row in rows for name in (row.precision, row.backend, row.profile) if name})
        return [f"{condition.text}: no row matches {condition.prefix!r} (there are: {', '.join(there) or 'none'})"]
    lines = []
    for row in covered:
        if row.status == "failed":
            lines.append(f"{condition.text}: {row.id} failed ({row.error})")
            continue
        value = condition.value(row)
        if value is None:
            lines.append(f"{condition.text}: {row.id} has no such figure (null)")
        elif OPERATORS[condition.compare](value, condition.limit):
            lines.append(f"{condition.text}: it is {value:g} in {row.id}")
    return lines


def _parts(field: str) -> tuple[str, ...]:
    """What may stand after a field's name; "" for nothing."""
    if field in SUMMARIES:
        return SUMMARY_KEYS
    if field in INTERVALS:
        return tuple(f"{percentile}.{end}" for percentile in SUMMARY_KEYS[:4] for end in _ENDS)
    if field == "ratio_p50":
        return ("", *_ENDS)
    if field in PAIRS:
        return _ENDS
    return ("",) if field in NUMERIC else ()


def _is_stream(field: str, part: str) -> bool:
    return field == "throughput_by_streams" and part.isdigit()


def _steps(field: str, part: str) -> tuple[str | int, ...]:
    """Keys and places that lead from a row's field to the number."""
    if field == "ratio_p50":
        return (("", *_ENDS).index(part),)
    if field == "throughput_by_streams":
        return (part, "throughput_ips")
    return tuple(_ENDS.index(step) if step in _ENDS else step for step in part.split(".") if step)
