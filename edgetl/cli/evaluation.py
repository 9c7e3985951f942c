"""What `edgetl finetune` shows beside accuracies: mistakes, calibration, abstention, folds, the learning curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def show(console: Console, result: dict[str, Any]) -> None:
    """The lines and tables of finetune's object that it has something to say about."""
    if "folds" in result:
        _show_folds(console, result["folds"])
    if "label_budget" in result:
        _show_budget(console, result)
    name = "test" if result["test"] else "val"
    for line in (_mistakes(result[name], result["labels"], name), *_calibration(result["confidence"])):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _mistakes(found: dict[str, Any], labels: list[str], name: str) -> str:
    from edgetl.measure.score import confusions

    pairs = "; ".join(f"{true} taken for {answer} ({n})" for true, answer, n in confusions(found, labels))
    return f"most frequent mistakes on {name}: {pairs}" if pairs else f"no mistake on {name}"


def _calibration(confidence: dict[str, Any]) -> list[str]:
    on = confidence["test"] or confidence["val"]
    where = f"{'test' if confidence['test'] else 'val'}, n {on['n']}"
    change = f"{on['ece']:.3f} to {on['ece_calibrated']:.3f}"
    lines = [f"calibration: temperature {confidence['temperature']:.2f} takes the error from {change} ({where})"]
    row = next((row for row in confidence["abstain"] if row["precision"] == confidence["precision"]), None)
    if row is not None and row["threshold"] is not None:
        line = f"abstaining below {row['threshold']:.3f} promises {row['precision']:.1%} of the answers right"
        seen = row["test"]
        if seen and seen["answered"]:
            line += f"; on test {seen['precision']:.1%} of {seen['answered']} ({seen['coverage']:.0%} answered)"
        lines.append(line)
    return lines


def _show_folds(console: Console, folds: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{folds['k']} folds, each image held out once", title_justify="left")
    for column in ("fold", "kept", "accuracy", "macro F1", "linear probe", "images"):
        table.add_column(column, justify="left" if column in ("fold", "kept") else "right")
    for row in folds["per_fold"]:
        figures = (f"{row[key]:.3f}" for key in ("accuracy", "macro_f1", "linear_probe"))
        table.add_row(str(row["fold"]), row["chosen"], *figures, str(row["n"]["held_out"]))
    means = ((folds, "accuracy"), (folds, "macro_f1"), (folds["linear_probe"], "accuracy"))
    spread = (f"{of[key]:.3f} ± {of[key + '_sd']:.3f}" for of, key in means)
    table.add_section()
    table.add_row("mean ± sd", "", *spread, str(folds["n"]))
    console.print(table)
    low, high = folds["accuracy_ci"]
    line = f"cross-validated accuracy {folds['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}): "
    console.print(line + "what a network made like this one gets right", highlight=False, soft_wrap=True)


def _show_budget(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    budget, strategy = result["label_budget"], result["strategy"]
    table = Table(title="Labels against accuracy on val", title_justify="left")
    shown = {"linear_probe": "linear probe"}
    if strategy != "linear-probe":
        shown["strategy"] = strategy
    for column in ("labels a class", "images", *shown.values()):
        table.add_column(column, justify="right")
    for row in budget["rows"]:
        table.add_row(str(row["labels"]), str(row["images"]), *(_mean(row[name]) for name in shown))
    whole = {"linear_probe": result["linear_probe"], "strategy": result["val"]}
    table.add_row("all there are", str(result["n"]["train"]), *(_mean(whole[name]) for name in shown))
    console.print(table)
    draws = " and ".join(str(len(budget["rows"][0][name]["draws"])) for name in shown)
    console.print(f"(mean of {draws} draws, 95 % interval; n {budget['val_images']})", highlight=False)
    console.print(budget["answer"], highlight=False, markup=False, soft_wrap=True)


def _mean(found: dict[str, Any]) -> str:
    low, high = found["accuracy_ci"]
    return f"{found['accuracy']:.3f} ({low:.3f} - {high:.3f})"
