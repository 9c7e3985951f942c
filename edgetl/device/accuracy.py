"""Accuracy on the device: images pushed for it, beside PyTorch's logits on the same ones. Python 3.8, numpy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edgetl.bundle import Bundle
from edgetl.errors import BackendError, DataError, InputError
from edgetl.images import ReadOptions, Sample, read_data, stream
from edgetl.measure import Paired, predict_each, task_of
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import Backend

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]

MAX_BATCH = 8


@dataclass(frozen=True)
class Scores:
    """Of one backend: the task's metrics, and the comparison with the reference where there is one."""

    metrics: Mapping[str, Any]
    paired: Optional[Paired] = None

    def as_row(self) -> Dict[str, Any]:
        """The accuracy fields of a bench row."""
        out: Dict[str, Any] = {
            "accuracy": self.metrics["accuracy"],
            "accuracy_ci": tuple(self.metrics["accuracy_ci"]),
        }
        if self.paired is not None:
            out.update(drop_pp=self.paired.drop_pp, drop_ci_pp=self.paired.drop_ci_pp)
            out.update(agreement=self.paired.agreement, flips=self.paired.flips)
        return out


def read_images(bundle: Bundle, data: Optional[str]) -> Tuple[Path, List[Sample], str]:
    """(root, samples, split) of DATA (cli.md), in the bundle's class order; nothing for None.

    Of a DATA with given splits its test split is taken, else its val split, else all of it. Raises DataError.
    """
    if data is None:
        return Path(), [], ""
    found = read_data(data, ReadOptions(val_fraction=0.0, test_fraction=0.0, labels=tuple(bundle.labels)))
    if not found.given:
        return found.root, found.all(), "all"
    for split in ("test", "val"):
        if found.split(split):
            return found.root, list(found.split(split)), split
    raise DataError("DATA has no test and no val split", data, "give a folder with one of them, or without splits")


def read_reference(path: Optional[Path]) -> Optional[Dict[str, Any]]:
    """PyTorch's logits by image digest, from an .npz with "digests" (N,) text and "logits" float32 (N, C).

    Raises InputError.
    """
    if path is None:
        return None
    try:
        with np.load(str(path), allow_pickle=False) as found:
            digests, logits = [str(d) for d in found["digests"]], np.asarray(found["logits"], dtype=np.float32)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            "the reference logits cannot be read", "%s (%s)" % (path, error), "push them again: edgetl deploy"
        ) from error
    if logits.ndim != 2 or len(digests) != len(logits):
        raise InputError(
            "the reference logits do not fit their digests",
            "%d, %s" % (len(digests), logits.shape),
            "push them again: edgetl deploy",
        )
    return dict(zip(digests, logits))


def score(
    backends: Mapping[str, Backend],
    bundle: Bundle,
    root: Path,
    samples: Sequence[Sample],
    reference: Optional[Mapping[str, Any]],
    seed: int = 0,
    monitor: Monitor = SILENT,
) -> Tuple[Dict[str, Scores], Dict[str, Exception]]:
    """Scores by name, and the error of each backend that failed; each image is decoded once for all.

    Raises DataError where the reference lacks an image.
    """
    wanted = _in_order(reference, samples)
    seen = [0]

    def count(images: int) -> None:
        seen[0] += images
        monitor.progress("images", seen[0], len(samples))

    batches = stream(root, samples, bundle.preprocess, MAX_BATCH, on_batch=count)
    outputs, targets, failed = predict_each(backends, batches, MAX_BATCH)
    task = task_of(bundle.manifest)
    out = {}
    for name, logits in outputs.items():
        try:
            paired = None if wanted is None else task.compare(wanted, logits, targets, seed)
            out[name] = Scores(task.metrics(logits, targets, bundle.labels), paired)
        except ValueError as error:  # outputs that are no answer: not finite, or of another class count
            failed[name] = BackendError("the outputs cannot be scored", error)
    return out, failed


def _in_order(reference: Optional[Mapping[str, Any]], samples: Sequence[Sample]) -> Optional[Logits]:
    if reference is None:
        return None
    lacking = [sample.path for sample in samples if sample.digest not in reference]
    if lacking:
        raise DataError("the reference lacks an image", lacking[0], "%d in all" % len(lacking))
    return np.stack([reference[sample.digest] for sample in samples])
