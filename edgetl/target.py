"""Which machine takes what: Jetson and TensorRT tables, the engine's key, and the pure decisions on them.

NVIDIA's own pages disagree over time, so what a device says of itself wins over these tables: they are
for defaults and messages. Nothing here reads a file or asks a GPU. Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Mapping, Optional, Tuple

from edgetl.errors import BundleError, InputError

Sm = Tuple[int, int]  # CUDA compute capability, (8, 7) for Orin
Version = Tuple[int, ...]

TRT8, TRT10, CPU = "trt8", "trt10", "cpu"  # the values of spec.Profile, which is this module's sibling


@dataclass(frozen=True)
class JetPack:
    """One JetPack release line: what its image brings, and the highest ONNX opset its parser reads."""

    name: str
    l4t: Tuple[Version, Version]  # first and last L4T release of the line, inclusive, as (major, minor)
    python: str
    cuda: str
    tensorrt: str
    max_opset: int
    sms: Tuple[Sm, ...]


@dataclass(frozen=True)
class Board:
    """One Jetson module. `part` is the start of its device-tree name after "nvidia,"; `dla` counts DLA cores."""

    part: str
    name: str
    sm: Sm
    dla: int


@dataclass(frozen=True)
class Target:
    """What `--target` means: the graph profile, and the TensorRT that will read it ("" where none does)."""

    name: str
    profile: str
    tensorrt: str
    max_opset: int


@dataclass(frozen=True)
class Units:
    """What a GPU's arithmetic units do natively; where False, that precision is no faster there."""

    fp16: bool
    int8: bool
    fp8: bool
    fp4: bool


NANO, TX2, XAVIER, ORIN, THOR = (5, 3), (6, 2), (7, 2), (8, 7), (11, 0)

JETPACKS = (
    JetPack("4.6", ((32, 6), (32, 7)), "3.6", "10.2", "8.2", 13, (NANO, TX2, XAVIER)),
    JetPack("5.1", ((35, 2), (35, 6)), "3.8", "11.4", "8.5.2", 17, (XAVIER, ORIN)),
    JetPack("6.0", ((36, 3), (36, 3)), "3.10", "12.2", "8.6.2", 17, (ORIN,)),
    JetPack("6.1-6.2", ((36, 4), (36, 5)), "3.10", "12.6", "10.3.0", 20, (ORIN,)),
    JetPack("7.0-7.1", ((38, 2), (38, 4)), "3.12", "13.0", "10.13.3", 24, (THOR,)),
    JetPack("7.2", ((39, 2), (39, 2)), "3.12", "13.2", "10.16.2", 24, (ORIN, THOR)),
)

BOARDS = (
    Board("p3767-0000", "Orin NX 16GB", ORIN, 2),
    Board("p3767-0001", "Orin NX 8GB", ORIN, 1),
    Board("p3767-0003", "Orin Nano 8GB", ORIN, 0),
    Board("p3767-0004", "Orin Nano 4GB", ORIN, 0),
    Board("p3767-0005", "Orin Nano 8GB developer kit", ORIN, 0),
    Board("p3701", "AGX Orin", ORIN, 2),
    Board("p3834", "AGX Thor", THOR, 0),
    Board("p3668", "Xavier NX", XAVIER, 2),
    Board("p2888", "AGX Xavier", XAVIER, 2),
    Board("p3448", "Nano", NANO, 0),
    Board("p3310", "TX2", TX2, 0),
    Board("p3489", "TX2i or TX2 4GB", TX2, 0),
)

TARGETS = {
    "jetpack5": Target("jetpack5", TRT8, "8.5.2", 17),
    "jetpack6.0": Target("jetpack6.0", TRT8, "8.6.2", 17),
    "jetpack6": Target("jetpack6", TRT10, "10.3.0", 20),
    "jetpack7": Target("jetpack7", TRT10, "10.13.3", 24),
    "tensorrt": Target("tensorrt", TRT10, "10.3", 20),
    "cpu": Target("cpu", CPU, "", 20),
}
DEFAULT_TARGET = "jetpack6"

# TensorRT for RTX, no compute capability set: one engine for all of these (NVIDIA's documentation; Turing, 7.5,
# would have to be asked for). Never a Jetson, and not the data-centre chips of 9.0 and 10.0.
RTX_PORTABLE: Tuple[Sm, ...] = ((8, 0), (8, 6), (8, 9), (12, 0))

_JETPACK4 = (
    "JetPack 4's TensorRT 8.2 lacks the calls that 8.5 to 11 share; JetPack 5 needs a Xavier or Orin board, "
    "on a Nano or TX2 use an older tool"
)


def parse_target(text: str) -> Target:
    """The row of `--target`. Raises InputError that lists the rows (JetPack 4: with the reason)."""
    name = text.strip().lower()
    if name.startswith("jetpack4"):
        raise InputError("JetPack 4 cannot run edgetl's graphs", text, _JETPACK4)
    if name not in TARGETS:
        raise InputError("unknown target", text, "use one of " + ", ".join(TARGETS))
    return TARGETS[name]


