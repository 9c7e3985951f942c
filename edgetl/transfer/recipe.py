"""How a training run is laid out: a pure function of the strategy, the options and the size of the set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from typing import Any

from torch import nn

from edgetl.transfer.backbones import BackboneRow, auxiliary_heads, head_of
from edgetl.transfer.options import FROZEN_STATISTICS_BELOW, FinetuneOptions

STAGES = 5  # depth groups with a learning rate each
WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 0.01
IMAGES_SEEN = 12_000  # what a default run passes through the network, within the bounds below
BATCHES = ((1500, 64), (400, 32), (0, 16))  # training images from which on, images a step
FEWEST_EPOCHS, MOST_EPOCHS = 4, 20
SLOWEST_STATISTICS = 0.1  # PyTorch's own momentum; MobileNetV3's 0.01 and MnasNet's 0.0003 suit 300 epochs of ImageNet


@dataclass(frozen=True)
class Recipe:
    """Everything the loop needs to know. Learning rates are peaks; `patience` counts epochs."""

    epochs: int
    head_epochs: int
    batch: int
    lr: float
    body_lr: float
    stage_decay: float
    patience: int
    freeze_statistics: bool
    smoothing: float = 0.1
    clip: float = 1.0
    warm_up: float = WARM_UP
    weight_decay: float = WEIGHT_DECAY


def recipe_for(options: FinetuneOptions, images: int) -> Recipe:
    """The recipe for `images` training images."""
    plan = options.plan
    natural = min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(IMAGES_SEEN / max(1, images))))
    epochs = options.epochs or round(natural * plan.effort)
    lr = options.lr or plan.head_lr
    return Recipe(
        epochs=epochs,
        head_epochs=min(options.head_epochs, epochs),
        batch=options.batch_size or next(size for least, size in BATCHES if images >= least),
        lr=lr,
        body_lr=lr * plan.body_lr,
        stage_decay=plan.stage_decay,
        patience=max(3, epochs // 3),
        freeze_statistics=plan.freezes_statistics and images < FROZEN_STATISTICS_BELOW,
    )


def schedule(step: int, steps: int, warm_up: float) -> float:
    """Factor of the peak learning rate at `step` of `steps`: linear warm-up, then cosine to 0."""
    rising = max(1, round(steps * warm_up))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + cos(pi * (step - rising) / max(1, steps - rising)))


def ema_decay(step: int, steps: int) -> float:
    """Decay of the weight average after `step` updates of `steps`.

    The horizon is a tenth of the run (a constant .9999 would still hold the initial weights after a short
    one), and shorter at its start.
    """
    return min(1 - 1 / (1 + 0.1 * steps), (1 + step) / (10 + step))


def parameter_groups(backbone: nn.Module, spec: BackboneRow, recipe: Recipe) -> list[dict[str, Any]]:
    """Optimiser groups, each with its peak `lr`: heads, then the body by depth; no decay on vectors (norms, biases).

    Depth is the place in the order of registration, which in torchvision's networks is that of the forward pass.
    Auxiliary classifiers are heads: fresh at least in their last layers.
    """
    heads = (head_of(backbone, spec), *auxiliary_heads(backbone, spec))
    head = {id(p) for module in heads for p in module.parameters()}
    body = [p for p in backbone.parameters() if id(p) not in head]
    lrs: list[tuple[float, nn.Parameter]] = [(recipe.lr, p) for p in backbone.parameters() if id(p) in head]
    for place, parameter in enumerate(body):
        from_top = STAGES - 1 - place * STAGES // len(body)
        lrs.append((recipe.body_lr * recipe.stage_decay**from_top, parameter))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for lr, parameter in lrs:
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": found, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


def norms(model: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """The layers with running statistics."""
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def set_mode(backbone: nn.Module, spec: BackboneRow, head_only: bool, freeze_statistics: bool) -> None:
    """Training mode, but what is frozen stays so in parameters and buffers.

    requires_grad alone would let BatchNorm's running statistics move: frozen modules go to eval().
    """
    backbone.train(not head_only)
    if freeze_statistics:
        for norm in norms(backbone):
            norm.eval()
        # Auxiliary classifiers may be fresh, and then have no statistics to keep; nothing but the loss sees theirs.
        for auxiliary in auxiliary_heads(backbone, spec):
            auxiliary.train(not head_only)
    else:
        # Slower, and a short run is judged by statistics that still are the initial ones: .10 on digits, not .95.
        for norm in norms(backbone):
            if norm.momentum is not None:  # None: the plain mean of all steps
                norm.momentum = max(norm.momentum, SLOWEST_STATISTICS)
    head = head_of(backbone, spec)
    own = {id(p) for p in head.parameters()}
    for parameter in backbone.parameters():
        parameter.requires_grad_(not head_only or id(parameter) in own)
    head.train()
