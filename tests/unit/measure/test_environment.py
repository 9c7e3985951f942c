"""What a machine says of itself, read from files that the test writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetl.measure.environment import available_cores, environment


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine() -> None:
    found = environment(threads=2)
    assert found["threads"] == 2
    assert found["cores"] >= 1
    assert found["versions"]["numpy"]
    assert len(found["id"]) == 12
    assert json.loads(json.dumps(found)) == found


def test_the_id_is_of_what_stays() -> None:
    first, second = environment(threads=1), environment(threads=1)
    assert first["id"] == second["id"]
    assert environment(threads=4)["id"] != first["id"]


def test_an_arm_board(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        **{
            "proc__device-tree__model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc__cpuinfo": "processor\t: 0\nCPU part\t: 0xd42\n",
            "proc__meminfo": "MemTotal:        7990000 kB\n",
            "sys__devices__system__cpu__cpu0__cpufreq__scaling_governor": "schedutil\n",
            "sys__fs__cgroup__cpu.max": "150000 100000\n",
        },
    )
    found = environment(root=root)
    assert found["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["cpu"] == "Arm part 0xd42"
    assert (found["memory_mb"], found["governor"], found["cgroup_cpus"]) == (8181, "schedutil", 1.5)


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"proc/self/cgroup": "0::/box\n", "sys/fs/cgroup/box/cpu.max": "50000 100000\n"}, 0.5),
        # a parent's limit counts as well, and the smallest of all holds
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            },
            1.0,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/box\n0::/\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        # the host's path, seen from inside a container
        ({"proc/self/cgroup": "0::/host/only\n", "sys/fs/cgroup/cpu.max": "25000 100000\n"}, 0.25),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, files: dict[str, str], share: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert environment(root=tmp_path)["cgroup_cpus"] == share


def test_what_changes_speed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = "sys/devices/system/cpu/"
    files = {
        "proc/cpuinfo": "flags : fpu hypervisor sse\n",
        cpu + "smt/active": "1\n",
        cpu + "intel_pstate/no_turbo": "0\n",
        cpu + "cpu0/cpufreq/cpuinfo_max_freq": "4200000\n",
        "sys/firmware/acpi/platform_profile": "low-power\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    found = environment(root=tmp_path)
    told = {name: found[name] for name in ("virtual", "smt", "boost", "mhz_max", "power_mode")}
    assert told == {"virtual": True, "smt": True, "boost": True, "mhz_max": 4200, "power_mode": "low-power"}
    assert found["thread_variables"]["OMP_PROC_BIND"] == "close"


@pytest.mark.parametrize(("online", "power"), [("1", "mains"), ("0", "battery")])
def test_a_laptop(tmp_path: Path, online: str, power: str) -> None:
    supply = "sys__class__power_supply__"
    root = machine(
        tmp_path,
        **{
            "proc__cpuinfo": "model name\t: Some Laptop CPU: the fast one\n",
            supply + "AC__type": "Mains\n",
            supply + "AC__online": online,
            supply + "BAT0__type": "Battery\n",
            "sys__fs__cgroup__cpu.max": "max 100000\n",
        },
    )
    found = environment(root=root)
    assert (found["power"], found["cpu"], found["cgroup_cpus"]) == (power, "Some Laptop CPU: the fast one", None)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = environment(root=tmp_path)
    for key in ("board", "memory_mb", "governor", "power", "cgroup_cpus"):
        assert found[key] is None


@pytest.mark.parametrize(
    ("script", "gpus"),
    [
        ("echo 'NVIDIA A, 580.1'; echo 'NVIDIA B, 580.1'", ["NVIDIA A, 580.1", "NVIDIA B, 580.1"]),
        ("echo no driver; exit 9", []),
    ],
)
def test_gpus_are_those_that_the_driver_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, gpus: list[str]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + script + "\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["gpus"] == gpus


def test_a_container_is_counted_by_its_share_of_cores(tmp_path: Path) -> None:
    everything = available_cores(tmp_path)
    assert everything >= 1
    assert available_cores(machine(tmp_path / "half", **{"sys__fs__cgroup__cpu.max": "50000 100000\n"})) == 1
    assert available_cores(machine(tmp_path / "none", **{"sys__fs__cgroup__cpu.max": "max 100000\n"})) == everything
