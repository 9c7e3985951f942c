"""Class by class: recall with intervals, the confusion matrix, images a class, and the layers of an int8 graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from edgetl.report.accuracy import ClassScore, Scores
from edgetl.report.charts.svg import Scale, Svg, cut, room_for, ruler

WIDTH = 380.0
BARS = 24  # classes drawn; of more, those with the lowest figures


def recalls(first: Scores, second: Scores | None, names: tuple[str, str]) -> Markup:
    """Recall of each class, lowest first: `first` as a bar with its interval, `second` as a tick beside it."""
    ranked = sorted((one for one in first.classes if one.n), key=lambda one: (one.recall, one.label))[:BARS]
    other = {one.label: one for one in second.classes} if second else {}
    row, left = 24.0, room_for([one.label for one in ranked])
    height = 22 + row * len(ranked) + 42
    text = "; ".join(_said(one, other.get(one.label), names) for one in ranked)
    svg = Svg("recalls", "Recall by class, lowest first", text + ".", WIDTH, height)
    x = Scale(0, 100, left, WIDTH - 56)
    ruler(svg, x, 16, height - 42, "recall, % of the class's images")
    for index, one in enumerate(ranked):
        y = 22 + row * (index + 0.5)
        svg.text(left - 8, y + 4, cut(one.label, left - 8), "lab", "end")
        svg.add("rect", x=x(0), y=y - 6, width=max(0.5, x(100 * one.recall) - x(0)), height=12, class_="bar s1")
        svg.whisker((x(100 * one.recall), y), x(100 * one.recall_ci[0]), x(100 * one.recall_ci[1]), "whisker ink")
        beside = other.get(one.label)
        if beside is not None:
            at = x(100 * beside.recall)
            svg.line(at, y - 9, at, y + 9, "beside")
        svg.text(WIDTH - 2, y + 4, f"{100 * one.recall:.0f} / {one.n}", "value small", "end")
    svg.text(WIDTH - 2, 11, "% / images", "tick small", "end")
    return svg.done()


def _said(one: ClassScore, other: ClassScore | None, names: tuple[str, str]) -> str:
    low, high = one.recall_ci
    said = f"{one.label}: {100 * one.recall:.1f} % ({100 * low:.1f} to {100 * high:.1f}), n {one.n}"
    return said if other is None else f"{said}; {names[1]} {100 * other.recall:.1f} %"


def matrix(scores: Scores) -> Markup:
    """The confusion matrix whole: a row for each true class, the share of it in colour, images as figures."""
    labels = [one.label for one in scores.classes]
    side = max(17.0, min(44.0, 300.0 / len(labels)))
    left, top = room_for(labels, 110) + 18, room_for(labels, 84) + 24
    width, height = left + side * len(labels) + 6, top + side * len(labels) + 6
    pairs = "; ".join(f"{true} taken for {answer}: {n} of {of}" for true, answer, n, of in scores.confusions(5))
    text = f"{scores.n} {scores.split} images, {scores.mistakes} mistaken. {pairs or 'No mistake'}."
    svg = Svg("matrix", "Confusion matrix", text, max(width, 200), height)
    for i, label in enumerate(labels):
        at = side * (i + 0.5)
        svg.text(left - 6, top + at + 4, cut(label, left - 24), "lab small", "end")
        x = left + at + 4
        svg.text(x, top - 6, cut(label, top - 26), "lab small", transform=f"rotate(-90 {x:.1f} {top - 6:.1f})")
    for true, answer, n in scores.cells:
        _cell(
            svg, (left + side * answer, top + side * true, side), n, n / max(1, scores.classes[true].n), true == answer
        )
    svg.add("rect", x=left, y=top, width=side * len(labels), height=side * len(labels), class_="frame")
    svg.text(left, 12, "answer", "name")
    y = top + side * len(labels) / 2
    svg.text(12, y, "true class", "name", "middle", transform=f"rotate(-90 12 {y:.1f})")
    return svg.done()


def _cell(svg: Svg, place: tuple[float, float, float], n: int, share: float, right: bool) -> None:
    x, y, side = place
    kind = "right" if right else "wrong"
    opacity = f"{min(1.0, 0.12 + 0.88 * share):.2f}"
    svg.add("rect", x=x + 0.5, y=y + 0.5, width=side - 1, height=side - 1, class_=f"cell {kind}", fill_opacity=opacity)
    if len(str(n)) * 7 <= side:
        svg.text(x + side / 2, y + side / 2 + 4, str(n), "on small" if share > 0.5 else "lab small", "middle")


def counts(labels: Sequence[str], found: Mapping[str, Sequence[int]]) -> Markup | None:
    """Images a class, the splits side by side in one bar; of many classes those with the fewest."""
    if not found:
        return None
    totals = [sum(own[i] for own in found.values()) for i in range(len(labels))]
    order = list(range(len(labels)))
    if len(labels) > BARS:
        order = sorted(order, key=lambda i: totals[i])[:BARS]
    row, left = 22.0, room_for([labels[i] for i in order])
    height = 26 + row * len(order) + 42
    text = "; ".join(labels[i] + ": " + ", ".join(f"{name} {own[i]}" for name, own in found.items()) for i in order)
    svg = Svg("counts", "Images by class and split", text + ".", WIDTH, height)
    x = Scale(0, max(1, *(totals[i] for i in order)), left, WIDTH - 44)
    ruler(svg, x, 20, height - 42, "images")
    _key(svg, left, list(found))
    for index, i in enumerate(order):
        y, start = 26 + row * (index + 0.5), 0
        svg.text(left - 8, y + 4, cut(labels[i], left - 8), "lab", "end")
        for split, own in enumerate(found.values(), start=1):
            if own[i]:
                wide = x(start + own[i]) - x(start)
                svg.add("rect", x=x(start), y=y - 7, width=wide, height=14, class_=f"bar s{split}")
            start += own[i]
        svg.text(x(start) + 5, y + 4, str(totals[i]), "value small")
    return svg.done()


def _key(svg: Svg, left: float, names: Sequence[str]) -> None:
    for index, name in enumerate(names, start=1):
        at = left + 62 * (index - 1)
        svg.add("rect", x=at, y=4, width=10, height=10, class_=f"bar s{index}")
        svg.text(at + 14, 13, name, "tick")


def layers(names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> Markup | None:
    """Quantisation noise of each layer alone, in dB: long bars are little noise; kept in float is marked."""
    known = [(n, r) for n, r in zip(names, rows, strict=True) if isinstance(r.get("sqnr_db"), int | float)]
    if not known:
        return None
    row, left = 22.0, room_for(names, 140)
    height = 14 + row * len(known) + 42
    text = "; ".join(f"{n}: {r['sqnr_db']:.1f} dB" + (", kept in float" if r["kept_float"] else "") for n, r in known)
    svg = Svg("layers", "Signal to quantisation noise by layer", text + ".", WIDTH, height)
    values = [float(r["sqnr_db"]) for _, r in known]  # type: ignore[arg-type]  # they are numbers: known
    x = Scale(min(0.0, *values), max(1.0, *values), left, WIDTH - 44)
    ruler(svg, x, 8, height - 42, "signal to quantisation noise, dB (more is better)")
    for index, ((name, found), value) in enumerate(zip(known, values, strict=True)):
        y = 14 + row * (index + 0.5)
        svg.text(left - 8, y + 4, cut(name, left - 8), "lab small", "end")
        low, high = sorted((x(0), x(value)))
        kind = "bar s2" if found["kept_float"] else "bar s1"
        svg.add("rect", x=low, y=y - 6, width=max(0.5, high - low), height=12, class_=kind)
        svg.text(high + 5, y + 4, f"{value:.1f}" + ("*" if found["kept_float"] else ""), "value small")
    return svg.done()
