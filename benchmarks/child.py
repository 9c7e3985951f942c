"""Running a piece of edgetl in a process of its own, so that its memory and threads are nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def cores() -> int:
    """Cores that this process may use: what both sides of a comparison are given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_module(
    module: str, *arguments: str, threads: int, python: str = sys.executable, limit_s: float | None = None
) -> Any:
    """`python -m module arguments...`; the JSON on its last line of stdout. Its stderr passes through.

    Raises RuntimeError when it fails or takes longer than `limit_s`.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(
            [python, "-m", module, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{module} was stopped after {limit_s:.0f} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{module} exited {done.returncode}: " + "; ".join(lines[-3:]))
    return json.loads(lines[-1])
