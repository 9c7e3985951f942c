"""`--strategy auto`: which training is worth its time, by weights, probe, size of the set and distance from the source.

The decision only says what is trained. Whatever comes of it competes on val with the linear probe and the closed-form
classifiers, so that auto never ends below the probe there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from edgetl.bundle import atomic_json, read_json
from edgetl.images import draw_balanced
from edgetl.transfer import features
from edgetl.transfer.network import Deployed
from edgetl.transfer.options import STRATEGIES, Strategy
from edgetl.transfer.recipe import norms
from edgetl.transfer.run import Probed, Run

SHIFT_IMAGES = 128  # training images that the distance is measured on
FAR = 0.5  # photos of flowers and of CIFAR-10 lie at .36 to .47 from ImageNet, sketches at .65, digits at 1.1
FEW = 30  # images a class


@dataclass(frozen=True)
class Pick:
    """What is trained, and the reasons in words."""

    plan: Strategy
    reasons: tuple[str, ...]


def pick(run: Run, probed: Probed) -> Pick:
    """Decide for this run (see `decide`); noted, so that --resume agrees."""
    path = run.folder / "auto.json"
    if path.is_file():
        noted = read_json(path, "training state")
        return Pick(STRATEGIES[noted["plan"]], tuple(noted["reasons"]))
    train, pretrained = run.data.split("train"), run.options.source != "none"
    distance = None
    if pretrained:
        drawn = draw_balanced(train, SHIFT_IMAGES, run.options.seed)
        distance = shift(run.start.network, features.to_device(run.store.inputs(drawn), run.start.device))
    decided = decide(len(train) / len(run.data.labels), distance, pretrained, probed.accuracy)
    for reason in decided.reasons:
        run.monitor.say(f"auto: {reason}")
    atomic_json(path, {"plan": decided.plan.name, "reasons": list(decided.reasons)})
    return decided


def decide(per_class: float, distance: float | None, pretrained: bool, probe_accuracy: float) -> Pick:
    """What to train, for `per_class` training images a class at `distance` (see `shift`) from the source domain.

    Without weights: scratch. Where the probe is right on all of val: nothing, for val could show nothing better. Else
    LP-FT (Kumar et al. 2022), near and far, with few labels and with many: no other strategy was better by more than
    its noise in any of these cases, and gradual unfreezing was worse (benchmarks/README.md, strategies). Where there
    are few labels or the images are far from the source, that is said: there fine-tuning may lose to the probe, and
    val decides.
    """
    size = f"{per_class:.0f} images a class"
    if not pretrained:
        return Pick(STRATEGIES["scratch"], ("there are no pretrained weights: from scratch",))
    if probe_accuracy >= 1:
        return Pick(STRATEGIES["features"], ("the linear probe is right on all of val: nothing is trained",))
    if distance is None:
        return Pick(STRATEGIES["lp-ft"], (f"{size}, at an unknown distance (no BatchNorm): lp-ft",))
    where = (
        f"far from the source domain ({distance:.2f})" if distance > FAR else f"near the source domain ({distance:.2f})"
    )
    few = ", few" if per_class <= FEW else ""
    return Pick(STRATEGIES["lp-ft"], (f"{size}{few}, {where}: lp-ft",))


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
