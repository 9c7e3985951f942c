"""Watts of the board and millijoules of an inference: INA3221 through hwmon, else tegrastats. Python 3.8.

NVML reports nothing on Tegra. Rails and what they add up to: NVIDIA's Jetson Linux Developer Guide ("Software-
Based Power Consumption Modeling", "INA3221 power monitor"); millivolts and milliamperes: the kernel's
Documentation/hwmon/ina3221.rst. What the carrier board itself draws is not measured by any of them.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from edgetl.device.system import System

Rails = Dict[str, float]  # name -> milliwatts

# The rail that carries all others, where there is one; else the rails that together make the module.
_INPUTS = ("VDD_IN", "VIN", "POM_5V_IN")
_PARTS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor
)
_TEGRASTATS = re.compile(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/(\d+)(?:mW)?")
_NOT_RAILS = ("RAM", "SWAP", "IRAM", "CPU")


def rails(system: System) -> Rails:
    """Milliwatts of each rail now, from every INA3221 that hwmon shows; empty where there is none."""
    out = {}
    for label in system.glob("sys/bus/i2c/devices/*/hwmon/hwmon*/in*_label"):
        name, number = system.text(label), label.rsplit("/in", 1)[1][: -len("_label")]
        folder = label.rsplit("/", 1)[0]
        volts, amperes = (system.number("%s/%s%s_input" % (folder, kind, number)) for kind in ("in", "curr"))
        if name and volts is not None and amperes is not None and "sum" not in name.lower():
            out[name] = volts * amperes / 1000.0
    return out


def total_mw(found: Mapping[str, float]) -> Tuple[Optional[float], str]:
    """(milliwatts of the whole module, the rails they are made of); (None, "") for rails this table does not know."""
    for name in _INPUTS:
        if name in found:
            return found[name], name
    for names in _PARTS:
        if all(name in found for name in names):
            return sum(found[name] for name in names), " + ".join(names)
    return None, ""


def parse_tegrastats(line: str) -> Rails:
    """Milliwatts by rail, the momentary ones, of a line such as `... VDD_IN 4969mW/4969mW ...`."""
    found = _TEGRASTATS.findall(line)
    return {name: float(now) for name, now, _ in found if name not in _NOT_RAILS}


class Meter:
    """Samples the module's power in a thread while it is entered; `samples` are (seconds, milliwatts).

    `source` names what is measured, "" where this machine tells nothing (then there are no samples).
    """

    def __init__(self, system: System, interval: float = 0.05, clock: Callable[[], float] = time.perf_counter) -> None:
        self._system, self._interval, self._clock = system, interval, clock
        self.samples: List[Tuple[float, float]] = []
        self.source = ""
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._process: Optional[subprocess.Popen[str]] = None

    def __enter__(self) -> Meter:
        made_of = total_mw(rails(self._system))[1]
        tool = None if made_of else self._system.find("tegrastats")
        if made_of:
            self.source = "INA3221 " + made_of
            self._start(self._poll)
        elif tool is not None:
            self._process = subprocess.Popen(
                [tool, "--interval", "100"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                universal_newlines=True,
            )
            self._start(self._follow)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._process is not None:
            self._process.terminate()
        if self._thread is not None:
            self._thread.join()
        if self._process is not None:
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def _poll(self) -> None:
        while True:  # once at least, also where the thread gets no core before the work is done
            value = total_mw(rails(self._system))[0]
            if value is not None:
                self.samples.append((self._clock(), value))
            if self._stop.wait(self._interval):
                return

    def _follow(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            value, made_of = total_mw(parse_tegrastats(line))
            if value is not None:
                self.source = "tegrastats " + made_of
                self.samples.append((self._clock(), value))


def mean_mw(samples: Sequence[Tuple[float, float]]) -> Optional[float]:
    """Mean power over the time of the samples (trapezoids, so that uneven gaps do not weigh wrongly)."""
    if len(samples) < 2:
        return samples[0][1] if samples else None
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in zip(samples, samples[1:]))
    span = samples[-1][0] - samples[0][0]
    return area / span if span > 0 else samples[-1][1]


def energy(load_mw: Optional[float], idle_mw: Optional[float], seconds: float, images: int) -> Dict[str, Any]:
    """Millijoules of one image: gross (all that the module drew meanwhile), and net (above idle); None: not measured.

    mean power x time / images; net takes the mean idle power off first.
    """
    if load_mw is None or images < 1:
        return {"gross_mj": None, "net_mj": None, "load_mw": load_mw, "idle_mw": idle_mw}
    gross = load_mw * seconds / images
    net = None if idle_mw is None else (load_mw - idle_mw) * seconds / images
    return {"gross_mj": gross, "net_mj": net, "load_mw": load_mw, "idle_mw": idle_mw}
