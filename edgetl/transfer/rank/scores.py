"""Scores that foretell how well a backbone transfers, from one pass of features. Each is larger for better.

features: float (N, D), the input of the head; targets: int64 (N,), of C classes. All are of training images only.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships none

from edgetl.transfer.probe import DEFAULT as PROBE_C

FOLDS = 5
NEIGHBOURS = 5
_GRID = np.linspace(-12, 12, 49)  # of ln(t), t in units of the mean squared singular value
_REFINEMENTS = 4  # each of a tenth of the step: 5e-5 in the end
_AT_ONCE = 1024  # rows of the matrix of similarities
_TINY = np.finfo(np.float64).tiny

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Groups = npt.NDArray[np.str_]  # (N,): images of one group stay together


def logme(features: Floats, targets: Ints) -> float:
    """Logarithm of maximum evidence (You et al. 2021, eq. 2), a nat per image, mean over one-against-all targets.

    y ~ N(0, (I + F F^T / t) / b): for each class the largest log-density over the noise 1/b and the prior's share t.
    The best b for a t is closed (N / Q below), so a search over t alone finds what the paper's fixed-point
    iteration converges to, also where N <= D, where that iteration needs a floor to stay finite.
    """
    left, variances = _spectrum(np.asarray(features, np.float64))
    variances /= max(float(variances.sum()) / max(len(variances), 1), _TINY)
    return float(np.mean([_evidence(left, variances, targets == c) for c in np.unique(targets)]))


def _spectrum(rows: Floats) -> tuple[Floats, Floats]:
    """Left singular vectors (N, k) and squared singular values (k,) of (N, D), k <= min(N, D): an economy SVD.

    From the smaller of the two Gram matrices, which is twice as fast; directions that carry less than 1e-12 of the
    largest one's variance are rounding and left out.
    """
    n, d = rows.shape
    variances, vectors = np.linalg.eigh(rows @ rows.T if n <= d else rows.T @ rows)
    keep = variances > 1e-12 * max(float(variances.max()), _TINY)
    variances, vectors = variances[keep], vectors[:, keep]
    return (vectors if n <= d else rows @ vectors / np.sqrt(variances)), variances


def _evidence(left: Floats, variances: Floats, member: npt.NDArray[np.bool_]) -> float:
    """Largest log-evidence a row of the 0/1 vector `member` (N,), from F's left and squared singular values."""
    n = len(member)
    inside = (left.T @ member.astype(np.float64)) ** 2
    outside = max(float(member.sum() - inside.sum()), 0.0)

    def evidence(log_t: Floats) -> Floats:
        stretch = 1 + variances / np.exp(log_t)[:, None]  # (T, k)
        misfit = np.maximum((inside / stretch).sum(1) + outside, _TINY)  # Q: b = N / Q is the best noise
        return np.asarray(-(n * (np.log(2 * np.pi * misfit / n) + 1) + np.log(stretch).sum(1)) / 2)

    points, step = _GRID, float(_GRID[1] - _GRID[0])
    for _ in range(_REFINEMENTS):
        best = points[np.argmax(evidence(points))]
        points = best + step * np.linspace(-1, 1, 21)
        step /= 10
    return float(evidence(points).max()) / n


def h_score(features: Floats, targets: Ints) -> float:
    """tr(C^-1 B) (Bao et al. 2019, definition 2) with shrunk covariances (Ibrahim et al. 2021, eq. 5).

    C: covariance of the features, Ledoit-Wolf with shrinkage a; B: covariance of the class means, times (1 - a).
    Without shrinkage it is the classes' share of the variance, and with N <= D that is all of it: it says nothing.
    """
    centred = np.asarray(features, np.float64) - np.mean(features, axis=0, dtype=np.float64)
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    classes, counts = np.unique(targets, return_counts=True)
    means = np.stack([centred[targets == c].mean(0) for c in classes])
    if not covariance.any():
        return 0.0
    ridge = 1e-10 * np.trace(covariance) / len(covariance)  # features that never change have no variance at all
    whitened = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), means.T)
    return float((1 - shrinkage) * (counts / counts.sum() * (means.T * whitened).sum(0)).sum())


