"""What NVIDIA's parser and builder make of a graph, joined with its MACs. Needs tensorrt-rtx, no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from edgetl import engine
from edgetl.graph.macs import int8_share
from edgetl.monitor import SILENT, Monitor


def int8_coverage(
    model: onnx.ModelProto, path: Path, monitor: Monitor = SILENT
) -> tuple[float | None, dict[str, Any] | None]:
    """(share of MACs in INT8, what to record); (None, None) where TensorRT for RTX is not installed.

    A quantised node that runs in float is warned of by name. Raises EngineError with the parser's words
    when the graph is refused.
    """
    if engine.missing():
        return None, None
    found = engine.coverage(path, monitor=monitor)
    share = int8_share(model, found.precisions)
    fallen = list(found.fallbacks())
    if fallen:
        monitor.warn(f"{len(fallen)} quantised nodes run in float in NVIDIA's builder, first: {fallen[0]}")
    return share, {"layers": found.counts, "fallbacks": fallen, "evidence": engine.PROXY}
