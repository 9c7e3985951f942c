"""Where a number was measured: what makes two runs comparable, and what explains them when they are not.

Plain reads, no root, nothing imported that is heavy. Python 3.8.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Dict, List, Optional

from edgetl.bundle import canonical_json, sha256_bytes

PACKAGES = ("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision", "tensorrt", "tensorrt-rtx")


def environment(threads: int = 0, root: Path = Path("/")) -> Dict[str, Any]:
    """What this machine is, with an "id" over everything but the passing values (load).

    `threads`: what the backends were told; 0 is each runtime's own choice. `root` is where /proc and /sys
    are looked up.
    """
    out: Dict[str, Any] = {
        "os": platform.platform(),
        "machine": platform.machine(),
        "board": _read(root / "proc/device-tree/model"),
        "cpu": _cpu_model(root),
        "cores": os.cpu_count(),
        "affinity": _affinity(),
        "cgroup_cpus": _cgroup_cpus(root),
        "memory_mb": _memory_mb(root),
        "governor": _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power": _power(root),
        "gpus": _gpus(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES for found in [_version(name)] if found},
    }
    out["id"] = sha256_bytes(canonical_json(out))[:12]
    out["load_1m"] = _load()
    return out


def _read(path: Path) -> Optional[str]:
    """The text of a /proc or /sys file without its NUL or newline; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _field(path: Path, name: str) -> Optional[str]:
    """The value of a `name : value` line."""
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _cpu_model(root: Path) -> Optional[str]:
    # Arm's /proc/cpuinfo has no model name; the part number is what tells the cores apart there.
    info = root / "proc/cpuinfo"
    part = _field(info, "CPU part")
    return _field(info, "model name") or (("Arm part " + part) if part else None) or platform.processor() or None


def _memory_mb(root: Path) -> Optional[int]:
    total = _field(root / "proc/meminfo", "MemTotal")
    return int(total.split()[0]) * 1024 // 1000000 if total else None


def available_cores(root: Path = Path("/")) -> int:
    """Cores that work of this process may be spread over: its affinity, and no more than the container's share."""
    cores = _affinity() or os.cpu_count() or 1
    share = _cgroup_cpus(root)
    return cores if share is None else max(1, min(cores, int(share)))


def _affinity() -> Optional[int]:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _cgroup_cpus(root: Path) -> Optional[float]:
    """The container's share of cores: it throttles, and p99 shows it. None without a limit."""
    parts = (_read(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit() and int(parts[1]):
        return round(int(parts[0]) / int(parts[1]), 2)
    return None


def _power(root: Path) -> Optional[str]:
    """ "mains" or "battery" where the machine tells."""
    try:
        supplies = sorted((root / "sys/class/power_supply").iterdir())
    except OSError:
        return None
    online = [_read(supply / "online") for supply in supplies if _read(supply / "type") == "Mains"]
    if not online:
        return None
    return "mains" if "1" in online else "battery"


def _gpus() -> List[str]:
    """ "name, driver" of each NVIDIA GPU that its driver reports."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode("utf-8", "replace").strip().splitlines() if done.returncode == 0 else []


def _load() -> Optional[float]:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None  # Windows has no load average


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
