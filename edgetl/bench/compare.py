"""`--compare`: this bench beside an earlier one, row by row, and which changes are more than noise.

Two benches minutes apart differ by more than either one's intervals say: those only know what varied while it ran, not
where memory came to lie, which neighbours the machine had, how warm it was (Kalibera & Jones 2013, section 3: variation
between executions). So a time is compared through its ratio to the reference of its own bench, which carries the drift
of the machine with it, and has to differ by more than BETWEEN as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgetl.measure.environment import PASSING
from edgetl.measure.rows import Row

BETWEEN = (
    0.05  # how far ratios of two benches of one bundle lie apart on a quiet machine: `python -m benchmarks repeat`
)
_GRAPH_FIELDS = ("graph_sha256", "engine_key", "size_bytes")
_CLOCKS = ("latency_ms", "end_to_end_ms", "device_ms")
_DRIFT = "the machine's drift"
_BY_RATIO = "by its ratio"
_NOISY = "noisy"
_LEGEND = {
    _DRIFT: "the machine's drift: what ratios are told to; other rows are judged beside it.",
    _BY_RATIO: "by its ratio: to the reference of its own bench; what counts is more than "
    f"{100 * BETWEEN:.0f} %, and more than both intervals allow.",
    _NOISY: "noisy: that bench said so of this row, and the change is no larger than such noise.",
}
Environments = Mapping[str, Mapping[str, Any]]


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


@dataclass(frozen=True)
class Compared:
    """A bench to compare, the earlier or this one: its rows, and the environments that they name."""

    rows: Sequence[Row]
    environments: Environments

    def row(self, name: str | None) -> Row | None:
        """The row of this id."""
        return next((row for row in self.rows if row.id == name), None)


@dataclass(frozen=True)
class _Beside:
    """A row and the row of the same bench that its ratio is told to."""

    row: Row
    to: Row | None

    def ratio(self, clock: str) -> tuple[float, float] | None:
        """(p50 over the other row's p50 by this clock, half-width of its interval on the log scale)."""
        if clock == "latency_ms" and self.row.ratio_p50 is not None:
            point, low, high = self.row.ratio_p50
            return (point, math.log(high / low) / 2) if min(point, low, high) > 0 else None
        points, halves = [], []
        for row in (self.row, self.to):
            middle, ends = (None, None) if row is None else (_p50(row, clock), _interval(row, clock))
            if middle is None or ends is None or min(middle, *ends) <= 0:
                return None
            points.append(middle)
            halves.append(math.log(ends[1] / ends[0]) / 2)
        return points[0] / points[1], math.hypot(*halves)

    @property
    def spread(self) -> float | None:
        """What a noisy bench may be off by: how far the turns of this row and the other differed; None: quiet."""
        noise = self.row.noise or {}
        if not noise.get("noisy"):
            return None
        return float((noise.get("spread") or 0.0) + (noise.get("reference_spread") or 0.0))


def changes(before: Compared, now: Compared) -> list[Change]:
    """What changed between two benches of one bundle, in the order of `now`; rows are matched by id.

    Accuracy counts as changed when the intervals do not overlap. A time counts when its ratio to the reference has
    changed by more than BETWEEN and by more than both ratios' intervals allow; where a bench has no ratios (an older
    edgetl), when one median lies beyond the other's p90. Nothing is told of times across environments.
    """
    older = {row.id: row for row in before.rows}
    out: list[Change] = []
    for row in now.rows:
        old = older.pop(row.id, None)
        if old is None:
            out.append(Change(row.id, "row", None, "new", None, "not in the earlier bench"))
        elif "failed" in (old.status, row.status):
            if old.status != row.status:
                out.append(Change(row.id, "status", old.status, row.status, True, row.error or old.error or ""))
        else:
            elsewhere = _elsewhere(before.environments.get(old.environment), now.environments.get(row.environment))
            if old.environment == row.environment:
                elsewhere = ""
            then, today = _Beside(old, before.row(old.ratio_to)), _Beside(row, now.row(row.ratio_to))
            out.extend(_file(old, row) + _accuracy(old, row) + _times(then, today, elsewhere))
    out.extend(Change(name, "row", "there", None, None, "not in this bench") for name in older)
    return out


def legend(found: Sequence[Change]) -> list[str]:
    """What the notes of these changes mean, a line for each kind that is among them."""
    return [line for note, line in _LEGEND.items() if any(change.note.startswith(note) for change in found)]


def _elsewhere(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """How two environments differ in what both tell; "" for not at all. (An older edgetl told less.)"""
    if then is None or now is None:
        return "measured in another environment"
    odd = [name for name in then if name in now and name not in PASSING and then[name] != now[name]]
    if not odd:
        return ""
    shown = f"{odd[0]}: {_differing(then[odd[0]], now[odd[0]])}"
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return f"measured in another environment ({shown}{more})"


def _differing(then: Any, now: Any) -> str:
    if not (isinstance(then, Mapping) and isinstance(now, Mapping)):
        return f"{then}, now {now}"
    key = next(key for key in (*then, *now) if then.get(key) != now.get(key))
    return f"{key} {then.get(key)}, now {now.get(key)}"


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


def _apart(one: Sequence[float] | None, other: Sequence[float] | None) -> bool | None:
    if one is None or other is None:
        return None
    return one[1] < other[0] or other[1] < one[0]


def _times(old: _Beside, new: _Beside, elsewhere: str) -> list[Change]:
    out = []
    if None not in (old.row.ratio_p50, new.row.ratio_p50) and old.row.ratio_to == new.row.ratio_to != new.row.id:
        beyond, note = (None, elsewhere) if elsewhere else _judged(old, new, "latency_ms")
        note = "" if note == _BY_RATIO else note
        was, now = ((beside.row.ratio_p50 or [None])[0] for beside in (old, new))
        out.append(Change(new.row.id, "ratio_p50", was, now, beyond, note))
    for name in _CLOCKS:
        was, now = (_p50(beside.row, name) for beside in (old, new))
        if was is not None and now is not None:
            beyond, note = (None, elsewhere) if elsewhere else _judged(old, new, name)
            out.append(Change(new.row.id, name + ".p50", was, now, beyond, note))
    return out


def _judged(old: _Beside, new: _Beside, clock: str) -> tuple[bool | None, str]:
    """Whether a time of this clock changed beyond noise, and on what grounds."""
    if new.row.ratio_to == new.row.id:
        return None, _DRIFT
    pair = [beside.ratio(clock) for beside in (old, new)]
    if old.row.ratio_to != new.row.ratio_to or pair[0] is None or pair[1] is None:
        return _plain(old.row, new.row, clock), "the machine's drift is not known"
    # Half-widths on the log scale, in quadrature: the two benches are independent of each other.
    change, halves = abs(math.log(pair[1][0] / pair[0][0])), math.hypot(pair[0][1], pair[1][1])
    noisy = [which for which, one in (("then", old), ("now", new)) if one.spread is not None]
    doubt = sum(beside.spread or 0.0 for beside in (old, new))
    if noisy and change <= halves + math.log1p(BETWEEN + doubt):
        return None, f"{_NOISY} {' and '.join(noisy)}"
    return change > max(halves, math.log1p(BETWEEN)), _BY_RATIO


def _plain(old: Row, row: Row, clock: str) -> bool | None:
    """Without ratios: one median beyond the other's p90, both ways."""
    was, now = getattr(old, clock), getattr(row, clock)
    if was["p90"] is None or now["p90"] is None:
        return None
    return bool(now["p50"] > was["p90"] or was["p50"] > now["p90"])


def _p50(row: Row, clock: str) -> float | None:
    found = getattr(row, clock)
    return None if found is None else found["p50"]


def _interval(row: Row, clock: str) -> Sequence[float] | None:
    found: Mapping[str, Sequence[float] | None] = getattr(row, clock.replace("_ms", "_ci_ms")) or {}
    return found.get("p50")
