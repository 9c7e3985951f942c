"""Pretrain the embedded backbone: SmallNet on glyphs of machine fonts, by `edgetl pretrain`'s own stage.

    python -m models.make_embedded                 # writes edgetl/embedded/smallnet.{safetensors,json}
    python -m models.make_embedded --epochs 2 --to /elsewhere

The glyphs become an image set; what differs from the command are the random views of them (models/augment.py). The
same seed, library versions and processor give the same bytes: one thread computes, and each view is a function of
(seed, epoch, glyph).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file

from edgetl.embedded import NAME
from edgetl.images import Dataset, Sample, read_data
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Preprocess
from edgetl.transfer import FinetuneOptions, weights_file
from edgetl.transfer.augment import stream_seed
from edgetl.transfer.network import Deployed
from edgetl.transfer.pretrain import pretrain
from edgetl.transfer.small import smallnet
from models import augment
from models.glyphs import AILERON, TEX_FONTS, UNICODE_FONTS, Glyphs, render

HELD_OUT_FONT = "STIXGeneralItalic"  # never trained on: val, and the card's accuracy on a font not seen
JUDGED_VIEWS = 10  # of each glyph, for the figures: of the 188 of that font one view each is within 6 points by chance
VAL_VIEWS = 4  # of each of its glyphs: plain, the 188 are too few and too easy to tell two epochs apart


@dataclass(frozen=True)
class Recipe:
    """How long and how fast; the rest is the strategy "scratch"."""

    seed: int = 0
    epochs: int = 112
    batch: int = 128
    lr: float = 4e-3

    def options(self) -> FinetuneOptions:
        """The same as options of `edgetl pretrain`; glyphs of two fonts may well look alike."""
        return FinetuneOptions(
            backbone=NAME,
            weights="none",
            strategy="scratch",
            epochs=self.epochs,
            batch_size=self.batch,
            lr=self.lr,
            seed=self.seed,
            device="cpu",
            amp="off",
            near_duplicates="ignore",
            overwrite=True,
        )


def _views(mask: torch.Tensor, rng: torch.Generator) -> list[npt.NDArray[np.uint8]]:
    """VAL_VIEWS random views of a mask (64, 64), uint8 (32, 32, 3) each."""
    return list(_pixels(augment.view(mask.expand(VAL_VIEWS, -1, -1), rng)))


def _pixels(views: torch.Tensor) -> npt.NDArray[np.uint8]:
    """(B, 3, S, S) in 0-1 as uint8 (B, S, S, 3)."""
    return np.asarray(views.mul(255).round().permute(0, 2, 3, 1).to(torch.uint8).numpy())


class GlyphViews:
    """Callable (samples, epoch) -> uint8 (B, 32, 32, 3): one view of each glyph, from its own mask of 64 px."""

    def __init__(self, data: Dataset, seed: int) -> None:
        self._masks = {s.digest: _mask(data.root / s.path) for s in data.split("train")}
        self._seed = seed

    def __call__(self, samples: Sequence[Sample], epoch: int) -> npt.NDArray[np.uint8]:
        """The views of this epoch."""
        return np.concatenate([self._view(sample, epoch) for sample in samples])

    def _view(self, sample: Sample, epoch: int) -> npt.NDArray[np.uint8]:
        rng = torch.Generator().manual_seed(stream_seed(self._seed, "glyph", epoch, sample.digest))
        return _pixels(augment.view(self._masks[sample.digest], rng))


def _mask(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("L")))[None]


def write_images(glyphs: Glyphs, folder: Path) -> Dataset:
    """The glyphs as image files with a CSV, read as any DATA is. The class is the character.

    Of one font there are random views in place of the masks: val.
    """
    rng = torch.Generator().manual_seed(stream_seed(0, "val views"))
    with (folder / "glyphs.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "label", "split"))
        for index, (mask, target, font) in enumerate(zip(glyphs.masks, glyphs.targets, glyphs.fonts, strict=True)):
            held = font == HELD_OUT_FONT
            for number, pixels in enumerate(_views(torch.from_numpy(mask), rng) if held else [mask]):
                name = f"{index:05}-{font}-{number}.png"
                Image.fromarray(pixels).save(folder / name)
                rows.writerow((name, glyphs.labels[target], "val" if held else "train"))
    return read_data(str(folder / "glyphs.csv"))


@torch.no_grad()
def accuracy(net: Deployed, masks: torch.Tensor, targets: torch.Tensor, seed: int, views: int = JUDGED_VIEWS) -> float:
    """Share of right answers on `views` random views of each mask."""
    hits = 0
    rng = torch.Generator().manual_seed(seed)
    for index in torch.split(torch.arange(len(masks)).repeat(views), 128):
        images = augment.view(masks[index], rng) * 255
        hits += int((net(images).argmax(1) == targets[index]).sum())
    return hits / len(masks) / views


def make(to: Path, recipe: Recipe, glyphs: Glyphs | None = None, monitor: Monitor = SILENT) -> dict[str, Any]:
    """Render, pretrain, and write `<to>/smallnet.safetensors` with its card; returns the card."""
    glyphs = glyphs or render()
    to.mkdir(parents=True, exist_ok=True)
    weights = to / (NAME + ".safetensors")
    with tempfile.TemporaryDirectory() as folder:
        data = write_images(glyphs, Path(folder))
        views = GlyphViews(data, recipe.seed)
        made = pretrain(data, weights, recipe.options(), monitor, lambda start: views)
    weights.chmod(0o644)  # it goes into a wheel
    found = weights_file.card_of(weights)
    assert found is not None  # just written
    figures = {**_figures(weights, found, glyphs), "epochs_run": made["epochs_run"], "seconds": round(made["seconds"])}
    described = card(glyphs, recipe, weights, found.preprocess, figures)
    (to / (NAME + ".json")).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return described


def _figures(weights: Path, found: weights_file.Card, glyphs: Glyphs) -> dict[str, float]:
    backbone = smallnet(len(found.labels))
    backbone.load_state_dict(load_file(weights))
    net = Deployed(backbone, found.preprocess).eval()
    masks = torch.from_numpy(glyphs.masks)
    place = {label: i for i, label in enumerate(found.labels)}
    targets = torch.tensor([place[glyphs.labels[t]] for t in glyphs.targets])
    held = torch.from_numpy(np.array([font == HELD_OUT_FONT for font in glyphs.fonts]))
    return {
        "accuracy_on_new_views": round(accuracy(net, masks[~held], targets[~held], seed=10**9), 4),
        "accuracy_on_a_font_not_seen": round(accuracy(net, masks[held], targets[held], seed=10**9), 4),
    }


def card(
    glyphs: Glyphs, recipe: Recipe, weights: Path, preprocess: Preprocess, figures: dict[str, Any]
) -> dict[str, Any]:
    """What travels beside the weights."""
    return {
        "backbone": NAME,
        "backbone_args": {},
        "num_classes": len(glyphs.labels),
        "labels": sorted(glyphs.labels),
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bytes": weights.stat().st_size,
        "preprocess": preprocess.to_json(),
        "data": {
            "what": "glyphs rendered from fonts (letters of three scripts, digits, signs); no handwriting",
            "masks": len(glyphs.masks),
            "fonts": [*UNICODE_FONTS, *TEX_FONTS, AILERON],
            "held_out_font": HELD_OUT_FONT,
        },
        "training": {**asdict(recipe), **figures},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "pillow", "matplotlib")},
        "command": "python -m models.make_embedded",
        "licence": "Apache-2.0",
    }


def main() -> None:
    """Command line."""
    from rich.console import Console

    from edgetl.cli.console import ConsoleMonitor  # shows the epochs as they go by

    defaults = Recipe()
    parser = argparse.ArgumentParser(description="pretrain the embedded backbone on machine fonts")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "edgetl/embedded", metavar="DIR")
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    options = parser.parse_args()
    torch.set_num_threads(1)
    monitor = ConsoleMonitor(Console(stderr=True), quiet=False)
    print(json.dumps(make(options.to, Recipe(seed=options.seed, epochs=options.epochs), monitor=monitor)["training"]))


if __name__ == "__main__":
    main()
