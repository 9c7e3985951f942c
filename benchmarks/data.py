"""The images that benchmarks run on: sample data where it is present, else the demo's digits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edgetl.embedded.digits import write_digits
from edgetl.images import SPLITS, Dataset, ReadOptions, draw_balanced, read_data

SAMPLES = Path(os.environ.get("EDGETL_SAMPLES", Path(__file__).resolve().parents[2] / "shared"))


@dataclass(frozen=True)
class Material:
    """A data set with the pretrained weights that suit it; `weights` is what `edgetl finetune --weights` takes."""

    name: str
    source: Path
    backbone: str
    weights: str
    size: int


def materials(scratch: Path) -> list[Material]:
    """What there is to measure on: never empty, since the digits ship with edgetl."""
    imagenet = SAMPLES / "weights/mobilenet_v2/mobilenet_v2-imagenet-coral-dequant.pth"
    out = []
    if imagenet.is_file():
        for name, size in (("cifar10_mini", 128), ("flowers5_small", 128)):
            folder = SAMPLES / "data" / name
            if folder.is_dir():
                out.append(Material(f"{name}, mobilenet_v2 at {size} px", folder, "mobilenet_v2", str(imagenet), size))
    digits = write_digits(scratch / "digits")
    return [*out, Material("digits, smallnet at 32 px", digits, "smallnet", "embedded", 32)]


def split_layout(source: Path, to: Path, at_most: int | None = None, seed: int = 0) -> Dataset:
    """`source` as links in `to`/{train,val,test}/<class>/, so that torchvision's ImageFolder sees edgetl's splits.

    `at_most` images a split, drawn evenly over the classes. Returns what edgetl reads there.
    """
    data = read_data(str(source), ReadOptions(seed=seed))
    for split in SPLITS:
        samples = data.split(split)
        for sample in samples if at_most is None else draw_balanced(samples, at_most, seed):
            link = to / split / data.labels[sample.target] / Path(sample.path).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(data.root / sample.path)
    return read_data(str(to), ReadOptions(seed=seed))
