"""WiSE-FT: the average of the probe's and the fine-tuned weights (Wortsman et al. 2022, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

ALPHAS = (0.25, 0.5, 0.75)  # share of the fine-tuned weights; 0 and 1 are the probe and the fine-tuned network


def averaged(
    probe: Mapping[str, torch.Tensor], tuned: Mapping[str, torch.Tensor], alpha: float
) -> dict[str, torch.Tensor]:
    """(1 - alpha) probe + alpha tuned, key by key; whole numbers (batch counts) are the tuned network's.

    Where both end in the same valley of the loss the average is often better than either, most of all on images
    unlike the training ones. BatchNorm's statistics are averaged like the weights; they are equal wherever they were
    frozen, and the average is kept only where it is better on val.
    """
    return {
        key: torch.lerp(probe[key], value, alpha) if value.is_floating_point() else value
        for key, value in tuned.items()
    }
