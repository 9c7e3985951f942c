"""INT8 coverage on a machine without a GPU: NVIDIA's parser and builder, ahead of time. Python 3.8."""

from __future__ import annotations

from pathlib import Path

from edgetl.engine.guard import stdout_to_stderr
from edgetl.engine.layers import Coverage
from edgetl.engine.plan import PlanOptions, make_plan, parse
from edgetl.engine.toolkit import load
from edgetl.errors import BackendError
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.binding import TENSORRT_RTX, Log, construct, logger_for
from edgetl.spec import BatchProfile

PROXY = "TensorRT for RTX's parser and builder: a proxy for, not a proof of, what TensorRT 8.5 to 11 does on a device"


def missing() -> str:
    """Why `coverage` cannot run here, as one line; "" where it can."""
    try:
        load(TENSORRT_RTX)
    except BackendError as error:
        return str(error)
    return ""


def check_parses(graph: Path) -> None:
    """Raise EngineError, naming the nodes, where the parser of TensorRT for RTX refuses `graph`. Nothing is built.

    A fraction of a second, no GPU needed. Raises BackendError where TensorRT for RTX is not installed.
    """
    tools = load(TENSORRT_RTX)
    log = Log()
    with stdout_to_stderr():
        logger = logger_for(tools.trt, log)
        builder = construct(tools.trt.Builder, logger, log)
        parse(tools.trt, builder.create_network(tools.line.network_bits(tools.trt)), graph.read_bytes(), logger, log)


_ONE = BatchProfile(1, 1, 1)


def coverage(graph: Path, batch: BatchProfile = _ONE, monitor: Monitor = SILENT) -> Coverage:
    """Parse and build `graph` with TensorRT for RTX, no GPU needed, and read each layer's precision back.

    The plan is thrown away. It is a proxy for TensorRT proper (see PROXY): say so where it is shown.
    Raises BackendError (TensorRT for RTX is not installed), EngineError (the parser's words, with the node).
    """
    tools = load(TENSORRT_RTX)
    plan = make_plan(tools, graph.read_bytes(), "", PlanOptions(batch=batch), monitor)
    return plan.coverage
