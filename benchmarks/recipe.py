"""How long `edgetl finetune` takes to the tutorial recipe's best validation accuracy: same data, splits and cores.

Both run in processes of their own and are timed from after their imports. The recipe's time ends with the epoch
that reached its best; finetune's with its own first epoch that did, and everything that is not an epoch (the
probe, every validation, the test, the bundle written) is counted before it. Where finetune never reached the
recipe's best there is no ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import cores, run_module
from benchmarks.data import Material, materials, split_layout
from benchmarks.rows import Case, Row, row
from edgetl.bundle import Bundle

STRATEGIES = ("linear-probe", "lp-ft")


def run(quick: bool) -> Iterator[Row]:
    """A row for each data set and strategy."""
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        scratch = Path(folder)
        found = materials(scratch)
        for index, material in enumerate(found[-1:] if quick else found):
            place = scratch / str(index)
            data = split_layout(material.source, place / "data", 40 if quick else None)
            counts = {"n_train": len(data.split("train")), "n_val": len(data.split("val"))}
            tutorial = _tutorial(material, place / "data", epochs=1 if quick else 10)
            for strategy in STRATEGIES:
                ours = _finetune(material, place, strategy, quick)
                history = Bundle.open(place / strategy).manifest["training"]["history"]
                case = Case("recipe", f"{material.name}, {strategy}", quick)
                yield row(case, cores(), {**counts, **compared(tutorial, ours, history)})


def compared(epochs: list[dict[str, Any]], ours: dict[str, Any], history: list[dict[str, Any]]) -> dict[str, Any]:
    """The row's values from the recipe's epochs, finetune's JSON object and finetune's epochs."""
    best = max(range(len(epochs)), key=lambda i: epochs[i]["val_accuracy"])  # the first of equals
    reached = seconds_to(epochs[best]["val_accuracy"], ours, history)
    return {
        "recipe_best_val_accuracy": round(epochs[best]["val_accuracy"], 4),
        "recipe_best_epoch": best + 1,
        "recipe_to_best_s": round(epochs[best]["seconds"], 2),
        "recipe_total_s": round(epochs[-1]["seconds"], 2),
        "strategy": ours["strategy"],
        "chosen": ours["chosen"],
        "val_accuracy": round(ours["val"]["accuracy"], 4),
        "test_accuracy": None if ours["test"] is None else round(ours["test"]["accuracy"], 4),
        "finetune_s": round(ours["seconds"], 2),
        "finetune_to_recipes_best_s": None if reached is None else round(reached, 2),
        "ratio": None if reached is None else round(epochs[best]["seconds"] / reached, 2),
    }


def seconds_to(accuracy: float, ours: dict[str, Any], history: list[dict[str, Any]]) -> float | None:
    """Seconds until finetune's validation accuracy was at least `accuracy`; None: it never was.

    Only the training seconds of later epochs are taken off the command's time: an upper bound.
    """
    seconds = [float(epoch["seconds"]) for epoch in history]
    probe = ours["linear_probe"]["accuracy"] if ours["linear_probe"] else 0.0
    reached = [probe, *(epoch["val_accuracy"] for epoch in history)]
    first = next((i for i, value in enumerate(reached) if value >= accuracy), None)
    return None if first is None else float(ours["seconds"]) - sum(seconds[first:])


def _tutorial(material: Material, data: Path, epochs: int) -> list[dict[str, Any]]:
    options = {"backbone": material.backbone, "weights": material.weights, "size": material.size, "epochs": epochs}
    # One worker less than there are cores: the training process itself is busy on one.
    options["workers"] = max(0, cores() - 1)
    arguments = [text for name, value in options.items() for text in ("--" + name, str(value))]
    return list(run_module("benchmarks.tutorial", str(data), *arguments, threads=cores()))


def _finetune(material: Material, place: Path, strategy: str, quick: bool) -> dict[str, Any]:
    arguments = [str(place / "data"), "--to", str(place / strategy), "--backbone", material.backbone]
    arguments += ["--weights", material.weights, "--image-size", str(material.size), "--strategy", strategy]
    arguments += ["--epochs", "1"] if quick and strategy != "linear-probe" else []
    return dict(run_module("edgetl", "-q", "finetune", *arguments, "--json", threads=cores()))
