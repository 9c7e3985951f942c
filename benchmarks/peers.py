"""Ours beside the others': the same images, calibration set and fp32 graph, each quantiser in a process of its own.

    python -m benchmarks peers

NNCF is no dependency of this project and lives in an environment of its own (`make peers-setup`, or
EDGETL_PEERS_PYTHON=<its python>); where there is none its rows say "not installed".
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import cores, run_module
from benchmarks.hard import networks
from benchmarks.rows import HERE, Case, Row, row
from benchmarks.subject import MAX_DROP, Subject, Values, coverage, fresh
from edgetl.errors import EdgetlError

METHODS = {
    "edgetl": "edgetl export --int8",
    "edgetl-plain": "edgetl, --rescue none",
    "onnxruntime-minmax": "onnxruntime, MinMax",
    "onnxruntime-entropy": "onnxruntime, Entropy",
    "onnxruntime-percentile": "onnxruntime, Percentile",
    "modelopt-entropy": "modelopt, entropy (default)",
    "modelopt-max": "modelopt, max",
    "nncf": "NNCF, accuracy control",
}
LIMIT_S = 300.0  # for each; NNCF reverts layer after layer on a network whose ranges are ruined
CALIBRATION_IMAGES = 256  # onnxruntime's Entropy keeps every activation of all of them


def run(quick: bool) -> Iterator[Row]:
    """A row for each network and method."""
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        for index, network in enumerate(networks(quick)):
            place = Path(folder) / str(index)
            subject = Subject.of(network.bundle(place), place / "subject", 64 if quick else CALIBRATION_IMAGES)
            for method, shown in METHODS.items():
                case = Case("peers", f"{network.name}: {shown}", quick)
                yield row(case, cores(), {"network": network.name, "method": shown, **measured(method, subject)})


def measured(method: str, subject: Subject) -> Values:
    """The row's values; "status" says what went wrong where a figure is missing."""
    nothing: Values = dict.fromkeys(FIGURES)
    base: Values = {"calibration_images": subject.calibration_images, "reference_accuracy": round(subject.accuracy, 4)}
    python = python_of(method)
    if python is None:
        return {**base, **nothing, "status": "not installed"}
    try:
        answer = _quantised(method, subject, python)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        found = subject.judge(Path(answer["graph"]))
        share, nvidia = coverage(Path(answer["graph"]))
    except (RuntimeError, ValueError, EdgetlError) as error:
        return {**base, **nothing, "status": "failed: " + " ".join(str(error).split())[:200]}
    cost = {name: round(answer[name], 1) for name in ("seconds", "peak_mb", "total_mb")}
    return {**base, **found, **cost, "int8_macs_share": share, "nvidia": nvidia, "said": answer["said"], "status": "ok"}


FIGURES = (
    *("n", "drop_pp", "drop_low_pp", "drop_high_pp", "n_needed", "agreement", "kl"),
    *("seconds", "peak_mb", "total_mb", "int8_macs_share", "nvidia", "said"),
)


def python_of(method: str) -> str | None:
    """The interpreter that has what `method` needs; None: NNCF's environment is not there."""
    if method != "nncf":
        return sys.executable
    given = os.environ.get("EDGETL_PEERS_PYTHON")
    there = Path(given) if given else HERE / ".peers/bin/python"
    return str(there) if there.is_file() else None


def _quantised(method: str, subject: Subject, python: str) -> dict[str, Any]:
    place = subject.folder / method
    place.mkdir()
    job = {
        "graph": str(subject.graph),
        **{name: str(subject.folder / f"{name}.npy") for name in ("calibration", "validation", "targets")},
        "bundle": str(fresh(subject.bundle, place / "bundle")) if method.startswith("edgetl") else None,
        "to": str(place / "int8.onnx"),
        "threads": cores(),
        "max_drop": MAX_DROP,
    }
    (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
    words = (method, str(place / "job.json"))
    return dict(run_module("benchmarks.peers_child", *words, threads=cores(), python=python, limit_s=LIMIT_S))
