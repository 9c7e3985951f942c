"""What each candidate of the newest bench answered to each image, kept in the bundle: `runs/answers.npz`.

Confusion matrices, per-class figures, calibration and flipped images all follow from it. Python 3.8, numpy.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from edgetl.bundle import Bundle, atomic_write
from edgetl.errors import BundleError
from edgetl.images import Sample
from edgetl.runtime.classify import softmax

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int32]
    Floats = npt.NDArray[np.float32]

FILE = "runs/answers.npz"
_TEXTS = ("reference", "split", "at")
_LISTS = ("names", "digests", "paths", "labels")
_SUM = 1e-3  # what two probabilities of one softmax may exceed 1 by, in float32


@dataclass(frozen=True)
class Answers:
    """K candidates on the same N images of C classes.

    names (K): a row's id without "-b<batch>"; `reference` is the one that drops are against and always among them.
    at: ISO 8601, the time that the bench's rows have; split: as rows say it. digests, paths (N): the images' sha256
    and POSIX paths from the data's root, never absolute ("../" where a CSV names files outside its folder).
    targets int32 (N,): class indices. top int32, top_probability float32 (K, N): the largest output and its softmax,
    no calibration temperature applied; target_probability float32 (K, N): of the true class. seen bool (K,): False
    where that candidate failed; its rows are -1 and NaN. labels (C): class names.
    """

    names: Tuple[str, ...]
    reference: str
    split: str
    at: str
    digests: Tuple[str, ...]
    paths: Tuple[str, ...]
    targets: Ints
    top: Ints
    top_probability: Floats
    target_probability: Floats
    seen: npt.NDArray[np.bool_]
    labels: Tuple[str, ...]

    def row(self, name: str) -> int:
        """The place of a candidate's answers. Raises ValueError for a name that is not among them."""
        return self.names.index(name)


def of_outputs(
    outputs: Mapping[str, Optional[Floats]],
    reference: str,
    split: str,
    samples: Sequence[Sample],
    labels: Sequence[str],
) -> Answers:
    """Answers from logits (N, C) by candidate, None for one that failed; `at` is left empty."""
    targets = np.array([sample.target for sample in samples], dtype=np.int32)
    k, n = len(outputs), len(samples)
    top = np.full((k, n), -1, dtype=np.int32)
    best, true = np.full((k, n), np.nan, dtype=np.float32), np.full((k, n), np.nan, dtype=np.float32)
    for index, logits in enumerate(outputs.values()):
        if logits is not None:
            probabilities = softmax(logits)
            top[index] = logits.argmax(axis=1)
            best[index] = probabilities[np.arange(n), top[index]]
            true[index] = probabilities[np.arange(n), targets]
    return Answers(
        names=tuple(outputs),
        reference=reference,
        split=split,
        at="",
        digests=tuple(sample.digest for sample in samples),
        paths=tuple(sample.path for sample in samples),
        targets=targets,
        top=top,
        top_probability=best,
        target_probability=true,
        seen=np.array([logits is not None for logits in outputs.values()], dtype=np.bool_),
        labels=tuple(labels),
    )


def write(bundle: Bundle, answers: Answers) -> None:
    """Replace the bundle's answers, atomically. Raises DiskError."""
    arrays: Dict[str, Any] = {f.name: np.asarray(getattr(answers, f.name)) for f in fields(Answers)}
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    atomic_write(bundle.path / FILE, out.getvalue())


def read(bundle: Bundle) -> Optional[Answers]:
    """The answers of the newest bench; None where there was none. Raises BundleError for a damaged file."""
    path = bundle.path / FILE
    if not path.exists():
        return None
    try:
        with np.load(str(path), allow_pickle=False) as found:
            answers = _of_arrays({f.name: found[f.name] for f in fields(Answers)})
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        # What a cut, an edited or another file makes of numpy and zipfile, each in its own words.
        raise _damaged(path, error) from error
    problem = _problem(answers)
    if problem:
        raise _damaged(path, problem)
    return answers


def _damaged(path: Any, why: object) -> BundleError:
    return BundleError("the bundle's answers are damaged", "%s (%s)" % (path, why), "run `edgetl bench` again")


def _of_arrays(arrays: Dict[str, Any]) -> Answers:
    given: Dict[str, Any] = dict(arrays)
    for name in _TEXTS:
        given[name] = str(arrays[name].item())
    for name in _LISTS:
        if arrays[name].ndim != 1 or (arrays[name].size and arrays[name].dtype.kind != "U"):
            raise ValueError("%s is no list of texts" % name)
        given[name] = tuple(str(text) for text in arrays[name])
    return Answers(**given)


def _problem(answers: Answers) -> str:
    """What contradicts itself; "" where all fits together."""
    k, n, c = len(answers.names), len(answers.paths), len(answers.labels)
    shapes = {"targets": (n,), "seen": (k,), "top": (k, n), "top_probability": (k, n), "target_probability": (k, n)}
    kinds = {"targets": "i", "seen": "b", "top": "i", "top_probability": "f", "target_probability": "f"}
    for name, shape in shapes.items():
        array = getattr(answers, name)
        if array.shape != shape or array.dtype.kind != kinds[name]:
            return "%s is %s %s, want %s" % (name, array.dtype, list(array.shape), list(shape))
    if answers.reference not in answers.names or len(set(answers.names)) != k or len(answers.digests) != n:
        return "names, reference and digests do not belong together"
    seen = answers.top[answers.seen]
    if n and (answers.targets.min() < 0 or max(answers.targets.max(), seen.max(initial=0)) >= c or (seen < 0).any()):
        return "an answer names a class beyond the %d labels" % c
    for name in ("top_probability", "target_probability"):
        values = getattr(answers, name)[answers.seen]
        if not ((values >= 0) & (values <= 1 + _SUM)).all():
            return "%s is no share" % name
    if any(PurePosixPath(path).is_absolute() for path in answers.paths):
        return "a path is absolute"
    return ""
