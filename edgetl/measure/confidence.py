"""How far a classifier's probabilities can be believed: a temperature, and thresholds for a wanted precision.

numpy only: the device applies what fine-tuning has fitted and the manifest holds as `confidence`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from edgetl.errors import InputError
from edgetl.measure.score import expected_calibration_error
from edgetl.runtime.classify import softmax
from edgetl.stats import at_least, wilson

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]
    Ints = npt.NDArray[np.integer[Any]]
    Labelled = Tuple[Floats, Ints]

COLDEST, HOTTEST = 0.05, 20.0
PRIOR_IMAGES = 10.0
ALPHA = 0.05  # how often a threshold may fail to keep its precision
STARTS = (0.1, 0.5)  # shares of the images: networks that can promise a precision for few, and for most
LOOKS = 500  # thresholds tried at most
PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995)


def temperature_of(logits: Floats, targets: Ints, prior_images: float = PRIOR_IMAGES) -> float:
    """The T for which softmax(logits / T) of (N, C) is calibrated on classes (N,) (Guo et al. 2017, section 4.2).

    The mean negative log-likelihood is convex in b = 1 / T, with slope E[z under softmax(b z)] - z of the true
    class: bisection on b between 1 / HOTTEST and 1 / COLDEST. On a few images that are all right it would
    fall for ever; so `prior_images` more, labelled as softmax(z) itself has it, stand for "T = 1 until
    shown otherwise" (the conjugate prior of Diaconis & Ylvisaker 1979: still convex).
    """
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(axis=1, keepdims=True)
    n, weight = len(z), prior_images / len(z)
    wanted = float(z[np.arange(n), targets].mean()) + weight * float((softmax(z) * z).sum(axis=1).mean())
    low, high = math.log(1 / HOTTEST), math.log(1 / COLDEST)
    for _ in range(30):
        middle = (low + high) / 2
        given = (1 + weight) * float((softmax(math.exp(middle) * z) * z).sum(axis=1).mean())
        low, high = (low, middle) if given >= wanted else (middle, high)
    return math.exp(-(low + high) / 2)


def negative_log_likelihood(logits: Floats, targets: Ints) -> float:
    """Mean -log softmax(logits)[true class] in nats."""
    z = np.asarray(logits, dtype=np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), targets]).mean())


@dataclass(frozen=True)
class Threshold:
    """Answer only from this probability on, and `precision` of the answers are right.

    threshold: None where the images cannot show it; coverage: share of the `n` images that are answered then;
    n_needed: images without a mistake that would show it, where `n` are too few.
    """

    precision: float
    threshold: Optional[float]
    coverage: float
    n: int
    n_needed: Optional[int] = None


def threshold_for(sure: Floats, right: npt.NDArray[np.bool_], precision: float, alpha: float = ALPHA) -> Threshold:
    """The lowest threshold that keeps `precision` with confidence 1 - alpha; top probabilities (N,), hits (N,).

    Fixed sequence testing with several starts (Learn then Test: Angelopoulos et al. 2021, section 2): from the surest
    tenth of the images on, and again from the surest half, each with its share of alpha, the threshold falls as long
    as an exact binomial test holds. Taking the best-looking threshold at face value would break its promise about
    every other time; a binary search with a share of alpha a look (Geifman & El-Yaniv 2017) answers less.
    """
    if not 0 < precision < 1:
        raise InputError("a precision lies between 0 and 1", precision, "such as .95")
    n, share = len(sure), alpha / len(STARTS)
    order = np.argsort(-sure, kind="stable")
    falling, hits = sure[order], np.cumsum(right[order])
    fewest = math.ceil(math.log(share) / math.log(precision))  # so many without a mistake
    # Where the threshold can be: equal probabilities are answered together.
    counts = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) + 1
    counts = counts[:: -(-len(counts) // LOOKS)]
    answered = 0
    for start in STARTS:
        for count in counts[counts >= max(fewest, start * n)]:
            if at_least(int(hits[count - 1]), int(count), precision) > share:
                break
            answered = max(answered, int(count))
    if not answered:
        return Threshold(precision, None, 0.0, n, fewest if n < fewest else None)
    return Threshold(precision, float(falling[answered - 1]), answered / n, n)


def confidence_of(val: Labelled, test: Optional[Labelled], wanted: Optional[float] = None) -> Dict[str, Any]:
    """The manifest's `confidence`, from (logits (N, C), classes (N,)) of val, where all is fitted, and of test.

    {"temperature", "fitted_on", "val": {"n", "ece", "ece_calibrated", "nll", "nll_calibrated"}, "test": the
    same or None, "precision": `wanted`, "abstain": a Threshold for each of PRECISIONS and `wanted`, each with
    "test": {"precision", "precision_ci", "coverage", "answered", "n"} or None}.
    """
    temperature = temperature_of(*val)
    sure, right = _answers(val, temperature)
    rows = []
    for precision in sorted({*PRECISIONS, *([] if wanted is None else [wanted])}):
        found = threshold_for(sure, right, precision)
        rows.append(dict(asdict(found), test=_kept(found, test, temperature)))
    return {
        "temperature": temperature,
        "fitted_on": "val",
        "val": _reliability(val, temperature),
        "test": None if test is None else _reliability(test, temperature),
        "precision": wanted,
        "abstain": rows,
    }


def _answers(given: Labelled, temperature: float) -> Tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    logits, targets = given
    return softmax(logits / temperature).max(axis=1), logits.argmax(axis=1) == targets


def _reliability(given: Labelled, temperature: float) -> Dict[str, Any]:
    logits, targets = given
    calibrated = logits / temperature
    return {
        "n": len(targets),
        "ece": expected_calibration_error(logits, targets),
        "ece_calibrated": expected_calibration_error(calibrated, targets),
        "nll": negative_log_likelihood(logits, targets),
        "nll_calibrated": negative_log_likelihood(calibrated, targets),
    }


def _kept(found: Threshold, test: Optional[Labelled], temperature: float) -> Optional[Dict[str, Any]]:
    """What the threshold came to on images that it was not chosen on."""
    if test is None or found.threshold is None:
        return None
    sure, right = _answers(test, temperature)
    answered = sure >= found.threshold
    count, hits = int(answered.sum()), int((answered & right).sum())
    return {
        "precision": hits / count if count else None,
        "precision_ci": list(wilson(hits, count)),
        "coverage": count / len(sure),
        "answered": count,
        "n": len(sure),
    }


def temperature_left(manifest: Mapping[str, Any], artifact: Mapping[str, Any]) -> float:
    """What the answers of a bundle's graph, engine or checkpoint are still to be divided by: 1 where it is inside."""
    made_from = artifact.get("made_from")
    for record in (artifact, *(r for r in manifest["artifacts"] if made_from and r["sha256"] == made_from)):
        if record.get("temperature") is not None:
            return 1.0
    return float((manifest.get("confidence") or {}).get("temperature", 1.0))


