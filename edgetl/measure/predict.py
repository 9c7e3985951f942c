"""Outputs of backends over a stream of images, decoded once for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Tuple

import numpy as np

from edgetl.errors import BackendError, DataError
from edgetl.images import Batch, to_batch
from edgetl.runtime import Backend

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]
    Targets = npt.NDArray[np.int64]


def predict(backend: Backend, batches: Iterable[Batch], max_batch: int = 32) -> Tuple[Logits, Targets]:
    """Logits float32 (N, C) and targets int64 (N,) over `batches`, at most `max_batch` images a run.

    Raises BackendError, and DataError where there are no images.
    """
    found, targets, failed = predict_each({"": backend}, batches, max_batch)
    if failed:
        raise failed[""]
    return found[""], targets


def predict_each(
    backends: Mapping[str, Backend], batches: Iterable[Batch], max_batch: int = 32
) -> Tuple[Dict[str, Logits], Targets, Dict[str, Exception]]:
    """Each backend's logits (N, C) by name, the targets (N,), and the error of each backend that failed.

    Every batch of pixels goes to all backends in turn before the next is decoded, so memory is bounded
    by a batch. A backend that fails is not asked again; the others go on.
    """
    outputs: Dict[str, List[Logits]] = {name: [] for name in backends}
    failed: Dict[str, Exception] = {}
    targets: List[Targets] = []
    for batch in batches:
        targets.append(batch.targets)
        for name, backend in backends.items():
            if name in failed:
                continue
            try:
                outputs[name].append(run_pixels(backend, batch.pixels, max_batch))
            except Exception as error:  # whatever a third-party runtime raises is that one backend's failure
                failed[name] = error
    if not targets:
        raise DataError("there are no images to predict on")
    found = {name: np.concatenate(parts) for name, parts in outputs.items() if name not in failed}
    return found, np.concatenate(targets), failed


def run_pixels(backend: Backend, pixels: npt.NDArray[np.uint8], max_batch: int = 32) -> npt.NDArray[np.float32]:
    """uint8 (B, S, S, 3) RGB -> float32 (B, C) logits, in runs of at most `max_batch` images.

    A backend that takes no fewer than some number of images (a graph of a fixed batch size, an engine)
    is given that many: the last run repeats its last image, and the answers to those are cut off.
    """
    low, high = _limits(backend, max_batch)
    parts = []
    for start in range(0, len(pixels), high):
        piece = pixels[start : start + high]
        fill = max(0, low - len(piece))
        given = np.concatenate([piece, np.repeat(piece[-1:], fill, axis=0)]) if fill else piece
        parts.append(_run(backend, to_batch(given, backend.input.dtype))[: len(piece)])
    return np.concatenate(parts)


def _limits(backend: Backend, max_batch: int) -> Tuple[int, int]:
    """Fewest and most images of one run: a fixed batch, an engine's optimisation profile, or 1 to max_batch."""
    fixed = backend.input.shape[0]
    if fixed > 0:
        return fixed, fixed
    low, high = getattr(backend, "batches", (1, max_batch))
    return low, max(low, min(high, max_batch))


def _run(backend: Backend, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    out = backend.run(batch)
    if out.ndim != 2 or len(out) != len(batch):
        raise BackendError(
            "%s gave another shape than one row of logits an image" % backend.name,
            "%s for %d images" % (list(out.shape), len(batch)),
        )
    return out
