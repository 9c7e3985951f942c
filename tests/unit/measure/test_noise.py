"""What went on beside a measurement, from files that the test writes, and really on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgetl.measure.noise import Counters, Watch, between, counters, reasons

QUIET: dict[str, Any] = {
    **{"seconds": 5.0, "others": 0.01, "waited": 0.001, "steal": 0.0, "quota": 0.0, "involuntary_switches_per_s": 1.0},
    **{"cpu_throttled": 0, "mhz": [3000.0, 3000.0], "pace": 0.01, "gpu": None, "load_1m": [0.1, 0.9]},
}


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({}, ""),
        ({"others": 0.15}, "other processes used 0.15 of 2 cores"),
        ({"waited": 0.34}, "waited for a core 34 % of the time"),
        ({"steal": 0.05}, "hypervisor took 5.0 % of a core"),
        ({"quota": 0.2}, "quota held it back 20.0 %"),
        ({"cpu_throttled": 3}, "throttled itself 3 times"),
        ({"mhz": [1200.0, 3600.0]}, "between 1200 and 3600 MHz"),
        ({"mhz": [3400.0, 3600.0]}, ""),
        ({"pace": 0.12}, "varied by +-12 %"),
        ({"gpu": {"before": None, "after": [{"slowed_by": ["heat", "power cap"]}]}}, "slowed by heat, power cap"),
        ({"gpu": {"before": None, "after": [{"slowed_by": []}]}}, ""),
        # What a machine does not tell is not held against it.
        (dict.fromkeys(QUIET), ""),
    ],
)
def test_reasons(seen: dict[str, Any], said: str) -> None:
    found = reasons({**QUIET, **seen}, cores=2)
    assert len(found) == bool(said)
    assert said in "".join(found)


def test_shares_and_rates() -> None:
    first = Counters(100.0, 10.0, 50.0, 1.0, 10.0, 0.5, 100, 0.0, 4)
    last = Counters(110.0, 18.0, 63.0, 1.5, 18.0, 2.5, 150, 1.0, 6)
    assert between(first, last) == {
        **{"seconds": 10.0, "others": 0.5, "waited": 0.2, "steal": 0.05, "quota": 0.1},
        **{"involuntary_switches_per_s": 5.0, "cpu_throttled": 2},
    }
    silent = between(Counters(1.0, 1.0), Counters(2.0, 1.5))
    assert [key for key, value in silent.items() if value is not None] == ["seconds"]


def test_counters_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        {
            "proc/stat": "cpu  100 10 30 5000 7 1 2 40 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n",
            "proc/self/task/1/schedstat": "3000000000 500000000 12\n",
            "proc/self/task/2/schedstat": "1000000000 250000000 3\n",
            "proc/self/task/3/schedstat": "torn",
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/box/cpu.stat": "usage_usec 1\nnr_throttled 2\nthrottled_usec 1500000\n",
            "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2\n",
            "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "5\n",
        },
    )
    found = counters(root)
    assert (found.busy_s, found.steal_s) == (pytest.approx(1.43), pytest.approx(0.40))  # ticks of 10 ms
    assert (found.ran_s, found.waited_s) == (4.0, 0.75)
    assert (found.quota_s, found.throttled) == (pytest.approx(1.5), 7)


def test_a_version_1_control_group(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/box\n0::/\n",
        "sys/fs/cgroup/cpu/box/cpu.stat": "throttled_time 2000000000",
    }
    assert counters(machine(tmp_path, files)).quota_s == pytest.approx(2.0)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    watch = Watch(root=tmp_path)
    watch()
    found = watch.found()
    for name in ("others", "waited", "steal", "quota", "cpu_throttled", "mhz", "pace", "gpu"):
        assert found[name] is None, name
    assert found["why"] == []


def test_clocks_are_the_fastest_cores_and_a_hypervisors_are_not_believed(tmp_path: Path) -> None:
    cpu = "processor: 0\ncpu MHz : 1200.5\nflags : {}\n\nprocessor: 1\ncpu MHz : 3500.2\nflags : {}\n"
    real = machine(tmp_path / "real", {"proc/cpuinfo": cpu.format("sse", "sse")})
    virtual = machine(tmp_path / "virtual", {"proc/cpuinfo": cpu.format("hypervisor", "hypervisor")})
    seen = []
    for root in (real, virtual):
        watch = Watch(root=root)
        watch()
        seen.append(watch.found()["mhz"])
    assert seen == [[3500.0, 3500.0], None]


def test_a_busy_neighbour_is_seen() -> None:
    """Really: a process that spins on the one core that this thread is held to, for as long as it takes to be seen."""
    if not Path("/proc/stat").is_file() or not hasattr(os, "sched_setaffinity"):
        pytest.skip("no /proc, or no affinity, on this system")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # the child inherits it
    try:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            try:
                found = _watched_until_noisy()
            finally:
                other.kill()
    finally:
        os.sched_setaffinity(0, cores)
    assert any("other processes used" in why for why in found["why"]), found
    assert found["waited"] is None or found["waited"] > 0.02
    assert json.loads(json.dumps(found)) == found


def _watched_until_noisy() -> dict[str, Any]:
    watch = Watch()
    watch()
    end = time.monotonic() + 120.0
    while True:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            sum(range(1000))
        watch()
        found = watch.found()
        waited = found["waited"] is None or found["waited"] > 0.02
        if (waited and any("other processes used" in why for why in found["why"])) or time.monotonic() > end:
            return found


@pytest.mark.parametrize(
    ("line", "gpu"),
    [
        (
            "1410, 1980, 45, 96.4, 0x0000000000000004",
            {"mhz": 1410.0, "max_mhz": 1980.0, "celsius": 45.0, "watts": 96.4, "slowed_by": ["power cap"]},
        ),
        (
            "300, 1980, 90, [N/A], 0x0000000000000061",
            {"mhz": 300.0, "max_mhz": 1980.0, "celsius": 90.0, "watts": None, "slowed_by": ["heat"]},
        ),
        (
            "1980, 1980, 30, 70, [N/A]",
            {"mhz": 1980.0, "max_mhz": 1980.0, "celsius": 30.0, "watts": 70.0, "slowed_by": []},
        ),
    ],
)
def test_what_nvidia_smi_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, gpu: dict[str, Any]) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{line}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    watch = Watch(root=tmp_path, gpu=True)
    watch()
    assert watch.found()["gpu"] == {"before": [gpu], "after": [gpu]}