def parse_version(text: str) -> Version:
    """`"10.3.0.30"` -> (10, 3, 0, 30); a suffix that is not a number ends it. Raises InputError without any number."""
    match = re.match(r"\d+(?:\.\d+)*", text.strip())
    if match is None:
        raise InputError("not a version number", repr(text), "it looks like 10.3.0")
    return tuple(int(part) for part in match.group().split("."))


def profile_for(what: str) -> str:
    """The graph profile ("trt8", "trt10", "cpu") for a `--target` name or a TensorRT version.

    Raises InputError for TensorRT below 8.5 and for 9 and 10.0-10.2: the former lack the calls, the latter
    were never on a Jetson and their strongly typed Q/DQ support is not known to be right.
    """
    if what.strip()[:1].isdigit():
        version = parse_version(what)
        if version < (8, 5):
            raise InputError("TensorRT older than 8.5", what, _JETPACK4)
        if version < (9,):
            return TRT8
        if version < (10, 3):
            raise InputError("TensorRT 9.0 to 10.2 is not served", what, "install TensorRT 10.3 or newer")
        return TRT10
    return parse_target(what).profile


def units(sm: Sm) -> Units:
    """What the compute capability can do natively.

    INT8 needs DP4A (6.1, 7.0+); 5.3 (Nano), 6.0 and 6.2 (TX2) have none and run it in software.
    FP8 from Ada (8.9), FP4 from Blackwell (10.0; of the Jetsons Thor alone).
    """
    return Units(
        fp16=sm in (NANO, (6, 0), TX2) or sm >= (7, 0),
        int8=sm == (6, 1) or sm >= (7, 0),
        fp8=sm >= (8, 9),
        fp4=sm >= (10, 0),
    )


def sm_text(sm: Sm) -> str:
    """(8, 7) -> "8.7"."""
    return "%d.%d" % sm


def parse_tegra_release(text: str) -> Optional[str]:
    """L4T release, "36.4.3", from `/etc/nv_tegra_release`; None if it does not say. Its BOARD field lies."""
    match = re.search(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return "%s.%s" % match.groups() if match else None


def jetpack_of(l4t: str) -> Optional[JetPack]:
    """The JetPack line of an L4T release such as "36.4.3"; None when the table does not know it."""
    number = parse_version(l4t)[:2]
    for row in JETPACKS:
        if row.l4t[0] <= number <= row.l4t[1]:
            return row
    return None


def board_of(compatible: bytes) -> Optional[Board]:
    """The Jetson module in `/proc/device-tree/compatible` (NUL-terminated names); None when there is none."""
    for entry in compatible.decode("ascii", "replace").split("\0"):
        # Carrier and module are joined: "nvidia,p3768-0000+p3767-0005", the module comes last.
        for part in reversed(entry.partition(",")[2].split("+")):
            for board in BOARDS:
                if part.startswith(board.part):
                    return board
    return None


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on. Two engines with equal keys are interchangeable; no others are.

    `precision` is the graph's, but for TensorRT 8's FP16, which is the FP32 graph with the FP16 flag.
    `flavour`: "tensorrt" or "tensorrt_rtx". `tensorrt`: all four numbers. `platform`: "linux-x86_64".
    `gpu`, `sm` ("8.7"), `sm_count`, `board`: empty and 0 for an engine built ahead of time. `batch`: "MIN,OPT,MAX".
    `workspace_mib`: 0 is TensorRT's own limit. `level`: builder optimisation level, -1 is TensorRT's default.
    `timing_cache_sha256`: of the cache as the build left it (it then holds every tactic of this engine), or "".
    """

    graph_sha256: str
    precision: str
    flavour: str
    tensorrt: str
    platform: str
    gpu: str
    sm: str
    sm_count: int
    board: str
    batch: str
    workspace_mib: int
    level: int
    tf32: bool
    timing_cache_sha256: str = ""

    @property
    def digest12(self) -> str:
        """First 12 hex digits of the sha256 of the key as JSON; it names the plan file."""
        body = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode("utf-8")).hexdigest()[:12]

    def to_json(self) -> Dict[str, Any]:
        """A plain dict; `from_json` takes it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineKey:
        """Read what `to_json` wrote. Raises BundleError naming what is missing or unknown."""
        known = {f.name for f in fields(cls)}
        odd = sorted(known.symmetric_difference(data))
        if odd:
            raise BundleError("an engine's key in the manifest does not have the known fields", ", ".join(odd))
        return cls(**data)


@dataclass(frozen=True)
class Decision:
    """What to do about an engine, and why. `action`: "build" (none there), "rebuild" (another), "reuse" (identical)."""

    action: str
    reason: str


def decide(existing: Optional[EngineKey], wanted: EngineKey) -> Decision:
    """Whether the engine recorded with `existing` may stand in for `wanted`: only if the keys are identical."""
    if existing is None:
        return Decision("build", "no engine yet")
    differing = [f.name for f in fields(EngineKey) if getattr(existing, f.name) != getattr(wanted, f.name)]
    if not differing:
        return Decision("reuse", "identical key " + wanted.digest12)
    said = ["%s was %s, is %s" % (n, _short(getattr(existing, n)), _short(getattr(wanted, n))) for n in differing]
    return Decision("rebuild", "; ".join(said))


def _short(value: object) -> str:
    text = str(value)
    if len(text) == 64:
        return text[:12]
    return text or "none"
