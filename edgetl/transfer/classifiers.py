"""`--strategy features`: closed-form classifiers on frozen features, the best by cross-validation, as a linear head.

Parameter-free transfer: nothing of the backbone moves and nothing is found by descent. The linear probe is softmax
regression by L-BFGS; these two make other assumptions. Ridge regression of one-hot targets (Hoerl & Kennard 1970)
takes its penalty from leave-one-out errors in closed form; linear discriminant analysis (Fisher 1936) takes the
classes to be normal with one covariance, shrunk towards a multiple of the identity (Friedman 1989) by a share that
cross-validation picks. Either is linear in the features, so it becomes a head like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships none

from edgetl.measure.confidence import negative_log_likelihood, temperature_of
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer import blocks, closed_form
from edgetl.transfer.blocks import Floats, Ints
from edgetl.transfer.probe import (
    THREADED_FROM,
    Linear,
    class_weights,
    folded,
    folds_of,
    two_rows,
)

RIDGE = "ridge"
ALPHAS = tuple(10.0**power for power in range(6))  # of ridge, on standardised features
CV_IMAGES = 1500  # at most this many take part in choosing; the final fit uses all
SHRINKAGES = (0.01, 0.1, 0.3, 0.6, 0.9)  # of the covariance in discriminant analysis

Candidates = dict[tuple[str, str], tuple[Floats, Floats]]  # (kind, its regularisation) -> weight (C, D), bias (C,)


@dataclass(frozen=True)
class Classifier(Linear):
    """The chosen classifier, its regularisation in words, and the accuracy of each in cross-validation by name."""

    name: str
    setting: str
    accuracies: dict[str, float]

    @property
    def told(self) -> str:
        """What was chosen, and against what."""
        compared = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in self.accuracies.items())
        return f"{self.name} ({self.setting})" + (f"; cross-validated: {compared}" if compared else "")


class _Judged(NamedTuple):
    accuracy: float
    loss: float
    temperature: float


def fit(features: Floats, targets: Ints, classes: int, seed: int, monitor: Monitor = SILENT) -> Classifier:
    """Standardise, choose by cross-validation, fit, scale, fold: (N, D) and int64 (N,) -> Classifier.

    Every class must occur. Scores are divided by the temperature that makes the cross-entropy of the held-out ones
    least: their softmax is then a probability, and no answer changes. Where no class has two images there is nothing
    to validate on: ridge, unscaled.
    """
    with threadpool_limits(1 if features.size < THREADED_FROM else None, "blas"):
        return _fit(features, targets, classes, seed, monitor)


def _fit(features: Floats, targets: Ints, classes: int, seed: int, monitor: Monitor) -> Classifier:
    scaler = blocks.scaler_of(features)
    even = class_weights(targets, classes) is not None
    order, fold = folds_of(targets, seed, CV_IMAGES)
    drawn = scaler.transform(blocks.drawn(features, order)).astype(np.float64)
    held_out: dict[str, Floats] = {}
    for held in range(int(fold.max()) + 1):
        _score(held_out, drawn, targets[order], fold, held, classes, even)
        monitor.progress("classifiers", held + 1, int(fold.max()) + 2)
    truth = targets[order][fold >= 0]
    judged = {name: _judge(scores[fold >= 0], truth) for name, scores in held_out.items()}
    best = max(judged, key=lambda name: (judged[name].accuracy, -judged[name].loss), default=RIDGE)
    temperature = judged[best].temperature if judged else 1.0
    if features.size <= blocks.LARGE:
        fitted = _candidates(scaler.transform(features).astype(np.float64), targets, even)
    else:
        fitted = _large(best, features, scaler, targets, even)
    said, (weight, bias) = next((setting, head) for (name, setting), head in fitted.items() if name == best)
    head = folded(weight / temperature, bias / temperature, scaler)
    return Classifier(*head, best, said, {name: j.accuracy for name, j in judged.items()})


def _candidates(scaled: Floats, targets: Ints, even: bool) -> Candidates:
    """Every classifier by (name, regularisation): ridge, and discriminant analysis where a class has two images."""
    ridge = RidgeClassifierCV(ALPHAS, class_weight="balanced" if even else None).fit(scaled, targets)
    out: Candidates = {
        (RIDGE, f"alpha = {ridge.alpha_:g}"): two_rows(np.atleast_2d(ridge.coef_), np.ravel(ridge.intercept_))
    }
    if np.bincount(targets).max() > 1:  # of single images there is no covariance
        heads = discriminants(scaled, targets, SHRINKAGES, even)
        out |= {(f"lda {s:g}", f"shrinkage {s:g}"): head for s, head in zip(SHRINKAGES, heads, strict=True)}
    return out


def _large(best: str, features: Floats, scaler: StandardScaler, targets: Ints, even: bool) -> Candidates:
    """What `_candidates` says of the classifier `best`, of features that are read a block at a time."""
    counts = np.bincount(targets).astype(np.float64)
    if best == RIDGE:
        weights = counts.sum() / (len(counts) * counts) if even else np.ones(len(counts))
        alpha, weight, bias = closed_form.ridge(features, scaler, targets, weights, ALPHAS)
        return {(RIDGE, f"alpha = {alpha:g}"): two_rows(weight, bias)}
    found = closed_form.sums(features, scaler, targets, np.ones(len(counts)))
    heads = _discriminants(found.means, found.counts, *closed_form.within(found), SHRINKAGES, even)
    return {(f"lda {s:g}", f"shrinkage {s:g}"): head for s, head in zip(SHRINKAGES, heads, strict=True)}


def discriminants(
    features: Floats, targets: Ints, shrinkages: Sequence[float], even: bool = False
) -> Iterator[tuple[Floats, Floats]]:
    """Linear discriminant analysis for each shrinkage: (N, D), (N,) -> weight (C, D), bias (C,), classes in order.

    With S the covariance within classes (of the images, not of the population), v = trace(S) / D and
    A = (1 - s) S + s v I: weight = A^-1 m_c, bias = -m_c' A^-1 m_c / 2 + log prior_c (Hastie et al. 2009, eq. 4.10).
    One decomposition serves all shrinkages. `even`: equal priors instead of the classes' shares.
    """
    classes, index = np.unique(targets, return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    means = np.stack([features[index == c].mean(0) for c in range(len(classes))])
    centred = features - means[index]
    n, d = centred.shape
    if n < d:
        _, singular, axes = np.linalg.svd(centred, full_matrices=False)
        spread = singular**2 / n
    else:
        spread, vectors = np.linalg.eigh(centred.T @ centred / n)
        axes = vectors.T
    yield from _discriminants(means, counts, spread, axes, shrinkages, even)


def _discriminants(
    means: Floats, counts: Floats, spread: Floats, axes: Floats, shrinkages: Sequence[float], even: bool
) -> Iterator[tuple[Floats, Floats]]:
    """The same of means (C, D), images (C,), and S's eigenvalues (R,) and eigenvectors (R, D); S is 0 beside these."""
    level = spread.sum() / means.shape[1]
    along = means @ axes.T
    beside = means - along @ axes  # what of the means lies in no direction of S
    prior = np.log(np.full(len(counts), 1 / len(counts)) if even else counts / counts.sum())
    for s in shrinkages:
        weight = (along / ((1 - s) * spread + s * level)) @ axes + beside / (s * level)
        yield weight, prior - 0.5 * (means * weight).sum(1)


def _score(
    held_out: dict[str, Floats], scaled: Floats, targets: Ints, fold: Ints, held: int, classes: int, even: bool
) -> None:
    """Write every candidate's scores (n, C) of fold `held` into `held_out`, each from a fit without that fold."""
    rest, tested = fold != held, fold == held
    there = np.unique(targets[rest])  # of very many classes some are not in the draw at all
    for (name, _), (weight, bias) in _candidates(scaled[rest], targets[rest], even).items():
        found = scaled[tested] @ weight.T + bias
        scores = held_out.setdefault(name, np.empty((len(targets), classes)))
        scores[tested] = found.min(1, keepdims=True)
        scores[np.ix_(tested, there)] = found


def _judge(scores: Floats, truth: Ints) -> _Judged:
    temperature = temperature_of(scores, truth, prior_images=0)
    right = float((scores.argmax(1) == truth).mean())
    return _Judged(right, negative_log_likelihood(scores / temperature, truth), temperature)
