"""Distances between two domains' features as differentiable losses: MK-MMD, joint MMD, Deep CORAL.

Each is a sum over pairs or a difference of moments; none has parameters of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the mean squared distance: the bandwidths of the five Gaussian kernels
ROUNDING = 1e-10  # of the mean squared norm: the same picture in another batch gives features that differ by 1e-7


def squared_distances(both: torch.Tensor) -> torch.Tensor:
    """(N, N) squared Euclidean distances between the rows of (N, D)."""
    norms = both.square().sum(1)
    return (norms[:, None] + norms[None] - 2 * both @ both.T).clamp_min(0)


def kernel(both: torch.Tensor, scales: Sequence[float] = SCALES) -> torch.Tensor:
    """(N, N) mean of Gaussian kernels between the rows of (N, D): mean over a of exp(-|x - y|^2 / (a s)).

    s is the mean squared distance over all pairs of two different rows; no gradient flows through it, or the
    distance could be lowered by growing the bandwidth. Rows that differ by rounding alone are taken for equal.
    """
    squared = squared_distances(both)
    n = len(both)
    floor = (ROUNDING * both.detach().square().sum(1).mean()).clamp_min(torch.finfo(both.dtype).tiny)
    spread = torch.maximum(squared.detach().sum() / max(1, n * (n - 1)), floor)
    return torch.stack([torch.exp(-squared / (scale * spread)) for scale in scales]).mean(0)


def unbiased(gram: torch.Tensor, sources: int) -> torch.Tensor:
    """The unbiased estimate of MMD^2 from a kernel matrix whose first `sources` rows are the source's.

    mean of k(x, x') over x != x' + mean of k(y, y') over y != y' - 2 mean of k(x, y)   (Gretton et al. 2012, eq. 3).
    It is 0 in expectation for equal distributions, so it can be negative. Each domain needs two rows.
    """
    m, n = sources, len(gram) - sources
    xx, yy, xy = gram[:m, :m], gram[m:, m:], gram[:m, m:]
    within = (xx.sum() - xx.trace()) / (m * (m - 1)) + (yy.sum() - yy.trace()) / (n * (n - 1))
    return within - 2 * xy.mean()


def mk_mmd(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared multi-kernel maximum mean discrepancy of (M, D) and (N, D), unbiased.

    Long et al. 2015, "Learning Transferable Features with Deep Adaptation Networks", eq. 2, with equal weights of
    the five kernels (`kernel`) in place of eq. 8's learnt ones.
    """
    return unbiased(kernel(torch.cat([source, target])), len(source))


def joint_mmd(source: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared joint maximum mean discrepancy over several layers, each (M, D_l) and (N, D_l); unbiased.

    The kernel is the product of the layers' kernels, k(x, x') = prod over l of k_l(z_l, z_l'): Long et al. 2017,
    "Deep Transfer Learning with Joint Adaptation Networks", eq. 8 (theirs is its linear-time estimate). Layers
    here: features and class probabilities.
    """
    gram = torch.stack([kernel(torch.cat(pair)) for pair in zip(source, target, strict=True)]).prod(0)
    return unbiased(gram, len(source[0]))


def covariance(rows: torch.Tensor) -> torch.Tensor:
    """(D, D) covariance of the rows of (N, D), over N - 1."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / max(1, len(rows) - 1)


def coral(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """|C_s - C_t|_F^2 / (4 D^2) of (M, D) and (N, D), C being covariances.

    Sun & Saenko 2016, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation", eq. 1 to 3. It says nothing
    of the means.
    """
    width = source.shape[1]
    return (covariance(source) - covariance(target)).square().sum() / (4 * width**2)
