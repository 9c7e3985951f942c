"""Pretrain the embedded backbone: SmallNet on glyphs of machine fonts, in about ten minutes on one CPU core.

    python -m models.make_embedded                 # writes edgetl/embedded/smallnet.{safetensors,json}
    python -m models.make_embedded --steps 50 --to /elsewhere

The same seed, library versions and processor give the same bytes: one thread computes, and each step's
views come from a generator seeded by (seed, step).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from edgetl.embedded import NAME
from edgetl.spec import Preprocess
from edgetl.transfer.small import SmallNet, smallnet
from models import augment
from models.glyphs import AILERON, TEX_FONTS, UNICODE_FONTS, Glyphs, render

HELD_OUT_FONT = "STIXGeneralItalic"  # never trained on: the card's accuracy on a font not seen
PREPROCESS = Preprocess(size=augment.SIZE, resize=augment.SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast; AdamW under one cycle of the learning rate (SGD learnt half as much in 300 steps)."""

    seed: int = 0
    steps: int = 2800
    batch: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1


def batches(masks: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> Iterator[Batch]:
    """One batch of fresh views a step: float32 (B, 3, 32, 32) normalised, and (B,) classes drawn evenly."""
    by_class = [torch.nonzero(targets == c).squeeze(1) for c in range(int(targets.max()) + 1)]
    for step in range(recipe.steps):
        rng = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        classes = torch.randint(len(by_class), (recipe.batch,), generator=rng)
        picks = torch.rand(recipe.batch, generator=rng)
        index = torch.stack(
            [by_class[c][int(p * len(by_class[c]))] for c, p in zip(classes.tolist(), picks.tolist(), strict=True)]
        )
        yield (augment.view(masks[index], rng) - 0.5) / 0.5, classes


def ahead(source: Iterator[Batch]) -> Iterator[Batch]:
    """`source`, computed in a thread of its own a few batches ahead; the order stays."""
    ready: queue.Queue[Batch | None] = queue.Queue(maxsize=8)

    def produce() -> None:
        for batch in source:
            ready.put(batch)
        ready.put(None)

    threading.Thread(target=produce, daemon=True).start()
    while (batch := ready.get()) is not None:
        yield batch


def pretrain(masks: torch.Tensor, targets: torch.Tensor, recipe: Recipe) -> SmallNet:
    """Train from random weights; the result is in eval mode."""
    torch.manual_seed(recipe.seed)
    net = smallnet(int(targets.max()) + 1).to(memory_format=torch.channels_last).train()
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]  # BatchNorm and the bias: decay would only blur them
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=recipe.steps, pct_start=0.15)
    started, loss_sum = time.monotonic(), 0.0
    for step, (images, classes) in enumerate(ahead(batches(masks, targets, recipe)), 1):
        logits = net(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, classes, label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()
        schedule.step()
        loss_sum += loss.item()
        if step % 100 == 0 or step == recipe.steps:
            mean, seconds = loss_sum / ((step - 1) % 100 + 1), time.monotonic() - started
            print(f"step {step}/{recipe.steps}  loss {mean:.3f}  {seconds:.0f} s", flush=True)
            loss_sum = 0.0
    return net.eval()


@torch.no_grad()
def accuracy(net: SmallNet, masks: torch.Tensor, targets: torch.Tensor, seed: int) -> float:
    """Share of right answers on one random view of each mask."""
    hits = 0
    rng = torch.Generator().manual_seed(seed)
    for index in torch.split(torch.arange(len(masks)), 128):
        images = (augment.view(masks[index], rng) - 0.5) / 0.5
        hits += int((net(images).argmax(1) == targets[index]).sum())
    return hits / len(masks)


def make(to: Path, recipe: Recipe) -> dict[str, Any]:
    """Render, train, and write `<to>/smallnet.safetensors` with its card; returns the card."""
    started = time.monotonic()
    glyphs = render()
    masks, targets = torch.from_numpy(glyphs.masks), torch.from_numpy(glyphs.targets)
    held = torch.from_numpy(np.array([font == HELD_OUT_FONT for font in glyphs.fonts]))
    net = pretrain(masks[~held], targets[~held], recipe)
    weights = to / (NAME + ".safetensors")
    to.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, weights)
    weights.chmod(0o644)  # safetensors writes it for the owner alone, and it goes into a wheel
    figures = {
        "accuracy_on_new_views": round(accuracy(net, masks[~held], targets[~held], seed=10**9), 4),
        "accuracy_on_a_font_not_seen": round(accuracy(net, masks[held], targets[held], seed=10**9), 4),
        "views_seen": recipe.steps * recipe.batch,
        "seconds": round(time.monotonic() - started),
    }
    described = card(glyphs, recipe, weights, figures)
    (to / (NAME + ".json")).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return described


def card(glyphs: Glyphs, recipe: Recipe, weights: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """What travels beside the weights."""
    return {
        "backbone": NAME,
        "backbone_args": {},
        "num_classes": len(glyphs.labels),
        "labels": list(glyphs.labels),
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bytes": weights.stat().st_size,
        "preprocess": PREPROCESS.to_json(),
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
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="pretrain the embedded backbone on machine fonts")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "edgetl/embedded", metavar="DIR")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(make(options.to, Recipe(seed=options.seed, steps=options.steps))["training"]))


if __name__ == "__main__":
    main()
