"""The variants beside each other: intervals, accuracy against time and size with their Pareto front, percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from edgetl.report.charts.svg import (
    Scale,
    Svg,
    apart,
    around,
    around_log,
    axes,
    cut,
    isolated,
    room_for,
    ruler,
    width_of,
)
from edgetl.report.variants import Point

WIDTH = 380.0
ROW = 30.0
FAR = 1.5  # of the span of all intervals: a mark beyond it is named at the edge, not drawn to scale


@dataclass(frozen=True)
class Line:
    """One row of an interval plot. kind: the class of its mark ("int8", "fp32", "ref"); shown: its value as written
    beside it; said: in words, with its interval and n."""

    name: str
    value: float
    interval: tuple[float, float] | None
    kind: str
    shown: str
    said: str


def intervals(
    key: str,
    title: str,
    lines: Sequence[Line],
    unit: str,
    marks: Sequence[tuple[float, str]] = (),
) -> Markup | None:
    """Values with their intervals as whiskers, a row each; `marks` are upright lines with a name (zero, a contract)."""
    if not lines:
        return None
    left = room_for([line.name for line in lines], 140)
    height = 44 + ROW * len(lines) + 40
    text = "; ".join(f"{line.name}: {line.said}" for line in lines)
    svg = Svg(key, title, text + ".", WIDTH, height)
    values = [v for line in lines for v in (line.value, *(line.interval or ()))]
    near = (min(values) - FAR * (span := max(values) - min(values) + 0.1), max(values) + FAR * span)
    values += [at for at, _ in marks if near[0] <= at <= near[1]]
    x = Scale(*around(values, 0.06, 0.05), left, WIDTH - 62)
    bottom = height - 40
    ruler(svg, x, 26, bottom, unit)
    _marks(svg, x, bottom, marks)
    for index, line in enumerate(lines):
        y = 26 + ROW * (index + 0.5)
        svg.text(left - 8, y + 4, cut(line.name, left - 8), "lab", "end")
        if line.interval:
            svg.whisker((x(line.value), y), x(line.interval[0]), x(line.interval[1]), f"whisker {line.kind}")
        svg.mark(x(line.value), y, f"dot {line.kind}")
        svg.text(WIDTH - 2, y + 4, line.shown, "value", "end")
    return svg.done()


def _marks(svg: Svg, x: Scale, bottom: float, marks: Sequence[tuple[float, str]]) -> None:
    """Upright lines with their names; of one that lies far outside only its name, with an arrow to where it is."""
    shown = [(min(max(at, x.low), x.high), _pointing(name, at, x)) for at, name in marks]
    places = apart([x(at) for at, _ in shown], 64)
    for (at, name), place, (true, _) in zip(shown, places, marks, strict=True):
        if at == true:
            svg.line(x(at), 20, x(at), bottom, "mark-line")
        half = width_of(name) / 2
        svg.text(min(max(place, half), WIDTH - half), 13, name, "tick", "middle")


def _pointing(name: str, at: float, x: Scale) -> str:
    if at < x.low:
        return "\N{LEFTWARDS ARROW} " + name
    return name if at <= x.high else name + " \N{RIGHTWARDS ARROW}"


def front(key: str, title: str, points: Sequence[Point], unit: str) -> Markup | None:
    """Accuracy (%, with whiskers) against cost (log scale); the front is joined, its points are full.

    Names stand above the plot in as many rows as keep them apart, each with a line down to its point.
    """
    if not points:
        return None
    text = "; ".join(
        f"{p.name}: accuracy {100 * p.accuracy:.1f} %, {p.note}" + (" (on the Pareto front)" if p.front else "")
        for p in points
    )
    x = Scale(*around_log([p.cost for p in points], 1.6), 40, WIDTH - 16, log=True)
    names = _rows([(x(p.cost), p.name) for p in points])
    top = 34 + 15 * (1 + max(row for row, _ in names))
    svg = Svg(key, title, text + ".", WIDTH, top + 236)
    y = Scale(
        *around([100 * v for p in points for v in (p.accuracy, *(p.accuracy_ci or ()))], 0.1, 0.5), top + 192, top
    )
    axes(svg, x, y, (unit, "accuracy, %"))
    best = sorted((p for p in points if p.front), key=lambda p: p.cost)
    if len(best) > 1:
        svg.path([(x(p.cost), y(100 * p.accuracy)) for p in best], "front")
    for p, (row, centre) in zip(points, names, strict=True):
        at = (x(p.cost), y(100 * p.accuracy))
        high = at[1]
        if p.accuracy_ci:
            low, high = (y(100 * v) for v in p.accuracy_ci)
            svg.whisker(at, low, high, f"whisker {p.precision}", upright=True)
        svg.line(at[0], high - 2, at[0], 18 + 15 * row, "leader")
        svg.text(centre, 14 + 15 * row, isolated(p.name), "lab small", "middle")
    for p in points:
        svg.mark(x(p.cost), y(100 * p.accuracy), f"dot {p.precision}" + ("" if p.front else " open"))
    return svg.done()


def _rows(names: Sequence[tuple[float, str]]) -> list[tuple[int, float]]:
    """(row, centre in px) of each (place, name): the lowest row, counted from above, where it meets no other."""
    taken: list[list[tuple[float, float]]] = []
    out: list[tuple[int, float]] = [(0, 0.0)] * len(names)
    for index in sorted(range(len(names)), key=lambda i: names[i][0]):
        place, name = names[index]
        half = width_of(name) / 2 * 0.95 + 3
        centre = min(max(place, half), WIDTH - half)
        spans = (centre - half, centre + half)
        row = next((r for r, own in enumerate(taken) if all(spans[0] > e or spans[1] < s for s, e in own)), len(taken))
        if row == len(taken):
            taken.append([])
        taken[row].append(spans)
        out[index] = (row, centre)
    return out


@dataclass(frozen=True)
class Times:
    """Percentiles of one candidate in ms, ascending: [("p50", 1.2), ...]; `interval` is p50's, where it is known."""

    name: str
    kind: str
    values: Sequence[tuple[str, float]]
    interval: tuple[float, float] | None
    n: int


