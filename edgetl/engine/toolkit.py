"""Which TensorRT is here, and how its line wants a network built: one strategy per line, side by side.

8.5/8.6 are weakly typed: the graph's recorded precision becomes builder flags. 10.x is asked for strong
typing; 11 knows nothing else; TensorRT for RTX builds ahead of time on a machine without a GPU. The
precision is never an option of the build. Python 3.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Mapping, Tuple

from edgetl.errors import EngineError, InputError
from edgetl.runtime.binding import TENSORRT, TENSORRT_RTX, TITLES, import_binding
from edgetl.target import TRT8, TRT10, parse_version, profile_for


@dataclass(frozen=True)
class Line:
    """How one TensorRT line takes a graph.

    `network_flags`: names in NetworkDefinitionCreationFlag. `precision_flags`: by recorded precision, names
    in BuilderFlag. `profiles`: the graph profiles it reads. `ahead_of_time`: builds without a GPU.
    `where` and `seen` are for people: the releases it comes with, and what of it was tried for real.
    """

    name: str
    where: str
    seen: str
    network_flags: Tuple[str, ...]
    precision_flags: Mapping[str, Tuple[str, ...]]
    profiles: Tuple[str, ...]
    ahead_of_time: bool = False

    def network_bits(self, trt: Any) -> int:
        """The argument of `Builder.create_network`. Raises EngineError where the binding lacks a flag."""
        bits = 0
        for flag in self.network_flags:
            bits |= 1 << int(_member(trt, "NetworkDefinitionCreationFlag", flag))
        return bits

    def builder_flags(self, trt: Any, precision: str) -> Tuple[Any, ...]:
        """Members of BuilderFlag for a graph of that recorded precision; empty on strongly typed lines."""
        return tuple(_member(trt, "BuilderFlag", flag) for flag in self.precision_flags.get(precision, ()))


_BY_FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}
_TYPED: Mapping[str, Tuple[str, ...]] = {}  # the graph's own types are the engine's

_NAMES_ONLY = "not yet seen on hardware; the names used are checked against the bindings of "

WEAKLY_TYPED = Line("8.5-8.6", "JetPack 5 and 6.0", _NAMES_ONLY + "8.6.1", ("EXPLICIT_BATCH",), _BY_FLAGS, (TRT8,))
STRONGLY_TYPED = Line("10", "JetPack 6.1 to 7.2, PCs", _NAMES_ONLY + "10.3.0", ("STRONGLY_TYPED",), _TYPED, (TRT10,))
ALWAYS_TYPED = Line("11", "JetPack 7.2.2, PCs", _NAMES_ONLY + "11.4.0", (), _TYPED, (TRT10,))
RTX = Line(
    "rtx",
    "PCs with an RTX GPU",
    "parser and builder run in the tests, ahead of time; its engines are not yet seen on a GPU",
    ("STRONGLY_TYPED",),
    _TYPED,
    (TRT8, TRT10),
    ahead_of_time=True,
)
LINES = (WEAKLY_TYPED, STRONGLY_TYPED, ALWAYS_TYPED, RTX)


def line_for(version: str, flavour: str = TENSORRT) -> Line:
    """The strategy for a version string such as "10.3.0.30". Raises EngineError for versions not served."""
    if flavour == TENSORRT_RTX:
        return RTX
    try:
        profile = profile_for(version)
    except InputError as error:
        raise EngineError(error.what, error.value, error.do) from error
    if profile == TRT8:
        return WEAKLY_TYPED
    return STRONGLY_TYPED if parse_version(version)[0] == 10 else ALWAYS_TYPED


@dataclass(frozen=True)
class Toolkit:
    """A loaded binding: the module, "tensorrt" or "tensorrt_rtx", its full version, and its line's strategy."""

    trt: ModuleType
    flavour: str
    version: str
    line: Line

    @property
    def title(self) -> str:
        """For people: "TensorRT 10.3.0.30"."""
        return "%s %s" % (TITLES[self.flavour], self.version)


def load(flavour: str = TENSORRT) -> Toolkit:
    """Import the binding. Raises BackendError (what is missing, what to do), EngineError (version not served)."""
    module = import_binding(flavour)
    version = str(module.__version__)
    return Toolkit(module, flavour, version, line_for(version, flavour))


def _member(trt: Any, enum: str, name: str) -> Any:
    members = getattr(trt, enum, None)
    if not hasattr(members, name):
        raise EngineError("this TensorRT lacks a flag that its line needs", enum + "." + name, "report its version")
    return getattr(members, name)
