"""Features that may be larger than memory, a block of rows at a time: standardisation, and softmax regression on them.

What is fitted here is what scikit-learn fits to a matrix in memory; a set whose features take less than `LARGE`
numbers is left to scikit-learn (transfer/probe.py, transfer/classifiers.py).
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize  # type: ignore[import-untyped]  # it ships none
from sklearn.preprocessing import StandardScaler

from edgetl.errors import disk_errors

BLOCK = 1 << 20  # numbers: 4 MB of float32
LARGE = 1 << 23  # numbers; scikit-learn takes 75 MB for as many in the probe, 290 MB in the classifiers of `features`

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


def blocks(features: Floats) -> Iterator[tuple[slice, Floats]]:
    """(rows, the features of these rows): (N, D) in blocks of at most BLOCK numbers, or of one row.

    Of a mapped file each block's pages leave the resident set once the next block is asked for.
    """
    step = max(1, BLOCK // max(1, features.shape[1]))
    for start in range(0, len(features), step):
        rows = slice(start, min(start + step, len(features)))
        yield rows, features[rows]
        _let_go(features)


def drawn(features: Floats, order: Ints) -> Floats:
    """The rows `order` of features, (len(order), D), in one pass: indexing would map most of a file at once."""
    out = np.empty((len(order), features.shape[1]), features.dtype)
    for rows, block in blocks(features):
        here = np.flatnonzero((rows.start <= order) & (order < rows.stop))
        out[here] = block[order[here] - rows.start]
    return out


def selected(features: Floats, order: Ints, folder: Path) -> Floats:
    """The rows `order` of features (N, D): in memory where they are few, else mapped from a nameless file in `folder`.

    Raises DiskError.
    """
    shape = (len(order), features.shape[1])
    if shape[0] * shape[1] <= LARGE:
        return drawn(features, order)
    step = max(1, BLOCK // max(1, shape[1]))
    return _mapped(
        (_rows(features, order[start : start + step]) for start in range(0, len(order), step)), shape, folder
    )


def stacked(parts: Sequence[Floats], folder: Path) -> Floats:
    """The rows of all `parts` (N, D), one below the other, kept as `selected` keeps them. Raises DiskError."""
    shape = (sum(map(len, parts)), parts[0].shape[1])
    if shape[0] * shape[1] <= LARGE:
        return np.concatenate(parts)
    return _mapped((block for part in parts for _, block in blocks(part)), shape, folder)


def standardised(features: Floats, scaler: StandardScaler, dtype: type = np.float32) -> Iterator[tuple[slice, Floats]]:
    """(rows, their standardised features): `blocks`, each a copy of its own."""
    for rows, block in blocks(features):
        yield rows, scaler.transform(block).astype(dtype, copy=False)


def scaler_of(features: Floats) -> StandardScaler:
    """Mean and standard deviation of each feature of (N, D)."""
    scaler = StandardScaler()
    if features.size <= LARGE:
        return scaler.fit(features)
    for _, block in blocks(features):
        scaler.partial_fit(block)
    return scaler


def softmax_regression(
    features: Floats, scaler: StandardScaler, targets: Ints, c: float, weights: Floats | None, iterations: int
) -> tuple[Floats, Floats]:
    """Weight (C, D) and bias (C,) on standardised features; for two classes one row, that of the second.

    Least is c sum_i w_i nll_i + ||weight||^2 / 2, w_i being the weight of the image's class (None: 1): the objective
    of scikit-learn's LogisticRegression, divided by c sum_i w_i, by the same L-BFGS (Zhu et al. 1997) from zero with
    the same tolerance. Every step passes over the features once. Every class must occur.
    """
    classes, width = int(targets.max()) + 1, features.shape[1]
    rows = 1 if classes == 2 else classes
    each = np.ones(len(targets), np.float32) if weights is None else weights[targets].astype(np.float32)
    total = float(each.sum(dtype=np.float64))

    def loss_and_gradient(flat: Floats) -> tuple[float, Floats]:
        weight, bias = _parts(flat.astype(np.float32), rows)
        gradient = np.zeros((rows, width + 1))
        loss = 0.0
        for where, block in standardised(features, scaler):
            nll, pull = _softmax(block @ weight.T + bias, targets[where])
            pull *= each[where, None]
            loss += float(nll @ each[where].astype(np.float64))
            gradient[:, :width] += pull.T @ block
            gradient[:, width] += pull.sum(0, dtype=np.float64)
        gradient /= total
        body = flat.reshape(rows, width + 1)[:, :width]
        gradient[:, :width] += body / (c * total)
        return loss / total + float((body**2).sum()) / (2 * c * total), gradient.ravel()

    options = {"maxiter": iterations, "maxls": 50, "gtol": 1e-3, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(rows * (width + 1))
    found = minimize(loss_and_gradient, start, method="L-BFGS-B", jac=True, options=options)
    return _parts(found.x, rows)


def _parts(flat: Floats, rows: int) -> tuple[Floats, Floats]:
    """Weight (rows, D) and bias (rows,) of a vector of rows * (D + 1)."""
    both = flat.reshape(rows, -1)
    return both[:, :-1], both[:, -1]


def _softmax(scores: Floats, targets: Ints) -> tuple[npt.NDArray[np.float64], Floats]:
    """Negative log likelihood (B,) of scores (B, C), and its gradient (B, C) in them: softmax minus one-hot.

    Scores (B, 1) are those of the second of two classes, the first one's being 0; so is their gradient.
    """
    single = scores.shape[1] == 1
    both = np.concatenate([np.zeros_like(scores), scores], 1) if single else scores
    both = both - both.max(1, keepdims=True)
    chances = np.exp(both)
    sums = chances.sum(1, keepdims=True)
    images = np.arange(len(targets))
    nll = np.log(sums[:, 0].astype(np.float64)) - both[images, targets]
    chances /= sums
    chances[images, targets] -= 1
    return nll, chances[:, 1:] if single else chances


def _rows(features: Floats, order: Ints) -> Floats:
    found = features[order]
    _let_go(features)
    return found


def _mapped(rows: Iterable[Floats], shape: tuple[int, int], folder: Path) -> Floats:
    """float32 `shape`, written a block at a time to a file that is gone with what is mapped from it."""
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder) as stream:
        for block in rows:
            stream.write(np.ascontiguousarray(block, np.float32).tobytes())
        stream.flush()
        return np.memmap(stream, np.float32, "r", shape=shape)


def _let_go(features: Floats) -> None:
    """Drop the pages of a mapped file from this process; they stay in the system's cache as long as there is room."""
    owner: object = features
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        owner.madvise(mmap.MADV_DONTNEED)
