"""Graph -> TensorRT engine on this machine, and the proof of what precision its layers run in."""

from edgetl.engine.coverage import PROXY, coverage, missing
from edgetl.engine.layers import Coverage, Layer, Source
from edgetl.engine.toolkit import TENSORRT, TENSORRT_RTX, Toolkit, line_for, load

__all__ = [
    "PROXY",
    "TENSORRT",
    "TENSORRT_RTX",
    "Coverage",
    "Layer",
    "Source",
    "Toolkit",
    "coverage",
    "line_for",
    "load",
    "missing",
]