def leep(probabilities: Floats, targets: Ints) -> float:
    """Log expected empirical prediction (Nguyen et al. 2020, eq. 2) in nats, at most 0.

    probabilities: (N, Z), what the source classifier says of each image. Source classes that are never said have no
    say: their column of P(y | z) would be 0 / 0.
    """
    said = np.asarray(probabilities, np.float64)
    joint = np.stack([said[targets == c].sum(0) for c in np.unique(targets)])  # (C, Z), up to 1/N
    column = joint.sum(0)
    conditional = np.divide(joint, column, out=np.zeros_like(joint), where=column > 0)
    rows = np.searchsorted(np.unique(targets), targets)
    expected = (said * conditional[rows]).sum(1)
    return float(np.log(np.maximum(expected, _TINY)).mean())


def nce(probabilities: Floats, targets: Ints) -> float:
    """Negative conditional entropy -H(Y | Z) in nats (Tran et al. 2019, eq. 5), Z the source's most likely class."""
    _, source = np.unique(np.argmax(probabilities, axis=1), return_inverse=True)
    _, rows = np.unique(targets, return_inverse=True)
    joint = np.zeros((rows.max() + 1, source.max() + 1))
    np.add.at(joint, (rows, source), 1 / len(rows))
    there = joint > 0
    given = np.broadcast_to(joint.sum(0), joint.shape)
    return float((joint[there] * np.log(joint[there] / given[there])).sum())


def knn_accuracy(features: Floats, targets: Ints, neighbours: int = NEIGHBOURS) -> float:
    """Share of images that the `neighbours` nearest others name rightly, by cosine similarity, nearer ones first in
    a tie.

    Leave-one-out; no parameter is fitted. Memory: 1024 rows of similarities at a time.
    """
    rows = np.asarray(features, np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    classes, index = np.unique(targets, return_inverse=True)
    k = min(neighbours, len(rows) - 1)
    right = 0
    for start in range(0, len(rows), _AT_ONCE):
        near = rows[start : start + _AT_ONCE] @ rows.T
        here = np.arange(len(near))
        near[here, start + here] = -np.inf
        nearest = np.argsort(-near, axis=1, kind="stable")[:, :k]
        votes = np.zeros((len(near), len(classes)))
        for place in range(k):
            # The nearer of equals wins: each vote is worth one and a little less than the one before.
            votes[here, index[nearest[:, place]]] += 1 + 1e-3 * (k - place)
        right += int((votes.argmax(1) == index[start : start + _AT_ONCE]).sum())
    return right / len(rows)


def probe_hits(features: Floats, targets: Ints, groups: Groups | None, seed: int) -> npt.NDArray[np.bool_]:
    """(N,): whether a linear probe that was fitted without an image names it rightly; `FOLDS` stratified folds.

    Logistic regression on standardised features at one C, the probe's usual one. Images of one group stay in one
    fold. A class with a single image cannot be got right.
    """
    rows = np.asarray(features, np.float32)
    hits = np.zeros(len(rows), bool)
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # cut short alike for every backbone
        warnings.simplefilter("ignore", UserWarning)  # on classes with fewer images than folds
        for fitted, held in _folds(targets, groups, seed):
            if len(np.unique(targets[fitted])) < 2:
                continue
            scaler = StandardScaler().fit(rows[fitted])
            model = LogisticRegression(C=PROBE_C, max_iter=100, tol=1e-3)
            model.fit(scaler.transform(rows[fitted]), targets[fitted])
            hits[held] = model.predict(scaler.transform(rows[held])) == targets[held]
    return hits


def _folds(targets: Ints, groups: Groups | None, seed: int) -> list[tuple[Ints, Ints]]:
    count = int(min(FOLDS, np.bincount(targets).max()))
    if groups is None:
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(targets, targets))
    count = min(count, len(np.unique(groups)))
    return list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(targets, targets, groups))
