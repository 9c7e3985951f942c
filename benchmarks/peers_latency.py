"""A suite that measures "peers": the same network in every runtime that a PC has, timed in turns in one process.

    python -m benchmarks suite peers_latency

OpenVINO is no dependency of this project: it is taken from this environment or, behind it, from that of the peers
(`make peers-setup`, or EDGETL_PEERS_PYTHON=<its python>); where it is in neither its rows say "not installed".
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.child import run_module
from benchmarks.peers import python_of
from benchmarks.rows import Case, Row, row
from benchmarks.suite import METHODS, Suite
from benchmarks.suite_bundles import bundle_of

QUICK_S = 0.2
LIMIT_S = 1800.0


def run(suite: Suite, quick: bool) -> Iterator[Row]:
    """A row for each network, batch size and method; quick: the first network and batch size alone."""
    for network in suite.networks[:1] if quick else suite.networks:
        bundle = bundle_of(network, suite.target)
        for batch in suite.batches[:1] if quick else suite.batches:
            job = {
                "bundle": str(bundle),
                "methods": list(suite.methods),
                "batch": batch,
                "threads": suite.threads,
                "seconds": min(suite.seconds, QUICK_S) if quick else suite.seconds,
            }
            for method, found in _measured(job).items():
                case = Case("peers_latency", f"{network.name}, batch {batch}: {METHODS[method]}", quick)
                facts: dict[str, Any] = {
                    "network": network.name,
                    "batch": batch,
                    "threads": suite.threads,
                    "method": METHODS[method],
                }
                yield row(case, suite.threads, {**facts, **found})


def _measured(job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        words = (str(file), *_site_of_peers())
        found = run_module("benchmarks.peers_latency_child", *words, threads=job["threads"], limit_s=LIMIT_S)
    return dict(found)


def _site_of_peers() -> list[str]:
    """The packages' folder of the environment of the peers; none where there is none."""
    python = python_of("nncf")
    if python is None:
        return []
    ask = "import sysconfig; print(sysconfig.get_paths()['platlib'])"
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True)
    return [done.stdout.strip()]
