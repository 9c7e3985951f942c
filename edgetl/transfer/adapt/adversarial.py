"""Adversarial adaptation: a discriminator learns to tell the domains apart, the features learn that it cannot.

One backward pass does both: the gradient is reversed where it enters the features.
"""

from __future__ import annotations

from math import exp
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgetl.transfer.adapt.confusion import entropy

HIDDEN = 1024
LARGEST_PRODUCT = 4096  # of feature width x classes; above it CDAN's map is a random one (Long et al. 2018, eq. 8)
RANDOM_WIDTH = 1024


def reversal(progress: float) -> float:
    """The factor of the reversed gradient at `progress` in [0, 1]: 2 / (1 + exp(-10 p)) - 1, from 0 to 1.

    Ganin et al. 2016, "Domain-Adversarial Training of Neural Networks", section 5.2.2: while the discriminator
    is still noise it shall not move the features.
    """
    return 2 / (1 + exp(-10 * progress)) - 1


class _Reverse(torch.autograd.Function):
    """Identity forward; the gradient times -factor backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.factor * gradients[0], None


def reverse(x: torch.Tensor, factor: float) -> torch.Tensor:
    """`x`, whose gradient comes back times -factor (Ganin et al. 2016, eq. 13 and 14)."""
    return _Reverse.apply(x, factor)  # type: ignore[no-any-return]  # autograd functions have no types


class Discriminator(nn.Sequential):
    """(B, width) -> logit (B, 1) that a row is of the source: two hidden layers with BatchNorm."""

    def __init__(self, width: int, hidden: int = HIDDEN) -> None:
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            layers += [nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
        super().__init__(*layers, nn.Linear(hidden, 1))


def domain_loss(logits: torch.Tensor, sources: int, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Half the binary cross-entropy of the source rows (the first `sources`, label 1) plus half the target's.

    `weights` (B,) weigh the rows; their mean in each domain should be 1.
    """
    labels = torch.zeros(len(logits), device=logits.device)
    labels[:sources] = 1
    rows = functional.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")
    if weights is not None:
        rows = rows * weights
    return 0.5 * (rows[:sources].mean() + rows[sources:].mean())


def certainty(probabilities: torch.Tensor, sources: int) -> torch.Tensor:
    """(B,) CDAN+E's weights 1 + exp(-H), scaled to mean 1 in each domain: certain answers count more."""
    raw = 1 + torch.exp(-entropy(probabilities))
    return torch.cat([part / part.mean() for part in (raw[:sources], raw[sources:])])


class ConditionalMap(nn.Module):
    """What CDAN's discriminator sees: the outer product of features (B, D) and probabilities (B, C), as (B, D C).

    Where D C is over 4096: (R_f f) * (R_g g) / sqrt(1024) with fixed Gaussian R, (B, 1024), whose inner products
    are the outer product's in expectation (Long et al. 2018, eq. 5 to 8).
    """

    of_features: torch.Tensor
    of_classes: torch.Tensor

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.random = width * classes > LARGEST_PRODUCT
        self.width = RANDOM_WIDTH if self.random else width * classes
        if self.random:
            self.register_buffer("of_features", torch.randn(width, RANDOM_WIDTH))
            self.register_buffer("of_classes", torch.randn(classes, RANDOM_WIDTH))

    def forward(self, features: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """The map of each row."""
        if not self.random:
            return torch.einsum("bd,bc->bdc", features, probabilities).flatten(1)
        product = (features @ self.of_features) * (probabilities @ self.of_classes)
        return torch.as_tensor(product / RANDOM_WIDTH**0.5)
