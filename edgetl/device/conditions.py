"""What a figure depends on beside the network: power mode, clocks, temperatures, throttling. Python 3.8.

Sources: NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance" (nvpmodel, devfreq, thermal
zones, the soctherm over-current counters `oc*_event_cnt`), and the kernel's cpufreq and thermal documentation.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edgetl.device.system import System

Mode = Dict[str, Any]  # {"id": int, "name": str}

_MODE = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", re.M)
_GPU = ("gpu", "ga10b", "gv11b", "gp10b", "gm20b")  # devfreq names: by SoC up to Orin, "gpu-..." on Thor
_COOLING = ("cpufreq", "devfreq", "cpu", "gpu")  # what a cooling device that slows the chip is called


def power_modes(system: System) -> List[Mode]:
    """The modes of /etc/nvpmodel.conf; ids and names differ from board to board."""
    found = _MODE.findall(system.text("etc/nvpmodel.conf") or "")
    return [{"id": int(number), "name": name} for number, name in found]


def power_mode(system: System) -> Optional[Mode]:
    """The mode that `nvpmodel -q` tells, else the one in its status file; None where neither is there."""
    said = system.command("nvpmodel", "-q")
    found = parse_mode(said) if said else None
    if found is not None:
        return found
    status = re.search(r"pmode:(\d+)", system.text("var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    number = int(status.group(1))
    names = {mode["id"]: mode["name"] for mode in power_modes(system)}
    return {"id": number, "name": names.get(number, "unknown")}


def parse_mode(said: str) -> Optional[Mode]:
    """`NV Power Mode: 25W` and the id on the line after it; warnings may stand around them."""
    match = re.search(r"NV Power Mode:\s*(\S.*?)\s*\n\s*(\d+)\s*(?:\n|$)", said)
    return {"id": int(match.group(2)), "name": match.group(1)} if match else None


def clocks(system: System) -> Dict[str, Any]:
    """CPU and GPU clocks in MHz: {"cpu": [...], "gpu": {...}|None, "locked": bool|None}.

    A clock whose lowest and highest allowed values are the same is locked (`jetson_clocks` does that); None
    where nothing tells.
    """
    cpus = [_cpu(system, policy) for policy in system.glob("sys/devices/system/cpu/cpufreq/policy*")]
    gpus = [_devfreq(system, path) for path in _gpu_folders(system)]
    ranges = [(c["min_mhz"], c["max_mhz"]) for c in cpus + gpus if c["min_mhz"] is not None]
    locked = all(low == high for low, high in ranges) if ranges else None
    return {"cpu": cpus, "gpu": gpus[0] if gpus else None, "locked": locked}


def _cpu(system: System, policy: str) -> Dict[str, Any]:
    return {
        "name": policy.rsplit("/", 1)[1],
        "mhz": _mhz(system.number(policy + "/scaling_cur_freq"), 1000),
        "min_mhz": _mhz(system.number(policy + "/scaling_min_freq"), 1000),
        "max_mhz": _mhz(system.number(policy + "/scaling_max_freq"), 1000),
        "governor": system.text(policy + "/scaling_governor"),
    }


def _gpu_folders(system: System) -> List[str]:
    return [p for p in system.glob("sys/class/devfreq/*") if any(word in p.rsplit("/", 1)[1].lower() for word in _GPU)]


def _devfreq(system: System, path: str) -> Dict[str, Any]:
    return {
        "name": path.rsplit("/", 1)[1],
        "mhz": _mhz(system.number(path + "/cur_freq"), 1000000),
        "min_mhz": _mhz(system.number(path + "/min_freq"), 1000000),
        "max_mhz": _mhz(system.number(path + "/max_freq"), 1000000),
        "governor": system.text(path + "/governor"),
    }


def _mhz(value: Optional[int], divisor: int) -> Optional[float]:
    return None if value is None else round(value / divisor, 1)


def temperatures(system: System) -> Dict[str, float]:
    """Degrees Celsius by thermal zone; zones that are off cannot be read and are left out."""
    out = {}
    for zone in system.glob("sys/class/thermal/thermal_zone*"):
        name, value = system.text(zone + "/type"), system.number(zone + "/temp")
        if name and value is not None and value > -100000:  # -256000 is how a sensor says "off"
            out[name] = round(value / 1000, 1)
    return out


def throttle_counts(system: System) -> Dict[str, int]:
    """What has slowed the chip since boot, or does now, by name: over-current events, and active cooling states."""
    out = {}
    for path in system.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"):
        value = system.number(path)
        if value is not None:
            out[path.rsplit("/", 1)[1][: -len("_event_cnt")] + "_events"] = value
    for folder in system.glob("sys/class/thermal/cooling_device*"):
        name, value = system.text(folder + "/type") or "", system.number(folder + "/cur_state")
        if value is not None and any(word in name.lower() for word in _COOLING):
            out["cooling " + name] = max(value, out.get("cooling " + name, 0))
    return out


def conditions(system: System) -> Dict[str, Any]:
    """Everything above, as it stands beside a figure."""
    return {
        "power_mode": power_mode(system),
        "clocks": clocks(system),
        "temperatures_c": temperatures(system),
        "throttle": throttle_counts(system),
    }


def throttled(before: Mapping[str, int], after: Mapping[str, int]) -> Tuple[Optional[bool], List[str]]:
    """(whether something slowed the chip between two `throttle_counts`, what it was); None where nothing tells.

    An event counter that grew, or a cooling state above zero at the end.
    """
    if not after:
        return None, []
    why = []
    for name in sorted(after):
        grown = after[name] - before.get(name, 0)
        if name.endswith("_events") and grown > 0:
            why.append("%s +%d" % (name, grown))
        if name.startswith("cooling ") and after[name] > 0:
            why.append("%s at state %d" % (name, after[name]))
    return bool(why), why
