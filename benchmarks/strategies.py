"""The ways of transfer beside each other: flowers with all labels and with ten a class, three seeds, ImageNet weights.

    python -m benchmarks strategies
    EDGETL_BENCH_ONLY="10 labels" python -m benchmarks strategies      the cases whose name holds this text

A seed stands for the split as well as for everything random in the training. All strategies get the same files: train,
val and test as `edgetl finetune` draws them, or ten images a class of train and as many of val, with the whole test
split. What is kept was chosen on val; the tutorials' recipe (benchmarks/tutorial.py) is given its best epoch on val
too. The test split is only measured.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import cores, run_module
from benchmarks.data import Material, materials
from benchmarks.rows import Case, Row, row
from edgetl.images import SPLITS, Dataset, ReadOptions, draw_balanced, read_data

SIZE = 64  # px: the whole suite is to fit into 40 minutes of two cores
SEEDS = (0, 1, 2)
LABELS = {"10 labels a class": 10, "all labels": None}  # the cheap ones first
TUTORIAL = "full, the tutorials' recipe"
Values = dict[str, float | int | str | bool | None]
STRATEGIES = ("scratch", "linear-probe", "features", TUTORIAL, "full", "gradual", "lp-ft", "auto")


def run(quick: bool) -> Iterator[Row]:
    """A row for each number of labels, seed and strategy, as soon as it is there."""
    only = os.environ.get("EDGETL_BENCH_ONLY", "")
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        found = materials(Path(folder))
        material = next((m for m in found if m.source.name == "flowers5_small"), found[-1])
        for labels, per_class in LABELS.items():
            for seed in SEEDS[:1] if quick else SEEDS:
                names = {s: f"{material.source.name}, {labels}: {s}, seed {seed}" for s in STRATEGIES}
                wanted = [s for s in STRATEGIES if only in names[s]]
                if not wanted:
                    continue
                place = Path(folder) / f"{per_class}-{seed}"
                data = linked(material.source, place / "data", 4 if quick else per_class, seed, quick)
                counts: Values = {f"n_{split}": len(data.split(split)) for split in SPLITS}
                for strategy in wanted:
                    known: Values = {
                        "data": material.source.name,
                        "labels": labels,
                        "strategy": strategy,
                        "seed": seed,
                    }
                    values = measured(strategy, material, place, seed, quick)
                    yield row(Case("strategies", names[strategy], quick), cores(), {**known, **counts, **values})


def linked(source: Path, to: Path, per_class: int | None, seed: int, quick: bool = False) -> Dataset:
    """`source` as links in `to`/{train,val,test}/<class>/: `per_class` images of train and of val, the whole test.

    With `quick` there are as few of test.
    """
    data = read_data(str(source), ReadOptions(seed=seed))
    for split in SPLITS:
        samples = list(data.split(split))
        if per_class is not None and (quick or split != "test"):
            samples = draw_balanced(samples, per_class * len(data.labels), seed)
        for sample in samples:
            link = to / split / data.labels[sample.target] / Path(sample.path).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(data.root / sample.path)
    return read_data(str(to), ReadOptions(seed=seed))


def measured(strategy: str, material: Material, place: Path, seed: int, quick: bool) -> Values:
    """The row's values for one strategy on the links in `place`."""
    size = min(SIZE, material.size)
    shared = {"--backbone": material.backbone, "--weights": material.weights, "--seed": seed}
    if strategy == TUTORIAL:
        workers = max(0, cores() - 1)
        given = {**shared, "--size": size, "--epochs": 1 if quick else 10, "--workers": workers}
        began = time.perf_counter()
        epochs = run_module("benchmarks.tutorial", str(place / "data"), "--test", *_words(given), threads=cores())
        best = max(epochs, key=lambda epoch: epoch["val_accuracy"])  # the first of equals
        return {
            "chosen": "full",
            "alpha": None,
            "val_accuracy": round(best["val_accuracy"], 4),
            "probe_val_accuracy": None,
            "test_accuracy": round(best["test_accuracy"], 4),
            "seconds": round(time.perf_counter() - began, 1),
        }
    given = {**shared, "--image-size": size, "--strategy": strategy, "--to": place / strategy}
    if strategy == "scratch":
        given["--weights"] = "none"
    if quick and strategy not in ("linear-probe", "features"):
        given["--epochs"] = 1
    ours = run_module("edgetl", "-q", "finetune", str(place / "data"), *_words(given), "--json", threads=cores())
    return {
        "chosen": ours["chosen"],
        "alpha": ours["selection"]["alpha"],
        "val_accuracy": round(ours["val"]["accuracy"], 4),
        "probe_val_accuracy": round(ours["linear_probe"]["accuracy"], 4),
        "test_accuracy": round(ours["test"]["accuracy"], 4),
        "seconds": round(ours["seconds"], 1),
    }


def _words(options: dict[str, Any]) -> list[str]:
    return [text for name, value in options.items() for text in (name, str(value))]
