"""Curves over epochs, labels against accuracy, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from edgetl.report.accuracy import Bin
from edgetl.report.charts.svg import Scale, Svg, apart, around, around_log, axes
from edgetl.report.training import Budget, Epoch

WIDTH, HEIGHT = 380.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 76.0, 30.0, 44.0

Points = Sequence[tuple[float, float]]


def _frame(key: str, title: str, text: str, right: float = RIGHT) -> tuple[Svg, tuple[float, float, float, float]]:
    return Svg(key, title, text, WIDTH, HEIGHT), (LEFT, WIDTH - right, HEIGHT - BOTTOM, TOP)


def _curves(
    key: str, title: str, text: str, series: Mapping[str, Points], names: tuple[str, str], best: float | None
) -> tuple[Svg, Scale, Scale]:
    svg, (left, right, bottom, top) = _frame(key, title, text)
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x, y = Scale(*around(xs, 0.03, 0.5), left, right), Scale(*around(ys, 0.1), bottom, top)
    epochs = Scale(x.low, x.high, left, right)
    axes(svg, epochs, y, names)
    if best is not None:
        svg.line(x(best), bottom, x(best), top, "mark-line")
        svg.text(x(best), top - 4, "kept", "tick", "middle")
    labels = apart([y(points[-1][1]) for points in series.values()], 15)
    for index, ((name, points), at) in enumerate(zip(series.items(), labels, strict=True), start=1):
        svg.path([(x(a), y(b)) for a, b in points], f"curve s{index}")
        for a, b in points:
            svg.add("circle", cx=x(a), cy=y(b), r=2.5, class_=f"dot s{index}")
        svg.text(right + 6, at + 4, name, f"lab t{index}")
    return svg, x, y


def losses(history: Sequence[Epoch], best: int | None) -> Markup | None:
    """Loss on train and val by epoch; None where none was recorded."""
    found = {"train": [(e.epoch, e.train_loss) for e in history], "val": [(e.epoch, e.val_loss) for e in history]}
    series = {name: [(float(x), float(y)) for x, y in points if y is not None] for name, points in found.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    said = "; ".join(f"{name} from {p[0][1]:.3f} to {p[-1][1]:.3f}" for name, p in series.items())
    text = f"Cross-entropy by epoch over {len(history)} epochs: {said}."
    svg, _, _ = _curves("losses", "Loss while training", text, series, ("epoch", "loss, nats"), _at(best))
    return svg.done()


def accuracies(history: Sequence[Epoch], best: int | None, probe: float | None, n: int) -> Markup | None:
    """Accuracy on val by epoch, in percent, with the linear probe as a line to beat."""
    points = [(float(e.epoch), 100 * e.val_accuracy) for e in history if e.val_accuracy is not None]
    if not points:
        return None
    beside = "" if probe is None else f" The linear probe before it has {100 * probe:.1f} %."
    text = f"Accuracy on {n} val images by epoch, from {points[0][1]:.1f} % to {points[-1][1]:.1f} %.{beside}"
    series: dict[str, Points] = {"fine-tuned": points}
    if probe is not None:
        series["probe"] = [(points[0][0], 100 * probe), (points[-1][0], 100 * probe)]
    svg, _, _ = _curves(
        "accuracies", "Accuracy on val while training", text, series, ("epoch", "accuracy, %"), _at(best)
    )
    return svg.done()


def _at(best: int | None) -> float | None:
    return float(best) if best else None


def budgets(found: Mapping[str, Sequence[Budget]], n: int) -> Markup | None:
    """Labels a class against accuracy on val, with intervals."""
    shown = {name.replace("_", " ").replace("strategy", "fine-tuned"): rows for name, rows in found.items() if rows}
    if not shown:
        return None
    rows = [row for own in shown.values() for row in own]
    said = "; ".join(
        f"{name}: " + ", ".join(f"{r.labels}: {100 * r.accuracy:.1f} %" for r in own) for name, own in shown.items()
    )
    svg, (left, right, bottom, top) = _frame("budgets", "How many labels are needed", f"On {n} val images. {said}.", 84)
    x = Scale(*around_log([float(r.labels) for r in rows], 1.2), left, right, log=True)
    y = Scale(*around([100 * v for r in rows for v in r.accuracy_ci]), bottom, top)
    axes(svg, x, y, ("labels a class", "accuracy, %"))
    labels = apart([y(100 * own[-1].accuracy) for own in shown.values()], 15)
    for index, ((name, own), at) in enumerate(zip(shown.items(), labels, strict=True), start=1):
        svg.path([(x(r.labels), y(100 * r.accuracy)) for r in own], f"curve s{index}")
        for r in own:
            low, high = (y(100 * v) for v in r.accuracy_ci)
            svg.whisker((x(r.labels), y(100 * r.accuracy)), low, high, f"whisker s{index}", upright=True)
            svg.add("circle", cx=x(r.labels), cy=y(100 * r.accuracy), r=3.5, class_=f"dot s{index}")
        svg.text(right + 6, at + 4, name, f"lab t{index}")
    return svg.done()


def reliability(bins: Sequence[Bin], ece: float | None) -> Markup | None:
    """How often answers of a confidence are right, with intervals; on the diagonal they are as often as they say."""
    if not bins:
        return None
    said = "; ".join(f"at {100 * b.confidence:.0f} % sure {100 * b.right:.0f} % right (n {b.n})" for b in bins)
    error = "" if ece is None else f" Expected calibration error {ece:.3f}."
    svg, (left, _, bottom, top) = _frame("reliability", "Confidence against correctness", said + "." + error)
    x, y = Scale(0, 100, left, left + bottom - top + 60), Scale(0, 100, bottom, top)
    axes(svg, x, y, ("confidence of the answer, %", "right, %"))
    svg.line(x(0), y(0), x(100), y(100), "mark-line")
    most = max(b.n for b in bins)
    for b in bins:
        at = (x(100 * b.confidence), y(100 * b.right))
        svg.whisker(at, y(100 * b.right_ci[0]), y(100 * b.right_ci[1]), "whisker s1", upright=True)
        svg.add("circle", cx=at[0], cy=at[1], r=2.5 + 4.5 * (b.n / most) ** 0.5, class_="dot s1")
    return svg.done()
