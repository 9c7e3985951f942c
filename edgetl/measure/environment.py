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

PACKAGES = (
    *("numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "torch", "torchvision"),
    *("tensorrt", "tensorrt-rtx"),
)
PASSING = ("load_1m", "load_1m_before", "edgetl")  # what an environment's id leaves out
# What makes a runtime start another number of threads than it was told, or place them elsewhere.
_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
    *("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME"),
)


def environment(threads: int = 0, root: Path = Path("/")) -> Dict[str, Any]:
    """What this machine is, with an "id" over everything but the passing values (PASSING).

    `threads`: what the backends were told; 0 is each runtime's own choice. `root` is where /proc and /sys
    are looked up.
    """
    out: Dict[str, Any] = {
        "os": platform.platform(),
        "machine": platform.machine(),
        "board": read_text(root / "proc/device-tree/model"),
        "cpu": _cpu_model(root),
        "cores": os.cpu_count(),
        "smt": _flag(read_text(root / "sys/devices/system/cpu/smt/active")),
        "virtual": is_virtual(root),
        "affinity": _affinity(),
        "affinity_cores": _affinity_cores(),
        "cgroup_cpus": _cgroup_cpus(root),
        "memory_mb": _memory_mb(root),
        "governor": read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "boost": _boost(root),
        "mhz_max": _mhz_max(root),
        "power": _power(root),
        "power_mode": _power_mode(root),
        "gpus": _gpus(),
        "threads": threads,
        "thread_variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES for found in [_version(name)] if found},
    }
    out["id"] = sha256_bytes(canonical_json(out))[:12]
    out["load_1m"] = load_1m()
    out["edgetl"] = _version("edgetl")
    return out


def read_text(path: Path) -> Optional[str]:
    """The text of a /proc or /sys file without its NUL or newline; None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _field(path: Path, name: str) -> Optional[str]:
    """The value of a `name : value` line."""
    for line in (read_text(path) or "").splitlines():
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


def _affinity_cores() -> Optional[str]:
    """Which cores those are: "0-3,8"."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    runs: List[List[int]] = []
    for core in sorted(os.sched_getaffinity(0)):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(a) if a == b else "%d-%d" % (a, b) for a, b in runs)


def _cgroup_cpus(root: Path) -> Optional[float]:
    """The container's share of cores, its own or a parent's: it throttles, and p99 shows it. None without a limit."""
    shares = []
    for folder in cgroup_folders(root):
        parts = (read_text(folder / "cpu.max") or "").split()  # v2: "quota period"
        parts = parts or [read_text(folder / ("cpu.cfs_%s_us" % name)) or "" for name in ("quota", "period")]  # v1
        if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit() and int(parts[1]):
            shares.append(round(int(parts[0]) / int(parts[1]), 2))
    return min(shares) if shares else None


def cgroup_folders(root: Path = Path("/")) -> List[Path]:
    """The control groups that this process's CPU time is counted in, innermost first (cgroups(7), v1 and v2).

    In a container the path that the kernel tells may be the host's; what is not there is left out, and the mount's own
    folder is always the last.
    """
    base, inside = root / "sys/fs/cgroup", "/"
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "cpu" in controllers.split(",") and (base / "cpu").is_dir():
            base, inside = base / "cpu", path
            break
        if number == "0" and not controllers:
            inside = path
    own = base / inside.lstrip("/")
    nested = [own, *own.parents]
    return [folder for folder in nested[: nested.index(base) + 1] if folder.is_dir()] if base in nested else [base]


def is_virtual(root: Path = Path("/")) -> bool:
    """Whether a hypervisor is below: it may take the cores away, and what it says of clocks is made up."""
    return "hypervisor" in (_field(root / "proc/cpuinfo", "flags") or "").split()


def _flag(text: Optional[str]) -> Optional[bool]:
    return {"0": False, "1": True}.get(text or "")


def _boost(root: Path) -> Optional[bool]:
    """Whether cores may run above their nominal clock: then the first seconds are faster than the rest."""
    found = _flag(read_text(root / "sys/devices/system/cpu/cpufreq/boost"))
    no_turbo = _flag(read_text(root / "sys/devices/system/cpu/intel_pstate/no_turbo"))
    return found if no_turbo is None else not no_turbo


def _mhz_max(root: Path) -> Optional[int]:
    text = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq") or ""
    return int(text) // 1000 if text.isdigit() else None


def _power_mode(root: Path) -> Optional[str]:
    """A laptop's platform profile ("balanced"), a Jetson's nvpmodel ("pmode:0002")."""
    return read_text(root / "sys/firmware/acpi/platform_profile") or read_text(root / "var/lib/nvpmodel/status")


def _power(root: Path) -> Optional[str]:
    """ "mains" or "battery" where the machine tells."""
    try:
        supplies = sorted((root / "sys/class/power_supply").iterdir())
    except OSError:
        return None
    online = [read_text(supply / "online") for supply in supplies if read_text(supply / "type") == "Mains"]
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


def load_1m() -> Optional[float]:
    """The load average of the last minute: tasks that ran or wanted to. None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None  # Windows has no load average


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
