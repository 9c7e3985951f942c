"""The methods behind `--adapt`, side by side. No heavy import: the CLI reads it."""

from __future__ import annotations

from dataclasses import dataclass

NONE, AUTO = "none", "auto"


@dataclass(frozen=True)
class Method:
    """One way to adapt. `weight`: of its loss beside the cross-entropy, whose weight is 1, in a training end to end.

    `frozen_weight`: of the loss where only bottleneck and head move, which follow it less far (docs/log.md).

    `reads_answers`: its loss depends on the network's own answers to target images, so it can drive wrong ones into
    certainty; `select` wants more evidence for it.
    """

    name: str
    trains: bool = True  # False: closed form on the features, whatever the strategy
    reads_answers: bool = False
    weight: float = 1.0
    frozen_weight: float = 1.0


METHODS = {
    m.name: m
    for m in (
        # Each domain's features to mean 0 and variance 1 (the idea of AdaBN: Li et al. 2017).
        Method("standardise", trains=False),
        # Multi-kernel MMD (Long et al. 2015), joint MMD (Long et al. 2017).
        Method("mmd"),
        Method("jmmd", reads_answers=True, frozen_weight=3.0),
        # Covariances aligned: Deep CORAL (Sun & Saenko 2016) end to end, CORAL (Sun et al. 2016) on frozen features.
        Method("coral"),
        # Adversarial: Ganin et al. 2016; Long et al. 2018 (CDAN+E).
        Method("dann"),
        Method("cdan", reads_answers=True),
        # Minimum class confusion (Jin et al. 2020).
        Method("mcc", reads_answers=True, frozen_weight=3.0),
    )
}
CHOICES = (NONE, *METHODS, AUTO)
