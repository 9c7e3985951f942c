"""What this machine has for building and running engines, and why not: the device's half of `edgetl doctor`.

Python 3.8, nothing heavier than the bindings themselves.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from edgetl.engine.toolkit import LINES, load
from edgetl.errors import EdgetlError
from edgetl.runtime import cudart
from edgetl.runtime.binding import TENSORRT, TENSORRT_RTX, TITLES
from edgetl.runtime.machine import int8_instructions, jetson_board, l4t_release
from edgetl.target import NANO, TX2, jetpack_of, sm_text, units

_ROOT = Path("/")


@dataclass(frozen=True)
class Finding:
    """One row of `doctor`. `ok` None: neither good nor bad, a statement. `do`: what to do where it is False."""

    name: str
    ok: Optional[bool]
    value: str
    do: str = ""

    def as_json(self) -> Dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def failed(name: str, error: EdgetlError) -> Finding:
    """The Finding of something that raised."""
    return Finding(name, False, "%s: %s" % (error.what, error.value) if error.value else error.what, error.do)


def survey(root: Path = _ROOT) -> List[Finding]:
    """GPU, board, CUDA, both TensorRTs, and per TensorRT line what was seen on hardware. Never raises EdgetlError."""
    out = [_cuda(), _gpu()]
    if jetson_board(root) is not None or l4t_release(root) is not None:
        out.append(_jetson(root))
    out += [_tensorrt(), _rtx(), _cpu_int8(root)]
    return out + [Finding("TensorRT line " + line.name, None, "%s: %s" % (line.where, line.seen)) for line in LINES]


def _cuda() -> Finding:
    try:
        found = cudart.load()
    except EdgetlError as error:
        return failed("CUDA runtime", error)
    return Finding("CUDA runtime", True, "%s (%s)" % (found.version(), found.path))


def _gpu() -> Finding:
    try:
        gpu = cudart.gpu()
    except EdgetlError as error:
        return failed("NVIDIA GPU", error)
    able = units(gpu.sm)
    does = ", ".join(name for name in ("fp16", "int8", "fp8", "fp4") if getattr(able, name)) or "fp32 only"
    size = "%d SMs, %.1f GB" % (gpu.sm_count, gpu.memory_mb / 1000)
    return Finding("NVIDIA GPU", True, "%s, SM %s, %s; fast in %s" % (gpu.name, sm_text(gpu.sm), size, does))


def _jetson(root: Path) -> Finding:
    board, release = jetson_board(root), l4t_release(root)
    name = board.name if board else "unknown board"
    jetpack = jetpack_of(release) if release else None
    if release is None or jetpack is None:
        return Finding("Jetson", False, "%s, L4T %s" % (name, release or "unknown"), "this JetPack is not in the table")
    value = "%s, JetPack %s (L4T %s), TensorRT %s" % (name, jetpack.name, release, jetpack.tensorrt)
    if jetpack.tensorrt.startswith("8.2"):
        has_newer = board is not None and board.sm not in (NANO, TX2)
        do = "flash JetPack 5 or newer" if has_newer else "this board has no newer JetPack; edgetl needs TensorRT 8.5"
        return Finding("Jetson", False, value, do)
    return Finding("Jetson", True, value)


def _tensorrt() -> Finding:
    try:
        tools = load(TENSORRT)
    except EdgetlError as error:
        return failed("TensorRT", error)
    reads = " and ".join(tools.line.profiles)
    try:
        cudart.gpu()
    except EdgetlError as error:
        return Finding("TensorRT", False, "%s, but no GPU to build on: %s" % (tools.version, error.what), error.do)
    return Finding("TensorRT", True, "%s builds and runs %s graphs" % (tools.version, reads))


def _rtx() -> Finding:
    name = TITLES[TENSORRT_RTX]
    try:
        tools = load(TENSORRT_RTX)
    except EdgetlError as error:
        return failed(name, error)
    return Finding(name, True, tools.version + " builds ahead of time and reads INT8 coverage, no GPU needed")


def _cpu_int8(root: Path) -> Finding:
    found = int8_instructions(root)
    if found is None:
        return Finding("CPU int8", None, "unknown: no /proc/cpuinfo here")
    if not found:
        do = "expect no speed-up from int8 on this CPU; use a CPU with VNNI or a GPU"
        return Finding("CPU int8", False, "no int8 dot-product instructions", do)
    return Finding("CPU int8", True, ", ".join(found))
