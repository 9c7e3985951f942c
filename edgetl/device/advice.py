"""What a device will and will not do for us, and why: pure decisions on what its probe told. Python 3.8."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Tuple

from edgetl.engine.survey import Finding
from edgetl.errors import InputError
from edgetl.target import NANO, TX2, Sm, jetpack_of, parse_version, profile_for, units

ROOM_MB = 300  # graphs, engines, golden cases and a timing cache of a large backbone
MEMORY_MB = 1200  # TensorRT's libraries, a CUDA context and a small build
_YEAR = 365 * 24 * 3600.0

Probe = Mapping[str, Any]


def advise(probe: Probe, now: float) -> List[Finding]:
    """One Finding for each thing that decides whether a deployment works; `now` is the PC's clock, in seconds.

    `ok` False: it will not work, or not as asked; None: unknown, tried all the same.
    """
    return [
        _jetpack(probe),
        _tensorrt(probe),
        _gpu(probe),
        *_precisions(probe),
        _dla(probe),
        _python(probe),
        _memory(probe),
        _disk(probe),
        _clocks(probe),
        _time(probe, now),
    ]


def refusals(probe: Probe, now: float = 0.0) -> List[Finding]:
    """The findings that stop a deployment before anything is pushed."""
    stops = ("JetPack", "TensorRT", "Python", "Disk")
    return [found for found in advise(probe, now) if found.ok is False and found.name in stops]


def sm_of(probe: Probe) -> Optional[Sm]:
    """The compute capability: what CUDA says, else that of the board's row; None where neither tells."""
    text = probe["cuda"]["sm"] or probe["board"]["sm"]
    if not text:
        return None
    major, _, minor = str(text).partition(".")
    return int(major), int(minor)


def _jetpack(probe: Probe) -> Finding:
    board, release = probe["board"], str(probe["l4t"])
    where = "%s, L4T %s" % (board["name"] if board["name"] != "unknown" else board["model"] or "no Jetson", release)
    if not board["jetson"] and release == "unknown":
        return Finding("JetPack", None, where + ": not a Jetson", "the ONNX Runtime backend runs here")
    row = jetpack_of(release) if release[:1].isdigit() else None
    if row is None:
        return Finding("JetPack", None, where + ", not in our table", "go on: what the device has decides")
    value = "%s: JetPack %s" % (where, row.name)
    if row.tensorrt.startswith("8.2"):
        newer = sm_of(probe) not in (NANO, TX2, None)
        do = "flash JetPack 5 or newer" if newer else "this board has no newer JetPack; use jetson-inference there"
        return Finding("JetPack", False, value + ", whose TensorRT 8.2 lacks the calls that 8.5 to 11 share", do)
    return Finding("JetPack", True, value)


def _tensorrt(probe: Probe) -> Finding:
    told = probe["tensorrt"]
    if told["version"] is None:
        installed = [n for n in ("libnvinfer10", "libnvinfer8", "libnvinfer11") if n in probe["packages"]]
        do = "sudo apt install python3-libnvinfer" if installed else "sudo apt install tensorrt (or nvidia-jetpack)"
        if probe["python"]["venv"]:
            do = "run the system's Python, not a venv; " + do
        return Finding("TensorRT", False, str((told["error"] or {}).get("value") or "not there"), do)
    try:
        profile = profile_for(told["version"])
    except InputError as error:
        return Finding("TensorRT", False, "%s: %s" % (told["version"], error.what), error.do)
    return Finding("TensorRT", True, "%s takes %s graphs" % (told["version"], profile))


def _gpu(probe: Probe) -> Finding:
    told = probe["cuda"]
    if told["gpu"] is None:
        error = told["error"] or {}
        return Finding("GPU", False, str(error.get("value") or "none"), str(error.get("do") or ""))
    return Finding("GPU", True, "%s, SM %s, CUDA %s" % (told["gpu"], told["sm"], told["runtime"]))


def _precisions(probe: Probe) -> List[Finding]:
    sm = sm_of(probe)
    if sm is None:
        return [Finding("INT8", None, "unknown GPU: bench both INT8 and FP16"), Finding("FP8", None, "unknown GPU")]
    able = units(sm)
    name = "SM %d.%d" % sm
    do = "" if able.int8 else "use FP16 on this board"
    int8 = Finding("INT8", able.int8, name + (" has INT8 units" if able.int8 else " has no INT8 units"), do)
    fp8 = Finding("FP8", able.fp8, name + (" has FP8 units" if able.fp8 else " has no FP8 units"), _FP8[able.fp8])
    return [int8, fp8]


_FP8 = {True: "edgetl makes no FP8 graphs in this version: use INT8", False: "use INT8"}


def _dla(probe: Probe) -> Finding:
    cores = probe["board"]["dla"]
    why = "edgetl builds for the GPU; TensorRT 10.8 to 11.3 have no DLA either"
    if not cores:
        return Finding("DLA", None, "none on this board" if cores == 0 else "unknown", "")
    return Finding("DLA", False, "%d cores, not used in this version" % cores, why)


def _python(probe: Probe) -> Finding:
    told = probe["python"]
    lacking = [name for name in ("numpy", "pillow") if told[name] is None]
    if lacking:
        packages = {"numpy": "python3-numpy", "pillow": "python3-pil"}
        do = "sudo apt install " + " ".join(packages[name] for name in lacking)
        return Finding("Python", False, "%s without %s" % (told["version"], " and ".join(lacking)), do)
    good, do = _old_enough(told)
    return Finding("Python", good, "%s, numpy %s, Pillow %s" % (told["version"], told["numpy"], told["pillow"]), do)


def _old_enough(told: Mapping[str, Any]) -> Tuple[bool, str]:
    for name, least in (("version", (3, 8)), ("numpy", (1, 17)), ("pillow", (7, 0))):
        if parse_version(told[name]) < least:
            return False, "edgetl's device side wants Python 3.8, numpy 1.17 and Pillow 7.0 or newer"
    return True, ""


def _memory(probe: Probe) -> Finding:
    free = probe["memory"]["available_mb"]
    if free is None:
        return Finding("Memory", None, "unknown")
    do = "" if free >= MEMORY_MB else "stop the desktop (sudo systemctl isolate multi-user.target) and what else runs"
    return Finding("Memory", free >= MEMORY_MB, "%d MB available; swap does not serve the GPU" % free, do)


def _disk(probe: Probe) -> Finding:
    free = probe["disk"]["free_mb"]
    if free is None:
        return Finding("Disk", None, "unknown")
    return Finding("Disk", free >= ROOM_MB, "%d MB free" % free, "" if free >= ROOM_MB else "free %d MB" % ROOM_MB)


def _clocks(probe: Probe) -> Finding:
    mode, locked = probe["power_mode"], probe["clocks"]["locked"]
    name = "power mode %s" % (mode["name"] if mode else "unknown")
    if locked is None:
        return Finding("Clocks", None, name)
    do = "" if locked else "clocks not locked: latency varies; `sudo jetson_clocks` locks them, measuring works without"
    return Finding("Clocks", None, name + (", clocks locked" if locked else ", clocks free"), do)


def _time(probe: Probe, now: float) -> Finding:
    away = abs(float(probe["time"]) - now)
    if now and away > _YEAR:
        return Finding("Clock", None, "%.0f years off" % (away / _YEAR), "harmless here; `timedatectl` sets it")
    return Finding("Clock", None, "%.0f s off" % away if now else "not compared")
