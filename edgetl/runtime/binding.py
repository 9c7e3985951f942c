"""Loading a `tensorrt` binding and keeping its log: what building and running engines share. Python 3.8."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any, List, Tuple

from edgetl.errors import BackendError

TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt_rtx"
TITLES = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT for RTX"}

_ERRORS = ("INTERNAL_ERROR", "ERROR")
_MOST_LINES = 200  # a broken graph can complain for thousands of lines


def import_binding(flavour: str = TENSORRT) -> ModuleType:
    """The module `tensorrt` or `tensorrt_rtx`. Raises BackendError that says what is missing and what to do."""
    try:
        module = importlib.import_module(flavour)
        if not hasattr(module, "Builder") or not str(module.__version__):
            raise ImportError("the module %s holds no TensorRT (%s)" % (flavour, getattr(module, "__path__", "")))
        return module
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # A missing library is an OSError or ImportError; NVIDIA's stub wheels raise RuntimeError.
        raise BackendError(TITLES[flavour] + " cannot be loaded", str(error), _install(flavour)) from error


def _install(flavour: str) -> str:
    if flavour == TENSORRT_RTX:
        return "`pip install tensorrt-rtx` (x86-64 Linux and Windows)"
    advice = "`pip install tensorrt` beside an NVIDIA GPU"
    if sys.platform == "linux" and sys.prefix != sys.base_prefix:
        advice += "; on a Jetson make the venv with --system-site-packages, JetPack brings it for the system's Python"
    return advice


class Log:
    """What TensorRT said: `problems` (errors), and `layers`, the one message that lists a plan's."""

    def __init__(self) -> None:
        self.problems: List[str] = []
        self.layers = ""

    def take(self, severity: str, message: str) -> None:
        """File one message. Never raises: an exception that crosses TensorRT's C++ frames ends the process."""
        if message.startswith("Layers:"):
            self.layers = message
        elif severity in _ERRORS and len(self.problems) < _MOST_LINES:
            self.problems.append(" ".join(message.split()))

    def reason(self) -> str:
        """The first error (those after it are its consequences), or "no reason given"."""
        return self.problems[0] if self.problems else "no reason given"


def logger_for(trt: Any, log: Log) -> Any:
    """A trt.ILogger that files everything in `log`, VERBOSE included (the layer list is told at that level)."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # the base class comes from the loaded binding
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.take(severity.name, message)

    return Logger()


def construct(kind: Any, logger: Any, log: Log) -> Any:
    """`kind(logger)`, a trt.Builder or trt.Runtime. Raises BackendError where TensorRT gives none."""
    try:
        made = kind(logger)
    except TypeError:  # pybind11's word for a constructor that returned nullptr
        made = None
    if made is None:
        raise BackendError("TensorRT could not start", log.reason(), "see `edgetl doctor`")
    return made


def shape_of(dims: Any) -> Tuple[int, ...]:
    """trt.Dims as a tuple."""
    return tuple(int(n) for n in dims)
