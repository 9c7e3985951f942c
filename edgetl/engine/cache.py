"""Engines by key, shared by all bundles of a machine: what was built once is not built again. Python 3.8.

<folder>/<key12>.plan    exactly TensorRT's bytes
<folder>/<key12>.json    its record (key, layers, ...) and sha256; written last, so it stands for a whole plan
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from edgetl.bundle import atomic_json, atomic_write, read_json, sha256_bytes, sha256_file
from edgetl.errors import BundleError
from edgetl.target import EngineKey


def restored(folder: Optional[Path], wanted: EngineKey) -> Optional[Tuple[Path, Dict[str, Any]]]:
    """(plan, record) kept under an identical key, its bytes checked; None where there is none, or it is damaged."""
    if folder is None:
        return None
    plan = folder / (wanted.digest12 + ".plan")
    try:
        kept = read_json(plan.with_suffix(".json"), "engine's record")
        if kept["record"]["key"] == wanted.to_json() and sha256_file(plan) == kept["sha256"]:
            return plan, dict(kept["record"])
    except (BundleError, OSError, KeyError, TypeError):
        return None  # as good as none: it is built again, and written over
    return None


def keep(folder: Optional[Path], key: EngineKey, plan: bytes, record: Mapping[str, Any]) -> None:
    """Keep a plan that was just built and proved. Raises DiskError."""
    if folder is None:
        return
    path = folder / (key.digest12 + ".plan")
    atomic_write(path, plan)
    plain = {name: getattr(value, "value", value) for name, value in record.items()}
    atomic_json(path.with_suffix(".json"), {"record": plain, "sha256": sha256_bytes(plan)})
