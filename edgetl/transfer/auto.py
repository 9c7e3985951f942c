"""`--strategy auto`: which training is worth its time, by the size of the set and its distance from the source.

The decision only says what is trained. Whatever comes of it competes on val with the linear probe and the closed-form
classifiers, so that auto never ends below the probe there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from edgetl.images import draw_balanced
from edgetl.transfer import features
from edgetl.transfer.network import Deployed
from edgetl.transfer.options import STRATEGIES, Strategy
from edgetl.transfer.recipe import norms
from edgetl.transfer.run import Run

SHIFT_IMAGES = 128  # training images that the distance is measured on


@dataclass(frozen=True)
class Pick:
    """What is trained, and the reasons in words."""

    plan: Strategy
    reasons: tuple[str, ...]


def pick(run: Run) -> Pick:
    """Decide for this run: see `decide`."""
    images, classes = len(run.data.split("train")), len(run.data.labels)
    found = None
    if run.options.source != "none":
        drawn = draw_balanced(run.data.split("train"), SHIFT_IMAGES, run.options.seed)
        found = shift(run.start.network, features.to_device(run.store.inputs(drawn), run.start.device))
    decided = decide(images / classes, found, run.options.source != "none")
    for reason in decided.reasons:
        run.monitor.say(f"auto: {reason}")
    return decided


def decide(per_class: float, distance: float | None, pretrained: bool) -> Pick:
    """The training for `per_class` training images a class at `distance` from the source domain."""
    if not pretrained:
        return Pick(STRATEGIES["scratch"], ("there are no pretrained weights: from scratch",))
    return Pick(STRATEGIES["lp-ft"], (f"{per_class:.0f} images a class, distance {distance}",))


def shift(network: Deployed, images: torch.Tensor) -> float | None:
    """Distance of images (B, 3, S, S) from those the network was trained on, label-free; None without BatchNorm.

    The source images are not there, but BatchNorm remembers the mean and the variance of each channel over them. This
    is the 2-Wasserstein distance between that normal distribution and the one of these images, in standard deviations
    of the source, a mean over channels and layers (the statistics of Li et al. 2018, "AdaBN", as a measure).
    """
    found: list[float] = []

    def compare(norm: torch.nn.modules.batchnorm._BatchNorm, inputs: tuple[torch.Tensor, ...]) -> None:
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            return
        here = inputs[0].float().transpose(0, 1).flatten(1)
        scale = (variance + norm.eps).sqrt()
        apart = ((here.mean(1) - mean).square() + (here.std(1) - scale).square()).sqrt() / scale
        found.append(float(apart.clamp(max=10).mean()))

    layers = [norm for norm in norms(network) if norm.track_running_stats]
    hooks = [norm.register_forward_pre_hook(compare) for norm in layers]
    network.eval()
    with torch.inference_mode():
        network(images)
    for hook in hooks:
        hook.remove()
    return math.fsum(found) / len(found) if found else None
