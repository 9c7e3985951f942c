"""How good predictions are, and how two sets of them on the same images compare. Classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from edgetl.runtime.classify import softmax
from edgetl.stats import bootstrap_mean, images_needed, mcnemar, paired_difference, wilson

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]
    Ints = npt.NDArray[np.integer[Any]]

ECE_BINS = 15  # equal-width confidence bins, as in Guo et al. 2017
WHOLE_MATRIX = 100  # classes up to which the confusion matrix is written whole: 20 kB; 1,000 classes would be 2 MB


@dataclass(frozen=True)
class Paired:
    """A candidate beside its reference on the same images; positive drops are losses.

    drop_pp, drop_ci_pp: accuracy lost and its 95 % interval, percentage points; p_mcnemar: exact;
    flips: images whose top-1 class changed, agreement: the share whose class did not; n: images;
    n_needed: images that show a drop of 0 to be within `max_drop` at this rate of right/wrong changes; where there are
    as many already, images that show the drop that was seen to be (None: not asked, or no number of them);
    kl, kl_ci: mean KL(reference || candidate) of the softmax in nats and its bootstrapped interval;
    worst_class: (class index, drop of its recall in percentage points).
    """

    drop_pp: float
    drop_ci_pp: Tuple[float, float]
    p_mcnemar: float
    flips: int
    agreement: float
    n: int
    n_needed: Optional[int]
    kl: float
    kl_ci: Tuple[float, float]
    worst_class: Tuple[int, float]


def metrics(logits: Floats, targets: Ints, labels: Sequence[str]) -> Dict[str, Any]:
    """METRICS of cli.md for logits (N, C) and class indices (N,).

    Macro averages run over the classes that occur in `targets`; a ratio without a denominator is 0.
    "confusion" counts images, a row for each true class and a column for each answer, in the order of
    `labels`; above WHOLE_MATRIX classes it is {"cells": [[true, answer, images], ...]}, zeros left out.
    """
    _check(logits, targets)
    predicted = logits.argmax(axis=1)
    confusion = _confusion(targets, predicted, len(labels))
    hits, there, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    recall, precision = _ratio(hits, there), _ratio(hits, said)
    f1 = _ratio(2 * hits, there + said)
    occurs = there > 0
    correct, n = int(hits.sum()), int(targets.size)
    return {
        "accuracy": correct / n,
        "accuracy_ci": list(wilson(correct, n)),
        "macro_precision": float(precision[occurs].mean()),
        "macro_recall": float(recall[occurs].mean()),
        "macro_f1": float(f1[occurs].mean()),
        "per_class": {
            label: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "n": int(there[i]),
            }
            for i, label in enumerate(labels)
        },
        "ece": expected_calibration_error(logits, targets),
        "confusion": _written(confusion),
        "n": n,
    }


def _written(confusion: npt.NDArray[np.int64]) -> Union[List[List[int]], Dict[str, List[List[int]]]]:
    if len(confusion) <= WHOLE_MATRIX:
        rows: List[List[int]] = confusion.tolist()
        return rows
    true, answer = np.nonzero(confusion)
    return {"cells": np.stack([true, answer, confusion[true, answer]], axis=1).tolist()}


def confusions(found: Dict[str, Any], labels: Sequence[str], most: int = 3) -> List[Tuple[str, str, int]]:
    """What METRICS `found` says is mistaken for what: (true, answer, images), the most frequent first."""
    written = found["confusion"]
    if isinstance(written, dict):
        cells = [(int(i), int(j), int(n)) for i, j, n in written["cells"]]
    else:
        cells = [(i, j, n) for i, row in enumerate(written) for j, n in enumerate(row)]
    wrong = sorted(((i, j, n) for i, j, n in cells if i != j and n), key=lambda cell: (-cell[2], cell[:2]))
    return [(labels[i], labels[j], n) for i, j, n in wrong[:most]]


def expected_calibration_error(logits: Floats, targets: Ints) -> float:
    """Mean gap between confidence and accuracy over ECE_BINS confidence bins, weighted by their images."""
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == targets
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / targets.size)


def compare(
    reference: Floats, candidate: Floats, targets: Ints, seed: int = 0, max_drop: Optional[float] = None
) -> Paired:
    """Candidate logits (N, C) beside reference logits (N, C) of the same images with classes (N,).

    `max_drop` (percentage points) asks for n_needed; `seed` is the bootstrap's. Raises ValueError on
    shapes that do not belong together, no images, or numbers that are not finite.
    """
    _check(reference, targets)
    _check(candidate, targets)
    before, after = reference.argmax(axis=1), candidate.argmax(axis=1)
    was_right, is_right = before == targets, after == targets
    lost, won = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    n, flips = int(targets.size), int((before != after).sum())
    lo, hi = paired_difference(lost, won, n)
    # As in paired_difference: one pair is added to each kind, so that no change seen is not "never changes".
    seen, rate = 100.0 * (lost - won) / (n + 2), (lost + won + 2) / (n + 2)
    needed = None if max_drop is None else images_needed(max_drop, rate)
    if max_drop is not None and needed is not None and needed <= n and seen < max_drop:
        needed = images_needed(max_drop - seen, rate)
    divergence = divergences(reference, candidate)
    return Paired(
        drop_pp=100.0 * (lost - won) / n,
        drop_ci_pp=(100.0 * lo, 100.0 * hi),
        p_mcnemar=mcnemar(lost, won),
        flips=flips,
        agreement=1.0 - flips / n,
        n=n,
        n_needed=needed,
        kl=float(divergence.mean()),
        kl_ci=bootstrap_mean(divergence, seed),  # type: ignore[arg-type]  # an array is a sequence of floats here
        worst_class=_worst(was_right, is_right, targets),
    )


def divergences(reference: Floats, candidate: Floats) -> npt.NDArray[np.float64]:
    """(N,): KL(reference || candidate) of each image's softmax, in nats, for logits (N, C) of both.

    From log-softmax, so that a probability of 0 is no trouble.
    """

    def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
        values = np.asarray(logits, dtype=np.float64)
        values = values - values.max(axis=1, keepdims=True)
        out: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
        return out

    p, q = log_softmax(reference), log_softmax(candidate)
    out: npt.NDArray[np.float64] = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return out


def _worst(was_right: npt.NDArray[np.bool_], is_right: npt.NDArray[np.bool_], targets: Ints) -> Tuple[int, float]:
    there = np.bincount(targets)
    lost = np.bincount(targets, weights=was_right.astype(np.float64) - is_right)
    drops = np.where(there > 0, 100.0 * lost / np.maximum(there, 1), -np.inf)
    worst = int(drops.argmax())
    return worst, float(drops[worst])


def _confusion(targets: Ints, predicted: Ints, classes: int) -> npt.NDArray[np.int64]:
    out: npt.NDArray[np.int64] = np.bincount(targets * classes + predicted, minlength=classes * classes).reshape(
        classes, classes
    )
    return out


def _ratio(above: Ints, below: Ints) -> npt.NDArray[np.float64]:
    out: npt.NDArray[np.float64] = np.where(below > 0, above / np.maximum(below, 1), 0.0)
    return out


def _check(logits: Floats, targets: Ints) -> None:
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or targets.size == 0:
        raise ValueError("logits (N, C) and targets (N,) do not fit: %s and %s" % (logits.shape, targets.shape))
    if not np.isfinite(logits).all():
        raise ValueError("logits are not finite (an overflow in the network)")
    if targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError("targets name a class beyond the %d of the logits" % logits.shape[1])
