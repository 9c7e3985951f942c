"""`--label-budget 5,10,25`: the learning curve, labels a class against accuracy on val. How many labels do I need?

Each budget is drawn several times, and in one draw a smaller budget is part of a larger one, so that what more labels
bring is not blurred by which labels they are. All of it runs on the frozen features of the run; a strategy that trains
is trained anew for each budget and draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetl.bundle import atomic_json, read_json, sweep
from edgetl.errors import InputError
from edgetl.images import Dataset, draw_balanced
from edgetl.stats import Z95, student, wilson
from edgetl.transfer import large
from edgetl.transfer.division import divided
from edgetl.transfer.fit import fit, probed
from edgetl.transfer.run import Run

PROBE_DRAWS = 5
TRAINED_DRAWS = 3  # of a strategy that trains: each costs a training run
PROBE = "linear_probe"
POINT = 0.01  # a doubling of the labels that brings less than this is not worth much

Right = npt.NDArray[np.float64]  # (draws, images of val): 1 where the answer is right


def check(data: Dataset, budgets: Sequence[int]) -> None:
    """Raise InputError where a class has fewer different training images than the largest budget."""
    different: list[set[str]] = [set() for _ in data.labels]
    for sample in data.split("train"):
        different[sample.target].add(sample.digest)
    found, label = min((len(digests), label) for digests, label in zip(different, data.labels, strict=True))
    if found < budgets[-1]:
        raise InputError(
            "a label budget above what there is",
            f"{budgets[-1]} labels a class, and {label} has {found} different training images",
            f"ask for {found} at most, or add images",
        )


def learning_curve(run: Run) -> dict[str, Any]:
    """`label_budget` of finetune's object; what a killed run measured is read, a training under way is continued."""
    budgets = run.options.label_budget
    check(run.data, budgets)
    folder = run.folder / "budgets"
    folder.mkdir(exist_ok=True)
    points: dict[str, list[Point]] = {PROBE: [], "strategy": []}
    for labels in budgets:
        drawn = [_measured(run, labels, draw) for draw in range(PROBE_DRAWS)]
        for name, found in points.items():
            found.append(Point(labels, np.array([row[name] for row in drawn if row[name] is not None], float)))
    classes = len(run.data.labels)
    return {
        "unit": "labels a class",
        "val_images": len(run.data.split("val")),
        "rows": [
            {"labels": b, "images": b * classes, **{name: points[name][i].to_json() for name in points}}
            for i, b in enumerate(budgets)
        ],
        **answer(points["strategy"], run.options.plan.name),
    }


def _measured(run: Run, labels: int, draw: int) -> dict[str, list[bool] | None]:
    """Which images of val are right with `labels` a class of one draw, by probe and strategy (None: not tried)."""
    part = run.folder / "budgets" / f"{labels}-{draw + 1}"
    done = part.with_suffix(".json")
    if done.is_file():
        sweep(part)
        return read_json(done, "result of a label budget")
    seed = run.options.seed + draw
    chosen = draw_balanced(run.data.split("train"), labels * len(run.data.labels), seed)
    data = replace(run.data, splits={"train": tuple(chosen), "val": run.data.split("val")})
    one = divided(run, data, part, f"{labels} labels a class, draw {draw + 1}")
    row: dict[str, list[bool] | None] = {"strategy": None}
    if draw < TRAINED_DRAWS or not run.options.plan.trains:
        found = fit(one)
        row["strategy"] = _right(found.val, one)
        row[PROBE] = _right(found.probe_val, one)
    else:
        alone = probed(one, large.competing(one))
        row[PROBE] = _right(alone.fitted.logits(alone.val), one)
    atomic_json(done, row)
    sweep(part)
    return row


def _right(logits: npt.NDArray[np.float32], run: Run) -> list[bool]:
    found: list[bool] = (logits.argmax(1) == run.targets("val")).tolist()
    return found


@dataclass(frozen=True)
class Point:
    """One budget: `right` (draws, N) says of each draw and each image of val whether the answer was right."""

    labels: int
    right: Right

    @property
    def accuracy(self) -> float:
        """Mean over the draws."""
        return float(self.right.mean())

    def to_json(self) -> dict[str, Any]:
        """Mean accuracy, its interval, the accuracy of each draw."""
        draws = self.right.mean(axis=1)
        low, high = mean_interval(self.right)
        spread = float(draws.std(ddof=1)) if len(draws) > 1 else None
        return {"accuracy": self.accuracy, "accuracy_sd": spread, "accuracy_ci": [low, high], "draws": draws.tolist()}


