"""`edgetl --help`: how long it takes from the shell, and whether a heavy library came along."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.child import ROOT
from benchmarks.rows import Case, Row, row

LIMIT_S = 0.5
HEAVY = ("torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "modelopt", "sklearn", "scipy", "matplotlib")
_LOADED = f"import sys, edgetl.cli.app; print(','.join(m for m in {HEAVY!r} if m in sys.modules))"


def run(quick: bool) -> Iterator[Row]:
    """One row: the median of 20 runs after one that warms the disk's cache."""
    times = [_seconds() for _ in range(4 if quick else 21)][1:]
    loaded = subprocess.run([sys.executable, "-c", _LOADED], cwd=ROOT, capture_output=True, text=True, check=True)
    yield row(
        Case("startup", "edgetl --help", quick),
        1,
        {
            "runs": len(times),
            "median_s": round(statistics.median(times), 3),
            "worst_s": round(max(times), 3),
            "limit_s": LIMIT_S,
            "heavy_modules": loaded.stdout.strip(),
        },
    )


def _seconds() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "edgetl", "--help"], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - started
