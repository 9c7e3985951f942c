"""What this device is: board, L4T, JetPack, SM, TensorRT, CUDA, Python, memory, disk, power mode, clocks, heat.

Plain reads, no root. Nothing here raises for a board it does not know: what cannot be told is "unknown" or null.
Python 3.8.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Optional

from edgetl.bundle import sha256_file
from edgetl.device import conditions, power
from edgetl.device.system import System
from edgetl.errors import EdgetlError
from edgetl.runtime import cudart
from edgetl.runtime.binding import TENSORRT, import_binding
from edgetl.runtime.machine import int8_instructions, platform_name
from edgetl.target import board_of, jetpack_of, parse_tegra_release, profile_for, sm_text

UNKNOWN = "unknown"
PACKAGES = (
    "nvidia-l4t-core",
    "nvidia-jetpack",
    "libnvinfer11",
    "libnvinfer10",
    "libnvinfer8",
    "python3-libnvinfer",
    "python3-numpy",
    "python3-pil",
)
_SMS = {"tegra210": "5.3", "tegra186": "6.2", "tegra194": "7.2", "tegra234": "8.7", "tegra264": "11.0"}


def probe(system: Optional[System] = None, folder: Path = Path()) -> Dict[str, Any]:
    """One JSON object. `folder`: whose file system's room is told. `system`: where files are looked up.

    What runs (Python, CUDA, TensorRT, onnxruntime) is always this machine's own, whatever `system` says.
    """
    system = system or System()
    packages = system.packages(PACKAGES)
    release = _l4t(system, packages)
    found = conditions.conditions(system)
    return {
        "app": app(),
        "platform": platform_name(),
        "os": _os(system),
        "kernel": platform.release(),
        "board": _board(system),
        "l4t": release or UNKNOWN,
        "jetpack": _jetpack(release),
        "packages": packages,
        "tensorrt": _tensorrt(),
        "cuda": _cuda(),
        "python": _python(),
        "memory": memory(system),
        "disk": disk(folder),
        "cpu": {"cores": os.cpu_count(), "int8": list(int8_instructions(system.root) or ())},
        "power_mode": found["power_mode"],
        "power_modes": conditions.power_modes(system),
        "clocks": found["clocks"],
        "temperatures_c": found["temperatures_c"],
        "throttle": found["throttle"],
        "power": _power(system),
        "time": round(time.time(), 3),
        "uptime_s": _uptime(system),
    }


def app() -> Dict[str, Any]:
    """{"version", "sha256"}: of the zipapp that this runs from; sha256 is null for a source tree."""
    from edgetl import __version__

    archive = archive_path()
    return {"version": __version__, "sha256": sha256_file(archive) if archive is not None else None}


def archive_path() -> Optional[Path]:
    """The zipapp that this module was loaded from; None in a source tree."""
    for parent in Path(__file__).parents:
        if parent.is_file():
            return parent
    return None


def _board(system: System) -> Dict[str, Any]:
    compatible = system.raw("proc/device-tree/compatible") or b""
    names = [name for name in compatible.decode("ascii", "replace").split("\0") if name]
    known = board_of(compatible)
    soc = next((name.partition(",")[2] for name in names if name.startswith("nvidia,tegra")), None)
    return {
        "name": known.name if known else UNKNOWN,
        "part": known.part if known else None,
        "model": system.text("proc/device-tree/model"),
        "compatible": names,
        "soc": soc,
        "sm": sm_text(known.sm) if known else _SMS.get(soc or ""),
        "dla": known.dla if known else None,
        "jetson": known is not None or soc in _SMS,
    }


def _l4t(system: System, packages: Dict[str, str]) -> Optional[str]:
    """From /etc/nv_tegra_release, else from the version of nvidia-l4t-core ("36.4.3-20250107174145")."""
    told = parse_tegra_release(system.text("etc/nv_tegra_release") or "")
    return told or packages.get("nvidia-l4t-core", "").partition("-")[0] or None


def _jetpack(release: Optional[str]) -> str:
    """The JetPack line of this L4T by our table, "unknown" beyond it."""
    row = jetpack_of(release) if release and release[:1].isdigit() else None
    return row.name if row else UNKNOWN


def _tensorrt() -> Dict[str, Any]:
    """{"version", "profile", "error"}: of the binding that this Python loads; "profile" is the graphs it reads."""
    out: Dict[str, Any] = {"version": None, "profile": None, "error": None}
    try:
        out["version"] = str(import_binding(TENSORRT).__version__)
        out["profile"] = profile_for(out["version"])
    except EdgetlError as error:
        out["error"] = error.as_json()
    return out


def _cuda() -> Dict[str, Any]:
    """{"runtime", "gpu", "sm", "sm_count", "memory_mb", "error"}."""
    out: Dict[str, Any] = dict.fromkeys(("runtime", "gpu", "sm", "sm_count", "memory_mb", "error"))
    try:
        out["runtime"] = cudart.load().version()
        gpu = cudart.gpu()
        out.update(gpu=gpu.name, sm=sm_text(gpu.sm), sm_count=gpu.sm_count, memory_mb=gpu.memory_mb)
    except EdgetlError as error:
        out["error"] = error.as_json()
    return out


def _python() -> Dict[str, Any]:
    names = {"numpy": "numpy", "pillow": "Pillow", "onnxruntime": "onnxruntime"}
    found: Dict[str, Any] = {key: _version(name) for key, name in names.items()}
    found["onnxruntime"] = found["onnxruntime"] or _version("onnxruntime-gpu")
    return dict(found, version=platform.python_version(), venv=sys.prefix != sys.base_prefix)


def _version(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def memory(system: System) -> Dict[str, Optional[int]]:
    """{"total_mb", "available_mb", "swap_mb", "swap_free_mb"} in units of 1e6 bytes; GPU allocations cannot swap."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", system.text("proc/meminfo") or "", re.M))
    keys = {"total_mb": "MemTotal", "available_mb": "MemAvailable", "swap_mb": "SwapTotal", "swap_free_mb": "SwapFree"}
    return {key: int(found[name]) * 1024 // 1000000 if name in found else None for key, name in keys.items()}


def disk(folder: Path) -> Dict[str, Optional[int]]:
    """{"total_mb", "free_mb"} of the file system that `folder` lies on, or will lie on."""
    folder = Path(os.path.abspath(str(folder)))
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        found = shutil.disk_usage(str(folder))
    except OSError:
        return {"total_mb": None, "free_mb": None}
    return {"total_mb": found.total // 1000000, "free_mb": found.free // 1000000}


def _power(system: System) -> Dict[str, Any]:
    """{"rails_mw", "total_mw", "source"}; total is null where the rails are none that our table adds up."""
    found = power.rails(system)
    total, made_of = power.total_mw(found)
    source = "INA3221 " + made_of if made_of else ("tegrastats" if system.find("tegrastats") else "")
    return {"rails_mw": found, "total_mw": total, "source": source}


def _os(system: System) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]*)', system.text("etc/os-release") or "", re.M)
    return match.group(1) if match else platform.platform()


def _uptime(system: System) -> Optional[float]:
    words: List[str] = (system.text("proc/uptime") or "").split()
    try:
        return float(words[0])
    except (IndexError, ValueError):
        return None
