"""Does a graph say what PyTorch says? On the golden images, relative to the spread of the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetl.bundle import Bundle, Check
from edgetl.errors import BackendError, BundleError, ParityError
from edgetl.measure.score import compare
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import run_pixels
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Precision

Logits = npt.NDArray[np.float32]
DEFAULTS: dict[str, dict[str, float]] = {"fp32": {"relative": 1e-3}, "fp16": {"relative": 5e-2}, "int8": {"kl": 1e-3}}


@dataclass(frozen=True)
class Parity:
    """max_abs: largest logit difference; relative: that over the spread of the reference; kl: mean KL in nats."""

    max_abs: float
    relative: float
    agreement: float
    kl: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "max_abs": self.max_abs,
            "relative": self.relative,
            "agreement": self.agreement,
            "kl": self.kl,
            "n": self.n,
        }


def parity(reference: Logits, candidate: Logits) -> Parity:
    """Compare logits (N, C); their spread is the largest less the smallest of the reference, over all images."""
    if reference.shape != candidate.shape:
        raise ParityError("a graph gives another number of logits", f"{candidate.shape} and not {reference.shape}")
    if not np.isfinite(candidate).all():
        raise ParityError("a graph gives NaN or inf on a golden image", f"{len(candidate)} images")
    largest = float(np.abs(reference - candidate).max())
    spread = float(reference.max() - reference.min())
    found = compare(reference, candidate, reference.argmax(axis=1))
    relative = largest / spread if spread > 0 else (0.0 if largest == 0 else float("inf"))
    return Parity(largest, relative, found.agreement, found.kl, len(reference))


def tolerance(bundle: Bundle, precision: Precision, key: str) -> float:
    """A tolerance of the manifest, or the project's own where it says none."""
    tolerances: Mapping[str, Any] = bundle.manifest["tolerances"]
    value = tolerances.get(str(precision), {}).get(key, DEFAULTS[str(precision)].get(key))
    return float(value)


def check_relative(found: Parity, allowed: float, what: str) -> None:
    """Raise ParityError where the difference is above `allowed` of the spread."""
    if not found.relative <= allowed:
        raise ParityError(
            f"the {what} graph does not say what the reference says",
            f"logits differ by {found.max_abs:.4g}, {found.relative:.2%} of their spread; allowed {allowed:.2%}",
            "this is a fault of the export: report it with the backbone's name",
        )


def run_graph(path: Path, pixels: npt.NDArray[np.uint8], threads: int = 0) -> Logits:
    """Logits (N, C) of a graph of ours for uint8 (N, S, S, 3)."""
    backend = OrtBackend(path, threads=threads)
    try:
        return run_pixels(backend, pixels, 8)
    finally:
        backend.close()


def centred(logits: Logits) -> Logits:
    """Each row less its mean: what is left when only differences of logits count (after a Softmax)."""
    out: Logits = logits - logits.mean(axis=1, keepdims=True)
    return out


def golden(bundle: Bundle) -> tuple[npt.NDArray[np.uint8], Logits] | None:
    """The golden pixels (N, S, S, 3) and PyTorch's logits (N, C); None where the bundle has none."""
    if not bundle.artifacts("golden-pixels") or not bundle.artifacts("golden-logits"):
        return None
    pixels, logits = (_array(bundle, bundle.artifact(kind)) for kind in ("golden-pixels", "golden-logits"))
    if len(pixels) != len(logits):
        raise BundleError("the golden pixels and logits do not belong together", bundle.path)
    return pixels, logits


def _array(bundle: Bundle, record: Mapping[str, Any]) -> npt.NDArray[Any]:
    path = bundle.file(record)
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OSError) as error:
        raise BundleError("an array of the bundle cannot be read", f"{path} ({error})") from error


def check_parity(bundle: Bundle, monitor: Monitor = SILENT) -> list[Check]:
    """One or two Checks for each current graph, on the golden images.

    fp32 and fp16 against the reference's logits; int8 against its own logits of the day it was made
    (mean KL), and its KL to the reference against what was recorded then.
    """
    cases = golden(bundle)
    graphs = bundle.artifacts("graph")
    if cases is None:
        return []
    checks: list[Check] = []
    for done, record in enumerate(graphs, start=1):
        checks.extend(_checks(bundle, record, *cases))
        monitor.progress("parity", done, len(graphs))
    return checks


def _checks(bundle: Bundle, record: dict[str, Any], pixels: npt.NDArray[np.uint8], reference: Logits) -> list[Check]:
    precision = Precision(record["precision"])
    name = f"parity {record['profile']}/{precision} {Path(record['file']).name}"
    try:
        logits = run_graph(bundle.file(record), pixels)
        if record.get("output") == "probabilities":
            reference, logits = centred(reference), centred(logits)
        found = parity(reference, logits)
        if precision is not Precision.INT8:
            allowed = tolerance(bundle, precision, "relative")
            return [Check(name, found.relative <= allowed, round(found.relative, 6), allowed)]
        return [*_own(bundle, record, logits, name), _kept(record, found, name)]
    except (BackendError, ParityError, BundleError) as error:
        return [Check(name, False, str(error), None)]


def _own(bundle: Bundle, record: dict[str, Any], logits: Logits, name: str) -> list[Check]:
    """INT8 against itself: optimisations and threads may move it by a quantum, hence KL and not 1e-4."""
    mine = bundle.artifacts("graph-logits", made_from=record["sha256"])
    if not mine:
        return []
    recorded = _array(bundle, mine[-1])
    allowed = tolerance(bundle, Precision.INT8, "kl")
    if record.get("output") == "probabilities":
        recorded = centred(recorded)
    found = parity(recorded, logits)
    return [Check(name + " (itself)", found.kl <= allowed, round(found.kl, 8), allowed)]


def _kept(record: dict[str, Any], found: Parity, name: str) -> Check:
    then = float((record.get("parity") or {}).get("kl", 0.0))
    allowed = 1.5 * then + 1e-3
    return Check(name + " (KL to the reference)", found.kl <= allowed, round(found.kl, 8), round(allowed, 8))
