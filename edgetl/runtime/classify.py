"""From pixels to named classes, for any backend. Pure but for the backend's run. Python 3.8, numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Sequence

import numpy as np

from edgetl.errors import BackendError
from edgetl.images import to_input
from edgetl.runtime.backend import Backend, run_pixels
from edgetl.spec import Preprocess

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Probabilities over the last axis, computed in float64 without overflow."""
    values = np.asarray(logits, dtype=np.float64)
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    out: npt.NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return out


def top_k(logits: Floats, labels: Sequence[str], k: int) -> List[Dict[str, Any]]:
    """Logits (C,) -> [{"label", "probability"}] of the k most likely classes; equal ones in class order."""
    probabilities = softmax(logits)
    if probabilities.shape != (len(labels),):
        raise BackendError(
            "the graph gives another number of classes than the bundle has labels",
            "%s for %d labels" % (list(probabilities.shape), len(labels)),
        )
    order = np.argsort(-probabilities, kind="stable")[:k]
    return [{"label": labels[int(i)], "probability": float(probabilities[i])} for i in order]


def classify(
    backend: Backend,
    encoded: bytes,
    preprocess: Preprocess,
    labels: Sequence[str],
    top: int = 5,
    name: object = "image",
    temperature: float = 1.0,
) -> List[Dict[str, Any]]:
    """One encoded image -> its `top` classes, best first. Raises CorruptImage naming `name`, BackendError.

    `temperature` divides the logits: measure.confidence.temperature_left tells what is left to apply.
    """
    pixels = to_input(encoded, preprocess, name)[None]
    return top_k(run_pixels(backend, pixels)[0] / np.float32(temperature), labels, top)
