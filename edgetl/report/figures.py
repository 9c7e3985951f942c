"""Which pictures a page has, made from its facts; None where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from edgetl.report import accuracy, words
from edgetl.report.charts import classes, lines, variants
from edgetl.report.charts.variants import Line, Times
from edgetl.report.facts import Facts
from edgetl.report.rows import Measured
from edgetl.report.variants import Point, pareto
from edgetl.report.xray import shortened

LAYERS = 14
NAMES = 22  # characters of a layer's name in a picture
PERCENTILES = ("p50", "p90", "p95", "p99")


def figures(facts: Facts) -> dict[str, Markup | None]:
    """Every picture by its name."""
    shown = one_each(facts.measured)
    return {
        **_training(facts),
        **_scores(facts),
        "accuracy": _accuracy(shown),
        "drops": _drops(facts, shown),
        "speed": _front("front-speed", "Accuracy against speed", shown, "latency"),
        "size": _front("front-size", "Accuracy against size", shown, "size"),
        "latency": _percentiles(shown),
        "layers": _layers(facts),
        "counts": classes.counts(facts.data.labels, facts.data.counts),
    }


def one_each(found: Sequence[Measured]) -> list[Measured]:
    """One row a candidate and host, of its smallest batch, those that failed left out."""
    best: dict[tuple[str, str], Measured] = {}
    for one in sorted((m for m in found if m.ok), key=lambda m: m.row.batch):
        best.setdefault((one.host, one.candidate), one)
    return list(best.values())


def _training(facts: Facts) -> dict[str, Markup | None]:
    found = facts.training
    if found is None:
        return {}
    probe = found.probe.accuracy if found.probe else None
    n = found.tuned.n if found.tuned else 0
    compared = [
        Line(
            name,
            100 * one.accuracy,
            (100 * one.accuracy_ci[0], 100 * one.accuracy_ci[1]),
            kind,
            f"{100 * one.accuracy:.1f}",
            _share(one),
        )
        for name, kind, one in (("linear probe", "ref", found.probe), ("kept", "fp32", found.tuned))
        if one is not None
    ]
    return {
        "losses": lines.losses(found.history, found.best_epoch),
        "accuracies": lines.accuracies(found.history, found.best_epoch, probe, n),
        "probe": variants.intervals("probe", "Linear probe beside what was kept, on val", compared, "accuracy, %"),
        "budgets": lines.budgets(found.budgets, n),
    }


def _share(one: accuracy.Scores) -> str:
    return f"{words.percent(one.accuracy)} (95 % {words.between(one.accuracy_ci)}), n {one.n}"


def _scores(facts: Facts) -> dict[str, Markup | None]:
    if not facts.scores:
        return {}
    last = facts.scores[-1]
    beside = facts.scores[0] if len(facts.scores) > 1 else None
    drawn = bool(last.cells) and accuracy.is_whole(last)
    return {
        "matrix": classes.matrix(last) if drawn else None,
        "recalls": classes.recalls(last, beside, ("shipped", "reference")),
        "reliability": lines.reliability(facts.reliability, last.ece),
    }


def _accuracy(shown: Sequence[Measured]) -> Markup | None:
    found = [
        _line(one, 100 * one.row.accuracy, _hundred(one.row.accuracy_ci), f"{100 * one.row.accuracy:.1f}", _said(one))
        for one in shown
        if one.row.accuracy is not None
    ]
    return variants.intervals("accuracy", "Accuracy of every variant", found, "accuracy, %")


def _line(one: Measured, value: float, interval: tuple[float, float] | None, shown: str, said: str) -> Line:
    return Line(words.called(one), value, interval, words.kind(one), shown, said)


def _said(one: Measured) -> str:
    row = one.row
    return f"{words.percent(row.accuracy)} (95 % {words.between(row.accuracy_ci)}), n {row.n_images} {row.split}"


def _hundred(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def _drops(facts: Facts, shown: Sequence[Measured]) -> Markup | None:
    found = []
    for one in shown:
        drop = one.row.drop_pp
        if drop is None or one is facts.reference or one.row.backend == "torch":
            continue
        said = f"{words.points(drop)} points (95 % {words.range_pp(one.row.drop_ci_pp)}), n {one.row.n_images}"
        found.append(_line(one, drop, one.row.drop_ci_pp, words.points(drop), said))
    limits = sorted({v.contract.max_drop for v in facts.variants if v.contract})
    marks = [(0.0, "no change"), *((limit, f"allowed {limit:g}") for limit in limits[:1])]
    unit = "accuracy lost, percentage points (right is worse)"
    return variants.intervals("drops", "Accuracy lost against PyTorch fp32", found, unit, marks)


def _front(key: str, title: str, shown: Sequence[Measured], what: str) -> Markup | None:
    found = []
    for one in shown:
        row, cost = one.row, _cost(one, what)
        if row.accuracy is None or not cost:
            continue
        note = f"{words.milliseconds(cost)} ms" if what == "latency" else f"{cost:.2f} MB"
        found.append(Point(words.called(one), words.kind(one), row.accuracy, row.accuracy_ci, cost, note))
    found = _merged(found)
    best = pareto(found)
    points = [replace(point, front=front) for point, front in zip(found, best, strict=True)]
    unit = "median latency of one run, ms (log)" if what == "latency" else "file, MB (log)"
    return variants.front(key, title, points, unit)


def _merged(points: Sequence[Point]) -> list[Point]:
    """Points that lie on one place as one: the fp32 graphs of two profiles are one network."""
    places: dict[tuple[str, float, str], Point] = {}
    for point in points:
        key = (point.precision, point.accuracy, f"{point.cost:.2g}")
        there = places.get(key)
        places[key] = point if there is None else replace(there, name=_both(there.name, point.name))
    return list(places.values())


def _both(first: str, second: str) -> str:
    """ "fp32 cpu", "fp32 trt10" -> "fp32 cpu, trt10"."""
    word = first.split(" ", maxsplit=1)[0] + " "
    return f"{first}, {second.removeprefix(word)}"


def _cost(one: Measured, what: str) -> float | None:
    if what == "latency":
        return one.p50()
    return None if one.row.size_bytes is None else one.row.size_bytes / 1e6


def _percentiles(shown: Sequence[Measured]) -> Markup | None:
    rows = []
    for one in shown:
        found = one.row.latency_ms
        if not found:
            continue
        values = [(name, float(found[name] or 0)) for name in PERCENTILES if found.get(name)]
        if values:
            rows.append(Times(words.called(one), words.kind(one), values, p50_interval(one), int(found["n"] or 0)))
    return variants.percentiles(
        "latency", "Latency, array to array", rows, "ms a run (log); line: median to slowest percentile"
    )


def p50_interval(one: Measured) -> tuple[float, float] | None:
    """The interval of the median where the bench recorded one."""
    pair = (one.row.latency_ci_ms or {}).get("p50")
    return (float(pair[0]), float(pair[1])) if pair and min(pair) > 0 else None


def _layers(facts: Facts) -> Markup | None:
    if facts.layers is None:
        return None
    rows = facts.layers.rows[:LAYERS]
    return classes.layers(shortened([str(row["node"]) for row in rows], NAMES), rows)
