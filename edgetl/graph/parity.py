"""Does a graph say what PyTorch says? On the golden images, relative to the spread of the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetl.bundle import Bundle, Check
from edgetl.errors import BackendError, BundleError, ParityError
from edgetl.measure.parity import Parity, comparable, golden, parity, read_array, tolerance
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import run_pixels
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Precision

__all__ = ["Parity", "check_parity", "check_relative", "comparable", "golden", "parity", "run_graph", "tolerance"]

Logits = npt.NDArray[np.float32]


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
        found = parity(*comparable(reference, logits, record.get("output"), record.get("temperature")))
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
    recorded = read_array(bundle, mine[-1])
    allowed = tolerance(bundle, Precision.INT8, "kl")
    found = parity(*comparable(recorded, logits, record.get("output"), None))
    return [Check(name + " (itself)", found.kl <= allowed, round(found.kl, 8), allowed)]


def _kept(record: dict[str, Any], found: Parity, name: str) -> Check:
    then = float((record.get("parity") or {}).get("kl", 0.0))
    allowed = 1.5 * then + 1e-3
    return Check(name + " (KL to the reference)", found.kl <= allowed, round(found.kl, 8), round(allowed, 8))
