"""`--compare`: this bench beside an earlier one, row by row, and which changes are more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgetl.measure.rows import Row

_GRAPH_FIELDS = ("graph_sha256", "engine_key", "size_bytes")


@dataclass(frozen=True)
class Change:
    """One figure of one row then and now. `beyond`: outside what the figures' own spread explains;
    None where that cannot be told."""

    id: str
    figure: str
    before: Any
    now: Any
    beyond: bool | None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)


def changes(before: Sequence[Row], now: Sequence[Row]) -> list[Change]:
    """What changed between two benches of one bundle, in the order of `now`; rows are matched by id.

    Accuracy counts as changed when the intervals do not overlap; a time when one run's median lies beyond
    the other's p90 (both ways: slower and faster), and not at all across environments.
    """
    older = {row.id: row for row in before}
    out: list[Change] = []
    for row in now:
        old = older.pop(row.id, None)
        if old is None:
            out.append(Change(row.id, "row", None, "new", None, "not in the earlier bench"))
        elif "failed" in (old.status, row.status):
            if old.status != row.status:
                out.append(Change(row.id, "status", old.status, row.status, True, row.error or old.error or ""))
        else:
            out.extend(_file(old, row) + _accuracy(old, row) + _times(old, row))
    out.extend(Change(name, "row", "there", None, None, "not in this bench") for name in older)
    return out


def _file(old: Row, row: Row) -> list[Change]:
    pairs = [(name, getattr(old, name), getattr(row, name)) for name in _GRAPH_FIELDS]
    return [Change(row.id, name, was, new, True) for name, was, new in pairs if was != new]


def _accuracy(old: Row, row: Row) -> list[Change]:
    if old.accuracy == row.accuracy and old.drop_pp == row.drop_pp:
        return []
    if (old.split, old.n_images) != (row.split, row.n_images):
        note = f"on other images: {old.split} {old.n_images}, now {row.split} {row.n_images}"
        return [Change(row.id, "accuracy", old.accuracy, row.accuracy, None, note)]
    return [
        Change(row.id, "accuracy", old.accuracy, row.accuracy, _apart(old.accuracy_ci, row.accuracy_ci)),
        Change(row.id, "drop_pp", old.drop_pp, row.drop_pp, _apart(old.drop_ci_pp, row.drop_ci_pp)),
    ]


def _apart(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool | None:
    if one is None or other is None:
        return None
    return one[1] < other[0] or other[1] < one[0]


def _times(old: Row, row: Row) -> list[Change]:
    out = []
    for name in ("latency_ms", "end_to_end_ms", "device_ms"):
        was, new = getattr(old, name), getattr(row, name)
        if was is None or new is None or was["p50"] is None or new["p50"] is None:
            continue
        note, beyond = "", None
        if old.environment != row.environment:
            note = "measured in another environment"
        elif was["p90"] is not None and new["p90"] is not None:
            beyond = new["p50"] > was["p90"] or was["p50"] > new["p90"]
        out.append(Change(row.id, name + ".p50", was["p50"], new["p50"], beyond, note))
    return out
