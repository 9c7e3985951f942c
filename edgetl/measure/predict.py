"""Outputs of backends over a stream of images, decoded once for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterable, List, Mapping, Tuple

import numpy as np

from edgetl.errors import DataError
from edgetl.images import Batch
from edgetl.runtime import Backend, run_pixels

__all__ = ["predict", "predict_each", "run_pixels"]

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
        raise DataError("there are no images to predict on", do="give at least one")
    found = {name: np.concatenate(parts) for name, parts in outputs.items() if name not in failed}
    return found, np.concatenate(targets), failed
