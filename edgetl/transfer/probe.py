"""The linear probe: logistic regression on cached features, folded exactly into the network's head."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships none

from edgetl.monitor import SILENT, Monitor
from edgetl.transfer import blocks
from edgetl.transfer.blocks import Floats, Ints

CHOICES = (0.01, 0.1, 1.0, 10.0)  # of C, the inverse strength of the L2 penalty
DEFAULT = 0.1  # where there are too few images to choose by
FOLDS = 3
CV_IMAGES = 3000  # at most this many take part in choosing C; the final fit uses all
ITERATIONS = 1000  # of the final fit, at most
THREADED_FROM = 100_000_000  # numbers in the feature matrix
SKEWED = 3.0  # largest class over smallest, from which on classes are weighted


@dataclass(frozen=True)
class Linear:
    """A linear classifier on raw features: logits = features @ weight.T + bias; weight (C, D), bias (C,)."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]

    def logits(self, features: Floats) -> npt.NDArray[np.float32]:
        """float32 (N, C) of features (N, D), which may be larger than memory."""
        out = np.empty((len(features), len(self.bias)), np.float32)
        for rows, block in blocks.blocks(features):
            out[rows] = block @ self.weight.T + self.bias
        return out

    def cooled(self, temperature: float) -> Linear:
        """The same answers, with logits divided by `temperature`."""
        return Linear(self.weight / np.float32(temperature), self.bias / np.float32(temperature))


@dataclass(frozen=True)
class Probe(Linear):
    """The linear probe, and the C it was fitted with."""

    c: float


def class_weights(targets: Ints, classes: int) -> npt.NDArray[np.float32] | None:
    """Loss weight of each class, mean 1 over the images; None where the classes are about even.

    Inverse effective number of images (Cui et al. 2019, beta = 0.999).
    """
    counts = np.bincount(targets, minlength=classes).astype(np.float64)
    if counts.min() > 0 and counts.max() / counts.min() < SKEWED:
        return None
    raw = np.where(counts > 0, (1 - 0.999) / (1 - 0.999 ** np.maximum(counts, 1)), 0.0)
    return np.asarray(raw * counts.sum() / (raw * counts).sum(), np.float32)


def fit(features: Floats, targets: Ints, classes: int, seed: int, monitor: Monitor = SILENT) -> Probe:
    """Standardise, choose C by cross-validation, fit, fold: (N, D) and int64 (N,) -> Probe. Every class must occur.

    Features of more than blocks.LARGE numbers are read a block at a time, in every step of the fit: the same optimum
    in memory that does not grow with N.
    """
    # L-BFGS is many small products: BLAS threads that wait for each other made it 50 times slower on a busy machine.
    with threadpool_limits(1 if features.size < THREADED_FROM else None, "blas"):
        return _fit(features, targets, classes, seed, monitor)


def _fit(features: Floats, targets: Ints, classes: int, seed: int, monitor: Monitor) -> Probe:
    weights = class_weights(targets, classes)
    scaler = blocks.scaler_of(features)
    c = _choose(features, scaler, targets, weights, seed, monitor)
    return _fit_at(features, scaler, targets, classes, c)


def fit_at(features: Floats, targets: Ints, classes: int, c: float) -> Probe:
    """`fit` with C given."""
    with threadpool_limits(1 if features.size < THREADED_FROM else None, "blas"):
        return _fit_at(features, blocks.scaler_of(features), targets, classes, c)


def _fit_at(features: Floats, scaler: StandardScaler, targets: Ints, classes: int, c: float) -> Probe:
    weights = class_weights(targets, classes)
    if features.size <= blocks.LARGE:
        weight, bias = _regress(scaler.transform(features), targets, c, weights, ITERATIONS)
    else:
        weight, bias = two_rows(*blocks.softmax_regression(features, scaler, targets, c, weights, ITERATIONS))
    return Probe(*folded(weight, bias, scaler), c)


def folded(
    weight: Floats, bias: Floats, scaler: StandardScaler
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight (C, D) and bias (C,) on standardised features as those on raw ones.

    Exact algebra: with z = (x - m) / s, W z + b = (W/s) x + (b - W (m/s)).
    """
    raw = weight.astype(np.float64) / scaler.scale_.astype(np.float64)
    return raw.astype(np.float32), (bias - raw @ scaler.mean_.astype(np.float64)).astype(np.float32)


def folds_of(targets: Ints, seed: int, at_most: int) -> tuple[Ints, Ints]:
    """Stratified folds of about `at_most` images: their places in a seeded order, and each one's fold.

    Of a class that the draw nearly misses, FOLDS images (or all) join: a fit without a class would be judged by other
    classes' answers. A class with a single image there is always fitted on and never held out: its fold is -1.
    """
    places = np.random.default_rng(seed).permutation(len(targets))
    nth = np.zeros(len(places), np.int64)  # of its class, in this order
    for target in np.unique(targets):
        members = targets[places] == target
        nth[members] = np.arange(members.sum())
    order = places[(np.arange(len(places)) < at_most) | (nth < FOLDS)]
    fold = np.full(len(order), -1, np.int64)
    for target in np.unique(targets[order]):
        members = np.flatnonzero(targets[order] == target)
        if len(members) > 1:
            fold[members] = np.arange(len(members)) % FOLDS
    return order, fold


def _choose(
    features: Floats, scaler: StandardScaler, targets: Ints, weights: Floats | None, seed: int, monitor: Monitor
) -> float:
    """The C with the best accuracy over stratified folds; of equals the smallest."""
    order, fold = folds_of(targets, seed, CV_IMAGES)
    drawn, targets = scaler.transform(blocks.drawn(features, order)), targets[order]
    smallest = np.bincount(targets)[np.unique(targets)].min()
    if smallest < FOLDS:
        return DEFAULT
    right = dict.fromkeys(CHOICES, 0)
    for step, (held, c) in enumerate((h, c) for h in range(FOLDS) for c in CHOICES):
        fitted, tested = fold != held, fold == held
        weight, bias = _regress(drawn[fitted], targets[fitted], c, weights, iterations=100)
        guesses = (drawn[tested] @ weight.T + bias).argmax(1)
        right[c] += int((guesses == targets[tested]).sum())
        monitor.progress("probe", step + 1, FOLDS * len(CHOICES))
    return max(CHOICES, key=lambda c: (right[c], -c))


def _regress(
    scaled: Floats, targets: Ints, c: float, weights: Floats | None, iterations: int
) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Softmax regression: weight (C, D), bias (C,)."""
    per_class = None if weights is None else {i: float(w) for i, w in enumerate(weights)}
    model = LogisticRegression(C=c, max_iter=iterations, tol=1e-3, class_weight=per_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a cut-short fit of a poor C is no news
        model.fit(scaled, targets)
    return two_rows(model.coef_, model.intercept_)


def two_rows(weight: Floats, bias: Floats) -> tuple[Floats, npt.NDArray[np.float64]]:
    """weight (C, D) and bias (C,) of scikit-learn's; its one row for two classes is spread over both."""
    if len(weight) == 1:
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]).astype(np.float64) / 2
    return weight, bias.astype(np.float64)
