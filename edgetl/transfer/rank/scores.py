"""Scores that foretell how well a backbone transfers, from one pass of features. Each is larger for better.

features: float (N, D), the input of the head; targets: int64 (N,), of C classes. All are of training images only.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh_tridiagonal, lapack  # type: ignore[import-untyped]  # it ships none
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships none

from edgetl.images import cores
from edgetl.transfer.probe import DEFAULT as PROBE_C

FOLDS = 5
NEIGHBOURS = 5
_GRID = np.linspace(-12, 12, 49)  # of ln(t), t in units of the mean squared singular value
_REFINEMENTS = 4  # each of a tenth of the step: 5e-5 in the end
_BLOCK = 64  # columns that LAPACK takes at a time: its work space
_AT_ONCE = 1024  # rows of the matrix of similarities
_TINY = np.finfo(np.float64).tiny

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Hits = npt.NDArray[np.bool_]
Groups = npt.NDArray[np.str_]  # (N,): images of one group stay together


def logme(features: Floats, targets: Ints) -> float:
    """Logarithm of maximum evidence (You et al. 2021, eq. 2), a nat per image, mean over one-against-all targets.

    y ~ N(0, (I + F F^T / t) / b): for each class the largest log-density over the noise 1/b and the prior's share t.
    The best b for a t is closed (N / Q below), so a search over t alone finds what the paper's fixed-point
    iteration converges to, also where N <= D, where that iteration needs a floor to stay finite.
    """
    variances, inside, outside = _spectrum(np.asarray(features, np.float64), targets)
    variances = variances / max(float(variances.mean()), _TINY)
    each = zip(inside.T, outside, strict=True)
    return float(np.mean([_evidence(variances, i, float(o), len(features)) for i, o in each]))


def _spectrum(rows: Floats, targets: Ints) -> tuple[Floats, Floats, Floats]:
    """Of rows (N, D) as U diag(s) V^T, k = min(N, D): s^2 (k,); of each class's 0/1 vector y the squares of U^T y
    (k, C), and what of |y|^2 lies outside of U (C,).

    U itself is not needed, and making it is most of an SVD: the k x k Gram matrix is reduced to a tridiagonal one,
    Q T Q^T (LAPACK sytrd), and the reflectors that Q is made of act on the few columns alone; 4 times faster, k = 1000.
    """
    members = (targets[:, None] == np.unique(targets)).astype(np.float64)
    outside = np.zeros(members.shape[1])
    if rows.shape[0] > rows.shape[1]:
        basis, rows = np.linalg.qr(rows)  # the columns' own space, D of N dimensions
        whole, members = members.sum(0), basis.T @ members
        outside = np.maximum(whole - (members**2).sum(0), 0)
    gram = rows @ rows.T
    if len(gram) == 1:
        return gram[0], members**2, outside
    reduced, diagonal, beside, reflectors, _ = lapack.dsytrd(gram, lower=1, lwork=len(gram) * _BLOCK)
    # The first row is left alone; below it the reflectors lie as a QR decomposition's do.
    turned, _, _ = lapack.dormqr("L", "T", reduced[1:, :-1], reflectors, members[1:], len(gram) * _BLOCK)
    variances, vectors = eigh_tridiagonal(diagonal, beside)
    return np.maximum(variances, 0), (vectors.T @ np.concatenate([members[:1], turned])) ** 2, outside


def _evidence(variances: Floats, inside: Floats, outside: float, n: int) -> float:
    """Largest log-evidence a row of a class's 0/1 vector of `n` rows; what the others are: _spectrum."""

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
    n, d = centred.shape
    classes, counts = np.unique(targets, return_counts=True)
    mean_of = (targets[:, None] == classes) / counts  # (N, C): centred.T @ mean_of are the class means
    # m^T C^-1 m of each class's mean, in N dimensions (push-through identity) where that is fewer than D.
    gram = centred @ centred.T if n <= d else centred.T @ centred
    left, right = (gram @ mean_of, mean_of) if n <= d else (centred.T @ mean_of,) * 2
    if not gram.any():
        return 0.0
    shrinkage, variance = _ledoit_wolf(gram, (centred**2).sum(1), d)
    level = max(shrinkage, 1e-10) * variance  # features that never change have no variance at all
    quadratic = (left * np.linalg.solve((1 - shrinkage) / n * gram + level * np.eye(len(gram)), right)).sum(0)
    return float((1 - shrinkage) * (counts / n * quadratic).sum())


def _ledoit_wolf(gram: Floats, squares: Floats, d: int) -> tuple[float, float]:
    """(shrinkage, mean variance of a feature) of Ledoit & Wolf 2004, "A well-conditioned estimator", section 3.3.

    From the Gram matrix of centred rows (either one: both have the same norm), the squared lengths of the N rows, and
    the number of features, so that no D x D matrix is needed.
    """
    n = len(squares)
    variance = float(squares.sum()) / n / d
    norm = float((gram**2).sum()) / n**2
    dispersion = norm / d - variance**2
    error = (float((squares**2).sum()) / n - norm) / n / d
    return min(max(error, 0.0) / max(dispersion, _TINY), 1.0), variance


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


def probe_hits(layers: Sequence[Floats], targets: Ints, groups: Groups | None, seed: int) -> list[Hits]:
    """For each of `layers` (N, D_i) bool (N,): whether a linear probe fitted without an image names it rightly.

    `FOLDS` stratified folds, the same for all layers; logistic regression on standardised features at one C, the
    probe's usual one. Images of one group stay in one fold. A class with a single image cannot be got right.
    """
    rows = [np.asarray(features, np.float32) for features in layers]
    hits = [np.zeros(len(found), bool) for found in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on classes with fewer images than folds
        folds = [fold for fold in _folds(targets, groups, seed) if len(np.unique(targets[fold[0]])) > 1]

    def work(task: tuple[int, tuple[Ints, Ints]]) -> None:
        layer, (fitted, held) = task
        scaler = StandardScaler().fit(rows[layer][fitted])
        model = LogisticRegression(C=PROBE_C, max_iter=100, tol=1e-3)
        model.fit(scaler.transform(rows[layer][fitted]), targets[fitted])
        hits[layer][held] = model.predict(scaler.transform(rows[layer][held])) == targets[held]

    # A fit is too small for BLAS's threads to gain anything by waiting for each other: they take a fit each.
    widest_first = sorted(range(len(rows)), key=lambda layer: -rows[layer].shape[1])
    with threadpool_limits(1, "blas"), warnings.catch_warnings(), ThreadPoolExecutor(cores()) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # cut short alike for every backbone
        list(pool.map(work, ((layer, fold) for layer in widest_first for fold in folds)))
    return hits


def _folds(targets: Ints, groups: Groups | None, seed: int) -> list[tuple[Ints, Ints]]:
    count = int(min(FOLDS, np.bincount(targets).max()))
    if groups is None:
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(targets, targets))
    count = min(count, len(np.unique(groups)))
    return list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(targets, targets, groups))
