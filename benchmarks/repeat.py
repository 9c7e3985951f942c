"""Ten benches of one bundle: how far the ratio int8/fp32 lies apart from one to the next, and what each said of itself.

python -m benchmarks repeat
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import run_module
from benchmarks.rows import Case, Row, row
from benchmarks.suite import Network
from benchmarks.suite_bundles import bundle_of

BENCHES = 10
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
LIMIT_PERCENT = 5.0
NETWORK = Network("mobilenet_v2 at 64 px, random weights", "mobilenet_v2", 64)
QUICK_NETWORK = Network("squeezenet1_1 at 64 px, random weights", "squeezenet1_1", 64)


def run(quick: bool) -> Iterator[Row]:
    """One row: each bench is a process of its own, so that whatever differs between two runs does differ."""
    network = QUICK_NETWORK if quick else NETWORK
    made = bundle_of(network, "cpu")
    words = ["--target", "cpu", "--backends", "onnxruntime", "--precisions", "fp32,int8", "--threads", "1"]
    words += ["--seconds", "0.2" if quick else "1"]
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        copy = shutil.copytree(made, Path(folder) / "bundle")
        benches = [
            run_module("edgetl", "-q", "bench", str(copy), *words, "--json", threads=1)["rows"]
            for _ in range(2 if quick else BENCHES)
        ]
    yield row(Case("repeat", network.name, quick), 1, values(benches))


def values(benches: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """The row's values from the rows of each bench: fp32's first, then int8's with its ratio to it.

    `apart_percent`: the largest ratio over the smallest, less one; `quiet_apart_percent`: among the benches that did
    not call the machine noisy, None for fewer than two. `held`: that is within the limit, or nearly all said noisy.
    """
    found = [bench[-1] for bench in benches]
    ratios = [one["ratio_p50"][0] for one in found]
    noisy = [one["noise"]["noisy"] for one in found]
    quiet = [ratio for ratio, was in zip(ratios, noisy, strict=True) if not was]
    quiet_apart = _apart(quiet) if len(quiet) > 1 else None
    fp32 = [bench[0]["latency_ms"]["p50"] for bench in benches]
    reasons: dict[str, str] = {}
    for why in sorted((why for one in found for why in one["noise"]["why"]), key=_numbers):
        reasons[_NUMBER.sub("#", why)] = why  # of those that differ in their figures alone the worst
    return {
        "benches": len(benches),
        "ratio_lowest": round(min(ratios), 4),
        "ratio_highest": round(max(ratios), 4),
        "apart_percent": _apart(ratios),
        "quiet_apart_percent": quiet_apart,
        "limit_percent": LIMIT_PERCENT,
        "fp32_apart_percent": round(100 * (max(fp32) / min(fp32) - 1), 2),
        "noisy": sum(noisy),
        "held": quiet_apart is None or quiet_apart < LIMIT_PERCENT,
        "reasons": "; ".join(reasons.values()),
    }


def _numbers(why: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(why)]


def _apart(ratios: Sequence[float]) -> float:
    return round(100 * (max(ratios) / min(ratios) - 1), 2)
