"""Ridge regression and discriminant analysis from sums over the images, for features that may be larger than memory.

The same classifiers as transfer/classifiers.py fits to a matrix in memory: one pass over the features gives the sums
that either needs, and the leave-one-out errors that choose ridge's penalty take a second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import StandardScaler

from edgetl.transfer.blocks import Floats, Ints, standardised

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """Of standardised features z_i (N, D): each class's weight, images (C,) and mean (C, D), and sum w_i z_i z_i'."""

    weights: Doubles
    counts: Doubles
    means: Doubles
    products: Doubles  # (D, D)


def sums(features: Floats, scaler: StandardScaler, targets: Ints, weights: Doubles) -> Sums:
    """One pass over features (N, D), a class's images weighing `weights` (C,). Every class must occur."""
    classes, width = len(weights), features.shape[1]
    totals, products = np.zeros((classes, width)), np.zeros((width, width))
    for rows, block in standardised(features, scaler, np.float64):
        order = np.argsort(targets[rows], kind="stable")
        there, starts = np.unique(targets[rows][order], return_index=True)
        totals[there] += np.add.reduceat(block[order], starts)
        weighted = block * np.sqrt(weights[targets[rows]])[:, None]
        products += weighted.T @ weighted
    counts = np.bincount(targets, minlength=classes).astype(np.float64)
    return Sums(weights, counts, totals / counts[:, None], products)


def within(found: Sums) -> tuple[Doubles, Doubles]:
    """Eigenvalues (D,) and eigenvectors, a row each (D, D), of the covariance within classes; of weights 1."""
    between = (found.counts[:, None] * found.means).T @ found.means
    spread, vectors = np.linalg.eigh((found.products - between) / found.counts.sum())
    return np.maximum(spread, 0), vectors.T


def ridge(
    features: Floats, scaler: StandardScaler, targets: Ints, weights: Doubles, alphas: Sequence[float]
) -> tuple[float, Doubles, Doubles]:
    """(alpha, weight, bias) of ridge regression of targets +-1 with the least leave-one-out error.

    Weight (C, D), bias (C,); of two classes one row, that of the second. Without image i the answer is off by
    e_i / (1 - h_i), e_i being what it is off by with it, h_i = w_i (z_i' (S + alpha I)^-1 z_i + 1 / sum w) its
    leverage and S = sum w z z', all of z less their weighted mean (Golub, Heath & Wahba 1979; the unpenalised intercept
    is the 1 / sum w). What scikit-learn's RidgeClassifierCV does in memory.
    """
    found = sums(features, scaler, targets, weights)
    mass = weights * found.counts
    total, centre = mass.sum(), mass @ found.means / mass.sum()
    codes = 2 * np.eye(len(weights)) - 1
    codes = codes[:, 1:] if len(weights) == 2 else codes
    middle = mass @ codes / total
    values, vectors = np.linalg.eigh(found.products - total * np.outer(centre, centre))
    shrunk = 1 / (np.maximum(values, 0)[:, None] + np.asarray(alphas))  # (D, alphas)
    along = vectors.T @ ((found.means - centre).T @ (mass[:, None] * (codes - middle)))  # (D, columns)
    errors = np.zeros(len(alphas))
    for rows, block in standardised(features, scaler, np.float64):
        turned = (block - centre) @ vectors
        weight, wanted = weights[targets[rows]], (codes - middle)[targets[rows]]
        left = 1 - weight[:, None] * (turned**2 @ shrunk + 1 / total)  # 1 - leverage
        for index in range(len(alphas)):
            off = (wanted - turned @ (shrunk[:, index, None] * along)) / left[:, index, None]
            errors[index] += float((weight[:, None] * off**2).sum())
    best = int(errors.argmin())
    coefficients = (vectors @ (shrunk[:, best, None] * along)).T
    return alphas[best], coefficients, middle - coefficients @ centre
