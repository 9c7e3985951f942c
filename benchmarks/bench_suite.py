"""A suite that measures "bench": `edgetl bench` of each bundle, a row for each candidate and batch size."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.child import run_module
from benchmarks.rows import Case, Row, row
from benchmarks.suite import Network, Suite
from benchmarks.suite_bundles import bundle_of

QUICK_S = 0.1


def run(suite: Suite, quick: bool) -> Iterator[Row]:
    """The rows of every network, in the order of the file."""
    for network in suite.networks:
        made = bundle_of(network, suite.target)
        for found in _benched(suite, made, quick):
            case = Case("bench", f"{suite.name}: {network.name}, {found['id']}", quick)
            yield row(case, suite.threads, values(suite, network, found))


def _benched(suite: Suite, bundle: Path, quick: bool) -> list[dict[str, Any]]:
    """The rows of `edgetl bench`; it works on a copy, so that the cached bundle gathers none."""
    words = ["--target", suite.target, "--precisions", ",".join(suite.precisions)]
    words += ["--batch", ",".join(map(str, suite.batches)), "--threads", str(suite.threads)]
    words += ["--seconds", str(min(suite.seconds, QUICK_S) if quick else suite.seconds)]
    for option in ("backends", "providers"):
        names = getattr(suite, option)
        words += [f"--{option}", ",".join(names)] if names else []
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        copy = shutil.copytree(bundle, Path(folder) / "bundle")
        found = run_module("edgetl", "-q", "bench", str(copy), *words, "--json", threads=suite.threads)
    return list(found["rows"])


def values(suite: Suite, network: Network, found: Mapping[str, Any]) -> dict[str, Any]:
    """What a row keeps of one of bench's. The accuracy of random weights is left out: it would mean nothing."""
    latency = found["latency_ms"] or {}
    low, high = (found.get("latency_ci_ms") or {}).get("p50") or (None, None)
    ratio, ratio_low, ratio_high = found.get("ratio_p50") or (None, None, None)
    trained = network.weights != "none"
    noise = found.get("noise") or {}
    kept = {
        "suite": suite.name,
        "network": network.name,
        "batch": found["batch"],
        "backend": found["backend"],
        "provider": found["provider"],
        "precision": found["precision"],
        "status": found["status"] if found["error"] is None else f"failed: {found['error']}"[:300],
        "p50_ms": latency.get("p50"),
        "p50_low_ms": low,
        "p50_high_ms": high,
        "p90_ms": latency.get("p90"),
        "p99_ms": latency.get("p99"),
        "runs": latency.get("n"),
        "ratio": ratio,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
        "throughput_ips": found["throughput_ips"],
        "peak_mb": found["peak_rss_mb"],
        "size_mb": None if found["size_bytes"] is None else found["size_bytes"] / 1e6,
        "accuracy": found["accuracy"] if trained else None,
        "drop_pp": found["drop_pp"] if trained else None,
        "n_images": found["n_images"],
        "noise": "; ".join(noise.get("why") or ()),
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in kept.items()}
