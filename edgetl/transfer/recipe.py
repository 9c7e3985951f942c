"""How a training run is laid out: a pure function of the strategy, the options and the size of the set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, pi
from typing import Any

from torch import nn

from edgetl.transfer.backbones import BackboneRow, auxiliary_heads, head_of
from edgetl.transfer.options import FROZEN_STATISTICS_BELOW, FinetuneOptions, Strategy

STAGES = 5  # depth groups with a learning rate each
WARM_UP = 0.1  # share of the steps
WEIGHT_DECAY = 0.01
IMAGES_SEEN = 12_000  # what a default run passes through the network, within the bounds below
BATCHES = ((1500, 64), (400, 32), (0, 16))  # training images from which on, images a step
FEWEST_EPOCHS, MOST_EPOCHS = 4, 60  # 20 epochs of 50 images are 80 steps: far too few (docs/log.md)
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
    gradual: bool = False
    smoothing: float = 0.1
    clip: float = 1.0
    warm_up: float = WARM_UP
    weight_decay: float = WEIGHT_DECAY

    def open_stages(self, epoch: int) -> int:
        """How many of the body's STAGES train in this epoch (from 1), counted from the head; the others are frozen.

        Gradual unfreezing (Howard & Ruder 2018, section 3.3) opens one more stage an epoch; a run so short that
        this would take more than half of it opens them faster.
        """
        done = epoch - self.head_epochs - 1
        if done < 0:
            return 0
        if not self.gradual:
            return STAGES
        return min(STAGES, 1 + max(done, done * 2 * STAGES // (self.epochs - self.head_epochs)))


def recipe_for(options: FinetuneOptions, images: int, plan: Strategy | None = None) -> Recipe:
    """The recipe for `images` training images; `plan` is what auto has picked (default: the options' own)."""
    plan = plan or options.plan
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
        # Random weights have no statistics that are worth keeping, whatever the strategy.
        freeze_statistics=plan.freezes_statistics and images < FROZEN_STATISTICS_BELOW and options.source != "none",
        gradual=plan.gradual,
        # Pulling towards the start takes the place of pulling towards 0 (Li et al. 2018; DELTA's regulariser too).
        weight_decay=0.0 if options.keep in ("l2sp", "delta") else WEIGHT_DECAY,
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


def stages_of(backbone: nn.Module, spec: BackboneRow) -> list[list[nn.Module]]:
    """The body's modules that hold parameters or buffers of their own, in STAGES groups by depth, the lowest first.

    Depth is the place in the order of registration, which in torchvision's networks is that of the forward pass;
    the groups hold about equally many parameter tensors, and no module is torn apart: a BatchNorm's weights and
    its statistics are frozen together. Heads are in none.
    """
    heads = {id(m) for head in (head_of(backbone, spec), *auxiliary_heads(backbone, spec)) for m in head.modules()}
    body = [m for m in backbone.modules() if id(m) not in heads and (m._parameters or m._buffers)]
    sizes = [sum(1 for _ in m.parameters(recurse=False)) for m in body]
    stages: list[list[nn.Module]] = [[] for _ in range(STAGES)]
    place = 0
    for module, size in zip(body, sizes, strict=True):
        stages[min(STAGES - 1, place * STAGES // max(1, sum(sizes)))].append(module)
        place += size
    return stages


def parameter_groups(backbone: nn.Module, spec: BackboneRow, recipe: Recipe) -> list[dict[str, Any]]:
    """Optimiser groups, each with its peak `lr`: heads, then the body by depth; no decay on vectors (norms, biases).

    Auxiliary classifiers are heads: fresh at least in their last layers.
    """
    heads = (head_of(backbone, spec), *auxiliary_heads(backbone, spec))
    lrs = {id(p): recipe.lr for module in heads for p in module.parameters()}
    for from_top, stage in enumerate(reversed(stages_of(backbone, spec))):
        for module in stage:
            lrs.update((id(p), recipe.body_lr * recipe.stage_decay**from_top) for p in module.parameters(recurse=False))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in backbone.parameters():
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lrs[id(parameter)], decay), []).append(parameter)
    return [{"params": found, "lr": lr, "peak": lr, "weight_decay": decay} for (lr, decay), found in groups.items()]


def norms(model: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """The layers with running statistics."""
    return (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def set_mode(backbone: nn.Module, spec: BackboneRow, open_stages: int, freeze_statistics: bool) -> None:
    """Training mode for the head and the top `open_stages` of the STAGES; the rest is frozen.

    What is frozen stays bit-identical in parameters and buffers. requires_grad alone would let BatchNorm's running
    statistics move: frozen modules go to eval().
    """
    backbone.train(open_stages > 0)
    if freeze_statistics:
        for norm in norms(backbone):
            norm.eval()
        # Auxiliary classifiers may be fresh, and then have no statistics to keep; nothing but the loss sees theirs.
        for auxiliary in auxiliary_heads(backbone, spec):
            auxiliary.train(open_stages > 0)
    else:
        # Slower, and a short run is judged by statistics that still are the initial ones: .10 on digits, not .95.
        for norm in norms(backbone):
            if norm.momentum is not None:  # None: the plain mean of all steps
                norm.momentum = max(norm.momentum, SLOWEST_STATISTICS)
    backbone.requires_grad_(open_stages > 0)
    for stage in stages_of(backbone, spec)[: STAGES - open_stages]:
        for module in stage:
            module.training = False  # itself alone: eval() would take its children along, which may be open
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    head = head_of(backbone, spec)
    head.requires_grad_(True)
    head.train()
