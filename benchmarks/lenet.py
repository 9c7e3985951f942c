"""LeNet trained end to end on digits of one source with the losses of `--adapt` against another, as papers do.

20,000 numbers an image and half a million weights: a training of 700 steps takes seconds, so that every method can be
run with three seeds. Nothing here sees a label of the target but `accuracy`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from edgetl.images import ReadOptions, draw_balanced, read_data
from edgetl.transfer.adapt.losses import Codes, loss_of
from edgetl.transfer.adapt.methods import METHODS
from edgetl.transfer.recipe import ema_decay

SIZE = 28
STEPS, BATCH = 700, 64
LEARNING_RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
GAMMA, POWER = 0.001, 0.75  # lr(i) = lr (1 + GAMMA i)^-POWER, as the code of Long et al. 2018 has it


@dataclass(frozen=True)
class Digits:
    """pixels float32 (N, 1, 28, 28) in -1..1 and their classes int64 (N,)."""

    pixels: torch.Tensor
    targets: npt.NDArray[np.int64]


def digits(folder: Path, count: int, seed: int = 0) -> Digits:
    """A balanced, seeded draw of an image folder."""
    data = read_data(str(folder), ReadOptions(val_fraction=0.0, test_fraction=0.0))
    drawn = draw_balanced(data.all(), count, seed)
    pixels = np.stack([_grey(data.root / sample.path) for sample in drawn])
    return Digits(torch.from_numpy(pixels[:, None] / 127.5 - 1), np.array([sample.target for sample in drawn]))


def _grey(path: Path) -> npt.NDArray[np.float32]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)


class LeNet(nn.Module):
    """(B, 1, 28, 28) -> features (B, 500) and logits (B, C): two convolutions, two linear layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(800, 500), nn.ReLU()),
        )
        self.head = nn.Linear(500, classes)

    def forward(self, pixels: torch.Tensor) -> Codes:
        """Features and logits."""
        features = self.body(pixels)
        return Codes(features, self.head(features))


def trained(source: Digits, target: Digits, method: str, seed: int, steps: int = STEPS) -> LeNet:
    """A LeNet after the last step; `method` "none" is source-only training. The target's classes are not looked at.

    Its weights are averaged as `finetune --adapt` averages them (recipe.ema_decay: over the last tenth of the run or
    so): the end of a duel between features and discriminator is a place on its orbit, not its middle.
    """
    torch.manual_seed(seed)
    classes = int(source.targets.max()) + 1
    network = LeNet(classes)
    average = copy.deepcopy(network)
    loss = None if method == "none" else loss_of(method, 500, classes)
    parameters = [*network.parameters(), *(loss.parameters() if loss else ())]
    optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    labels = torch.from_numpy(source.targets)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 + GAMMA * step) ** -POWER
        ours, theirs = (torch.randint(len(side.pixels), (BATCH,)) for side in (source, target))
        if loss is None:
            total = functional.cross_entropy(network(source.pixels[ours]).logits, labels[ours])
        else:
            both = network(torch.cat([source.pixels[ours], target.pixels[theirs]]))
            codes = [Codes(both.features[part], both.logits[part]) for part in (slice(BATCH), slice(BATCH, None))]
            total = functional.cross_entropy(codes[0].logits, labels[ours])
            total = total + METHODS[method].weight * loss(*codes, step / steps)
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for kept, now in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(now, 1 - ema_decay(step + 1, steps))
    return average.eval()


def codes_of(network: LeNet, side: Digits) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(features (N, 500), logits (N, C)) of a set."""
    with torch.inference_mode():
        parts = [network(side.pixels[start : start + 500]) for start in range(0, len(side.pixels), 500)]
    return tuple(torch.cat(found).numpy() for found in zip(*parts, strict=True))  # type: ignore[return-value]
