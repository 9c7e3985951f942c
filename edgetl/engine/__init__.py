"""Graph -> TensorRT engine on this machine, and the proof of what precision its layers run in."""

from edgetl.engine.build import BuildOptions, build, check_machine
from edgetl.engine.coverage import PROXY, check_parses, coverage, missing
from edgetl.engine.layers import Coverage, Layer, Source
from edgetl.engine.survey import Finding, failed, survey
from edgetl.engine.toolkit import Toolkit, line_for, load
from edgetl.runtime.binding import TENSORRT, TENSORRT_RTX

__all__ = [
    "PROXY",
    "TENSORRT",
    "TENSORRT_RTX",
    "BuildOptions",
    "Coverage",
    "Finding",
    "Layer",
    "Source",
    "Toolkit",
    "build",
    "check_machine",
    "check_parses",
    "coverage",
    "failed",
    "line_for",
    "load",
    "missing",
    "survey",
]