def mean_interval(right: Right) -> tuple[float, float]:
    """95 % interval of the mean accuracy of (draws, N): which images are in val, and which labels were drawn.

    Two sources that do not know of each other: Wilson's half-widths for N images, and Student's for the draws,
    added as the legs of a right triangle.
    """
    draws, n = right.shape
    mean = float(right.mean())
    low, high = wilson(round(mean * n), n)
    drawn = student(draws - 1) * float(right.mean(axis=1).std(ddof=1)) / draws**0.5 if draws > 1 else 0.0
    down, up = float(np.hypot(max(0.0, mean - low), drawn)), float(np.hypot(max(0.0, high - mean), drawn))
    return max(0.0, mean - down), min(1.0, mean + up)


def answer(points: Sequence[Point], name: str) -> dict[str, Any]:
    """How many labels are needed: what the last step brought, what the next doubling may bring, and both in words.

    {"last_gain": {"from", "to", "points", "points_ci"} (percentage points) | None, "power_law" | None, "verdict":
    "more" | "enough" | "unclear", "answer"}. "enough": the interval of the gain, a doubling, ends below one point.
    """
    last = points[-1]
    low, high = mean_interval(last.right)
    seen = f"{last.labels} labels a class: {name} is right on {last.accuracy:.1%} of val ({low:.1%} to {high:.1%})"
    if len(points) < 2:
        line = f"{seen}; give several budgets, such as 5,10,25,50, to see what more labels bring"
        return {"last_gain": None, "power_law": None, "verdict": "unclear", "answer": line}
    gain = last_gain(points[-2], last)
    low, high = (bound / np.log2(last.labels / points[-2].labels) for bound in gain["points_ci"])
    verdict = "enough" if high < 100 * POINT else "more" if low > 0 else "unclear"
    law = power_law(points)
    told = f"the step from {gain['from']} brought {gain['points']:+.1f} points ({_range(gain['points_ci'])})"
    expected = (
        ""
        if law is None
        else f"; {law['labels']} may bring it to {law['accuracy']:.1%}, if the curve goes on as it did"
    )
    return {
        "last_gain": gain,
        "power_law": law,
        "verdict": verdict,
        "answer": f"{seen}; {told}{expected}: {_WORDS[verdict]}",
    }


_WORDS = {
    "more": "more labels pay",
    "enough": "twice as many would bring less than a point",
    "unclear": "whether more labels pay cannot be told from these images",
}


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:+.1f} to {interval[1]:+.1f}"


def last_gain(before: Point, after: Point) -> dict[str, Any]:
    """What more labels brought, in percentage points: paired over the images of val and over the nested draws."""
    draws = min(len(before.right), len(after.right))
    change = after.right[:draws] - before.right[:draws]
    # One pair of each kind is added, as in stats.paired_difference: no change seen is not "never changes".
    each = np.append(change.mean(axis=0), [1.0, -1.0])
    images = float(each.std()) / len(each) ** 0.5
    drawn = student(draws - 1) * float(change.mean(axis=1).std(ddof=1)) / draws**0.5 if draws > 1 else 0.0
    half = float(np.hypot(Z95 * images, drawn))
    mean = float(change.mean())
    interval = [100 * max(-1.0, mean - half), 100 * min(1.0, mean + half)]
    return {"from": before.labels, "to": after.labels, "points": 100 * mean, "points_ci": interval}


def power_law(points: Sequence[Point]) -> dict[str, Any] | None:
    """error = a labels^-b by least squares of the logarithms (Hestness et al. 2017, section 3), and what it foretells.

    That is the accuracy with twice the labels of the last budget. None with fewer than three budgets, without an
    error, or where the error does not fall: nothing to draw on.
    """
    errors = np.array([1 - point.accuracy for point in points])
    if len(points) < 3 or (errors <= 0).any():
        return None
    slope, intercept = np.polyfit(np.log([point.labels for point in points]), np.log(errors), 1)
    if slope >= 0:
        return None
    labels = 2 * points[-1].labels
    error = float(np.exp(intercept + slope * np.log(labels)))
    return {"a": float(np.exp(intercept)), "b": float(-slope), "labels": labels, "accuracy": 1 - min(1.0, error)}
