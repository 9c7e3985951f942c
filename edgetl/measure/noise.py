"""What else went on while something was timed: other processes, a hypervisor, throttling, changing clocks. Python 3.8.

Plain reads of Linux' counters, no root. What a machine does not tell is None, and never counted as quiet or noisy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from edgetl.measure.environment import available_cores, cgroup_folders, is_virtual, load_1m, read_text

# Beyond these a machine is called noisy: what each may add to a ratio of two medians before it is worth a word.
OTHERS = 0.05  # of the cores, used by other processes
WAITED = 0.02  # of the time in which a thread of ours was ready to run
STARVED = 0.10  # of it: long runs are interrupted and short ones are not, so that ratios are wrong as well
STOLEN = 0.01  # of the machine's time, by its hypervisor; or by the container's quota, of the wall time
CLOCK = 0.10  # between the lowest and the highest clock seen
PACE = 0.05  # how far a fixed piece of work varied; spread of turns and of the ratio likewise
RATIO = 0.025  # half-width of the ratio's interval: two benches then differ by 5 % at most, as far as runs can tell

_SOONEST_S = 0.2  # clocks and pace are looked at no more often
_WORK = b"\0" * (1 << 18)
_MOST_CORES = 8  # whose clocks are read: a read of one can take a millisecond
_GPU_QUERY = "clocks.sm,clocks.max.sm,temperature.gpu,power.draw,clocks_throttle_reasons.active"
# nvml.h, nvmlClocksEventReasons: power cap, hardware slowdown, thermal (software, hardware), power brake.
_GPU_SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


@dataclass
class Counters:
    """Running totals since boot or start. Seconds, but for the counts; None where nothing tells."""

    at: float
    own_s: float
    busy_s: Optional[float] = None
    steal_s: Optional[float] = None
    ran_s: Optional[float] = None
    waited_s: Optional[float] = None
    switches: Optional[int] = None
    quota_s: Optional[float] = None
    throttled: Optional[int] = None


@dataclass
class Watch:
    """Looks at the machine when it is called (between rotations); `found` says what it saw.

    `gpu`: also ask nvidia-smi for clocks and reasons of throttling, before and after. `root`: of /proc and /sys.
    """

    root: Path = Path("/")
    gpu: bool = False
    _first: Optional[Counters] = None
    _load: Optional[float] = None
    _gpu_before: Optional[List[Dict[str, Any]]] = None
    _looked: float = 0.0
    _mhz: List[float] = field(default_factory=list)
    _pace: List[float] = field(default_factory=list)

    def __call__(self) -> None:
        """Look: the first call is where counting begins."""
        if self._first is None:
            self._load = load_1m()
            self._gpu_before = _gpus() if self.gpu else None
            self._first = counters(self.root)
        if time.perf_counter() - self._looked < _SOONEST_S:
            return
        mhz = _clock(self.root)
        self._mhz += [] if mhz is None else [mhz]
        self._pace.append(_pace())
        self._looked = time.perf_counter()

    def found(self) -> Dict[str, Any]:
        """The object that rows keep as `noise`, but for what is of one row alone. Call it after the last rotation."""
        last = counters(self.root)
        first = self._first or last
        gpus = _gpus() if self.gpu else None
        seen = between(first, last)
        seen.update(
            mhz=[min(self._mhz), max(self._mhz)] if self._mhz else None,
            pace=_half_range(self._pace),
            gpu=None if gpus is None else {"before": self._gpu_before, "after": gpus},
            load_1m=[self._load, load_1m()],
        )
        return dict(seen, why=reasons(seen, available_cores(self.root)))


def between(first: Counters, last: Counters) -> Dict[str, Any]:
    """Shares and rates between two Counters.

    others: cores that other processes used; waited: share of their ready time that our threads had no core;
    steal: share of one core's time; quota: share of the time that the container's quota held us back;
    involuntary_switches_per_s; cpu_throttled: events of the CPU's own thermal throttling.
    """
    wall = max(last.at - first.at, 1e-9)
    busy, steal = _grown(first.busy_s, last.busy_s), _grown(first.steal_s, last.steal_s)
    ran, waited = _grown(first.ran_s, last.ran_s), _grown(first.waited_s, last.waited_s)
    switches, quota = _grown(first.switches, last.switches), _grown(first.quota_s, last.quota_s)
    throttled = _grown(first.throttled, last.throttled)
    own = last.own_s - first.own_s
    return {
        "seconds": round(wall, 2),
        "others": None if busy is None else round(max(0.0, busy - own) / wall, 3),
        "waited": None if ran is None or waited is None else round(waited / max(ran + waited, 1e-9), 4),
        "steal": None if steal is None else round(steal / wall, 4),
        "quota": None if quota is None else round(quota / wall, 4),
        "involuntary_switches_per_s": None if switches is None else round(switches / wall, 1),
        "cpu_throttled": None if throttled is None else int(throttled),
    }


def reasons(seen: Dict[str, Any], cores: int) -> List[str]:
    """Why the machine was noisy, a line each; empty where nothing speaks against it."""
    why = []
    if (seen["others"] or 0.0) > OTHERS * cores:
        why.append("other processes used %.2g of %d cores" % (seen["others"], cores))
    if (seen["waited"] or 0.0) > WAITED:
        why.append("its threads waited for a core %.0f %% of the time" % (100 * seen["waited"]))
    if (seen["steal"] or 0.0) > STOLEN:
        why.append("the hypervisor took %.1f %% of a core" % (100 * seen["steal"]))
    if (seen["quota"] or 0.0) > STOLEN:
        why.append("the container's CPU quota held it back %.1f %% of the time" % (100 * seen["quota"]))
    if seen["cpu_throttled"]:
        why.append("the CPU throttled itself %d times" % seen["cpu_throttled"])
    if seen["mhz"] and seen["mhz"][1] > 0 and 1 - seen["mhz"][0] / seen["mhz"][1] > CLOCK:
        why.append("the CPU's clock went between %.0f and %.0f MHz" % tuple(seen["mhz"]))
    if (seen["pace"] or 0.0) > PACE:
        why.append("a fixed piece of work varied by +-%.0f %%" % (100 * seen["pace"]))
    slowed = sorted({word for gpu in (seen["gpu"] or {}).get("after") or () for word in gpu["slowed_by"]})
    if slowed:
        why.append("the GPU was slowed by " + ", ".join(slowed))
    return why


def ratios_hold(seen: Dict[str, Any]) -> bool:
    """Whether ratios say something although the machine was noisy: not where its threads were starved of cores."""
    return (seen.get("waited") or 0.0) <= STARVED


def counters(root: Path = Path("/")) -> Counters:
    """What the kernel counts of the machine and of this process."""
    out = Counters(at=time.perf_counter(), own_s=time.process_time())
    parts = (read_text(root / "proc/stat") or "").split("\n", 1)[0].split()
    if len(parts) > 8 and parts[0] == "cpu":  # user nice system idle iowait irq softirq steal (proc(5))
        ticks = [int(part) / os.sysconf("SC_CLK_TCK") for part in parts[1:9]]
        out.busy_s, out.steal_s = sum(ticks[:3]) + ticks[5] + ticks[6], ticks[7]
    out.ran_s, out.waited_s = _scheduled(root)
    out.switches = _switches()
    out.quota_s = _quota(root)
    out.throttled = _throttled(root)
    return out


def _scheduled(root: Path) -> Tuple[Optional[float], Optional[float]]:
    """Seconds that our threads ran, and that they were ready and had no core (Documentation/scheduler/sched-stats)."""
    ran = waited = 0
    seen = False
    for path in (root / "proc/self/task").glob("*/schedstat"):
        parts = (read_text(path) or "").split()
        if len(parts) == 3:
            seen, ran, waited = True, ran + int(parts[0]), waited + int(parts[1])
    return (ran / 1e9, waited / 1e9) if seen else (None, None)


def _switches() -> Optional[int]:
    try:
        import resource
    except ImportError:
        return None  # Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _quota(root: Path) -> Optional[float]:
    """Seconds that the container's CPU quota has held its threads back; cgroup v2 says microseconds, v1 nanoseconds."""
    for folder in cgroup_folders(root):
        lines = (line.split() for line in (read_text(folder / "cpu.stat") or "").splitlines())
        found = {parts[0]: parts[1] for parts in lines if len(parts) == 2 and parts[1].isdigit()}
        for name, unit in (("throttled_usec", 1e-6), ("throttled_time", 1e-9)):
            if name in found:
                return int(found[name]) * unit
    return None