def abstain_below(manifest: Mapping[str, Any], precision: Optional[float]) -> Optional[Dict[str, Any]]:
    """The row of `confidence.abstain` for `precision`, or for the one that fine-tuning was asked for; None: neither.

    Of a precision that is not listed the next higher one is taken, which promises more. Raises InputError where
    the bundle has no thresholds, or its validation images could not show that precision.
    """
    confidence = manifest.get("confidence") or {}
    wanted = confidence.get("precision") if precision is None else precision
    if wanted is None:
        return None
    if not 0 < wanted < 1:
        raise InputError("a precision lies between 0 and 1", wanted, "such as .95")
    rows: Sequence[Dict[str, Any]] = confidence.get("abstain") or ()
    row = next((row for row in rows if row["precision"] >= wanted), None)
    if row is None:
        do = "make the bundle with `edgetl finetune ... --abstain-precision %g`" % wanted
        raise InputError("the bundle has no threshold for this precision", wanted, do)
    if row["threshold"] is None and precision is not None:
        most = most_promised(rows)
        do = "fine-tune with more images" + (", or ask for %g at most" % most if most else "")
        raise InputError("this precision cannot be promised", "%g: %s" % (wanted, why_not(row)), do)
    return row


def most_promised(rows: Sequence[Mapping[str, Any]]) -> Optional[float]:
    """The highest precision of `abstain` that has a threshold."""
    return max((row["precision"] for row in rows if row["threshold"] is not None), default=None)


def why_not(row: Mapping[str, Any]) -> str:
    """Why a row of `abstain` has no threshold."""
    if row["n_needed"] is not None:
        return "%d validation images are too few to show it (%d without a mistake would)" % (row["n"], row["n_needed"])
    return "too many mistakes among the surest of the %d validation images" % row["n"]