def percentiles(key: str, title: str, rows: Sequence[Times], unit: str) -> Markup | None:
    """From the median to the slowest percentile that there were enough runs for, a row each, log scale."""
    if not rows:
        return None
    left = room_for([row.name for row in rows], 128)
    height = 30 + 36 * len(rows) + 40
    text = "; ".join(
        f"{row.name} ({row.n} runs): " + ", ".join(f"{name} {value:.2f} ms" for name, value in row.values)
        for row in rows
    )
    svg = Svg(key, title, text + ".", WIDTH, height)
    x = Scale(*around_log([v for row in rows for _, v in row.values], 1.25), left, WIDTH - 14, log=True)
    ruler(svg, x, 18, height - 40, unit)
    for index, row in enumerate(rows):
        _times(svg, x, left, 26 + 36 * (index + 0.5), row)
    return svg.done()


def _times(svg: Svg, x: Scale, left: float, y: float, row: Times) -> None:
    svg.text(left - 8, y + 4, cut(row.name, left - 8), "lab", "end")
    places = [x(value) for _, value in row.values]
    svg.line(places[0], y, places[-1], y, f"span {row.kind}")
    for place in places[1:]:
        svg.line(place, y - 6, place, y + 6, f"span {row.kind}")
    if row.interval:
        svg.whisker((places[0], y), x(row.interval[0]), x(row.interval[1]), f"whisker {row.kind}")
    svg.mark(places[0], y, f"dot {row.kind}")
    taken = -1e9
    for (name, value), place in zip(row.values, places, strict=True):
        label = f"{value:.3g}" if name == "p50" else name
        half = width_of(label) / 2 * 0.9
        if place - half > taken:
            svg.text(place, y - 10, label, "value small" if name == "p50" else "tick small", "middle")
            taken = place + half
