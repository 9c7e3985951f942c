"""What a teacher brings: flowers with ten labels a class, into a smaller network, with the other images unlabelled.

    python -m benchmarks distillation
    EDGETL_BENCH_ONLY="seed 0" python -m benchmarks distillation      the cases whose name holds this text

The teacher is lp-ft with all labels of train; the student gets ten a class, and with unlabelled images all of train
without its labels. Teacher and student have the same splits, so the teacher has seen no image of test. A seed stands
for the split, the labels that are drawn and everything random in the training.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import cores, run_module
from benchmarks.data import SAMPLES, Material, materials
from benchmarks.rows import Case, Row, row
from benchmarks.strategies import SEEDS, SIZE, linked

LABELS = 10  # a class
ALONE, TAUGHT, UNLABELLED = "no teacher", "teacher", "teacher and unlabelled images"
Options = dict[str, Any]


def run(quick: bool) -> Iterator[Row]:
    """A row for each seed and way of teaching, as soon as it is there."""
    only = os.environ.get("EDGETL_BENCH_ONLY", "")
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        found = materials(Path(folder))
        material = next((m for m in found if m.source.name == "flowers5_small"), found[-1])
        name, network = _student(material)
        size = min(SIZE, material.size)
        for seed in SEEDS[:1] if quick else SEEDS:
            cases = {
                how: f"{material.source.name}, {LABELS} labels a class, {name} at {size} px: {how}, seed {seed}"
                for how in (ALONE, TAUGHT, UNLABELLED)
            }
            wanted = [how for how in cases if only in cases[how]]
            if not wanted:
                continue
            place = Path(folder) / str(seed)
            whole = linked(material.source, place / "whole", 8 if quick else None, seed, quick)
            few = linked(material.source, place / "few", 4 if quick else LABELS, seed, quick)
            shared: Options = {"--seed": seed, "--image-size": size, **({"--epochs": 1} if quick else {})}
            teacher = {"--backbone": material.backbone, "--weights": material.weights, "--to": place / "teacher"}
            taught = _finetune(place / "whole", {**shared, **teacher})
            ways: dict[str, Options] = {ALONE: {}, TAUGHT: {"--teacher": place / "teacher"}}
            ways[UNLABELLED] = {**ways[TAUGHT], "--unlabelled": place / "whole/train"}
            for index, how in enumerate(wanted):
                ours = _finetune(place / "few", {**shared, **network, **ways[how], "--to": place / str(index)})
                values = {
                    "data": material.source.name,
                    "student": name,
                    "teacher": material.backbone,
                    "how": how,
                    "seed": seed,
                    "n_train": len(few.split("train")),
                    "n_unlabelled": len(whole.split("train")) if how == UNLABELLED else 0,
                    "n_test": len(few.split("test")),
                    "chosen": ours["chosen"],
                    "val_accuracy": round(ours["val"]["accuracy"], 4),
                    "test_accuracy": round(ours["test"]["accuracy"], 4),
                    "teacher_test_accuracy": round(taught["test"]["accuracy"], 4),
                    "seconds": round(ours["seconds"], 1),
                }
                yield row(Case("distillation", cases[how], quick), cores(), values)


def _student(material: Material) -> tuple[str, Options]:
    """SqueezeNet, a third of the teacher's parameters, where its weights are there; else the teacher's own network."""
    weights = SAMPLES / "weights/squeezenet1_0/squeezenet1_0-imagenet-deepcompression.pth"
    if material.backbone == "mobilenet_v2" and weights.is_file():
        return "squeezenet1_0", {"--backbone": "squeezenet1_0", "--weights": weights}
    return material.backbone, {"--backbone": material.backbone, "--weights": material.weights}


def _finetune(data: Path, options: Options) -> dict[str, Any]:
    words = [str(word) for pair in options.items() for word in pair]
    found: dict[str, Any] = run_module("edgetl", "-q", "finetune", str(data), *words, "--json", threads=cores())
    return found
