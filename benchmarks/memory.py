"""Peak memory, and whether it grows with the number of images: calibration (beside modelopt's max), finetune, bench.

Each figure is the peak resident set of a fresh process above its own baseline after all imports, so that a
library's size does not hide what the work takes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import cores, run_module
from benchmarks.data import SAMPLES, split_layout
from benchmarks.rows import Case, Row, row
from edgetl.embedded.digits import write_digits

FEW, MANY = 64, 512
QUICK_FEW, QUICK_MANY = 20, 40  # the digits have ten classes


@dataclass(frozen=True)
class _Setting:
    """One network on one data set, with `few` and `many` images a split in two folders."""

    name: str
    backbone: str
    size: int
    few: Path
    many: Path
    n_few: int
    n_many: int
    quick: bool


def run(quick: bool) -> Iterator[Row]:
    """A row for each piece of work; without sample images the demo's digits and backbone stand in."""
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        scratch = Path(folder)
        setting = _setting(scratch, quick)
        bundles = [scratch / "bundle-few", scratch / "bundle-many"]
        common = ["--backbone", setting.backbone, "--weights", "none", "--strategy", "full", "--epochs", "1"]
        # Left to itself finetune takes larger batches of larger sets, and that would be what is measured.
        common += ["--image-size", str(setting.size), "--batch-size", "32"]
        yield _pair(
            setting,
            "finetune, one epoch of everything",
            [["cli", "finetune", str(setting.few), "--to", str(bundles[0]), *common],
             ["cli", "finetune", str(setting.many), "--to", str(bundles[1]), *common]],
        )  # fmt: skip
        exported = run_module("edgetl", "-q", "export", str(bundles[0]), "--json", threads=cores())
        graph = str(bundles[0] / exported["artifacts"][0]["file"])
        yield _pair(
            setting,
            "bench, fp32",
            [["cli", "bench", str(bundles[0]), "--data", str(data), "--seconds", "0.2", "--backends", "onnxruntime"]
             for data in (setting.few, setting.many)],
        )  # fmt: skip
        yield from _calibration(setting, graph)


def _calibration(setting: _Setting, graph: str) -> Iterator[Row]:
    """Ours, then modelopt's max at the batch that ours chose."""
    jobs = [
        [graph, str(data), str(setting.size), str(n)]
        for data, n in ((setting.few, setting.n_few), (setting.many, setting.n_many))
    ]
    first = run_module("benchmarks.memory_child", "calibrate", *jobs[0], threads=cores())
    batch = str(first["batch"])
    yield _pair(setting, f"calibration, edgetl, batch {batch}", [["calibrate", *job] for job in jobs])
    yield _pair(setting, f"calibration, modelopt max, batch {batch}", [["modelopt", *job, batch] for job in jobs])


def _pair(setting: _Setting, what: str, jobs: list[list[str]]) -> Row:
    few, many = (run_module("benchmarks.memory_child", *job, threads=cores()) for job in jobs)
    case = Case("memory", f"{what}: {setting.name}", setting.quick)
    return row(case, cores(), grown(few, many, setting.n_few, setting.n_many))


def grown(few: dict[str, Any], many: dict[str, Any], n_few: int, n_many: int) -> dict[str, Any]:
    """The row's values from two answers of memory_child."""
    return {
        "n_few": n_few,
        "n_many": n_many,
        "few_mb": round(few["peak_mb"], 1),
        "many_mb": round(many["peak_mb"], 1),
        "growth_percent": round(100 * (many["peak_mb"] / few["peak_mb"] - 1), 1) if few["peak_mb"] > 0 else None,
        "baseline_mb": round(many["baseline_mb"], 1),
    }


def _setting(scratch: Path, quick: bool) -> _Setting:
    flowers = SAMPLES / "data/flowers5_small"
    if flowers.is_dir() and not quick:
        source, name, backbone, size = flowers, "flowers5_small, mobilenet_v2 at 128 px", "mobilenet_v2", 128
    else:
        source = write_digits(scratch / "digits", train_per_class=60, val_per_class=52)
        name, backbone, size = "digits, smallnet at 32 px", "smallnet", 32
    n_few, n_many = (QUICK_FEW, QUICK_MANY) if quick else (FEW, MANY)
    for n in (n_few, n_many):
        split_layout(source, scratch / str(n), n)
    return _Setting(name, backbone, size, scratch / str(n_few), scratch / str(n_many), n_few, n_many, quick)