def _throttled(root: Path) -> Optional[int]:
    """Events of Intel's thermal throttling, all cores; None where they are not counted."""
    paths = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
    found = [int(text) for text in map(read_text, paths) if text and text.isdigit()]
    return sum(found) if found else None


def _clock(root: Path) -> Optional[float]:
    """MHz of the fastest of some of our cores now (the others may be asleep); None where a hypervisor makes it up."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    paths = [root / ("sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq" % core) for core in cores[:_MOST_CORES]]
    found = [int(text) / 1000.0 for text in map(read_text, paths) if text and text.isdigit()]
    if not found and not is_virtual(root):
        lines = [line.partition(":") for line in (read_text(root / "proc/cpuinfo") or "").splitlines()]
        found = [float(value) for key, _, value in lines if key.strip() == "cpu MHz"]
    return float(round(max(found))) if found else None


def _pace() -> float:
    """Seconds for a fixed piece of work in one thread, the best of three: what a clock sensor would show, anywhere."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        hashlib.sha256(_WORK).digest()
        best = min(best, time.perf_counter() - start)
    return best


def _half_range(values: Sequence[float]) -> Optional[float]:
    """Half the distance between the 10th and 90th percentile, as a share of the median; None of fewer than 3."""
    if len(values) < 3:
        return None
    low, middle, high = np.percentile(values, [10, 50, 90])
    return round(float((high - low) / 2 / middle), 4)


def _gpus() -> Optional[List[Dict[str, Any]]]:
    """{"mhz", "max_mhz", "celsius", "watts", "slowed_by"} of each NVIDIA GPU; None where nvidia-smi does not tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=" + _GPU_QUERY, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines() if done.returncode == 0 else []
    return [_gpu(line) for line in lines] or None


def _gpu(line: str) -> Dict[str, Any]:
    parts = [part.strip() for part in line.split(",")] + [""] * 5
    numbers = [float(part) if part.replace(".", "", 1).isdigit() else None for part in parts[:4]]
    try:
        active = int(parts[4], 16)
    except ValueError:
        active = 0  # "[N/A]"
    slowed = sorted({word for bit, word in _GPU_SLOWED.items() if active & bit})
    return dict(zip(("mhz", "max_mhz", "celsius", "watts"), numbers), slowed_by=slowed)


def _grown(first: Optional[float], last: Optional[float]) -> Optional[float]:
    # Threads that ended meanwhile take their counts with them.
    return None if first is None or last is None else max(0.0, last - first)
