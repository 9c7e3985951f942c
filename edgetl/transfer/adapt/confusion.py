"""Minimum class confusion: a loss on the target's answers alone, no domain alignment."""

from __future__ import annotations

import torch

TEMPERATURE = 2.5


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """(N,) Shannon entropy in nats of the rows of (N, C)."""
    return -(probabilities * probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()).sum(1)


def class_confusion(logits: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Mean confusion between classes of target logits (N, C): 0 when every answer is certain.

    Jin et al. 2020, "Minimum Class Confusion for Versatile Domain Adaptation": probabilities Y = softmax(z / T)
    (eq. 1); weights W_i = N (1 + exp(-H_i)) / sum over j of (1 + exp(-H_j)), detached (eq. 4); C = Y^T W Y (eq. 5);
    each row of C divided by its sum (eq. 6); the loss is the mean over rows of what is off the diagonal (eq. 7).
    N should be much larger than C.
    """
    y = torch.softmax(logits / temperature, dim=1)
    with torch.no_grad():
        weights = 1 + torch.exp(-entropy(y))
        weights = weights * len(y) / weights.sum()
    confusion = y.T @ (weights[:, None] * y)
    # A class that no answer gives any probability (logits far apart) has an empty row, and is confused with nothing.
    confusion = confusion / confusion.sum(1, keepdim=True).clamp_min(torch.finfo(confusion.dtype).tiny)
    return (confusion.sum() - confusion.trace()) / confusion.shape[0]
