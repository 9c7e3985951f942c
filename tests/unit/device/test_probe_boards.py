"""The probe on boards composed from documented formats; machines nobody heard of; files that cannot be read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.device import conditions, power
from edgetl.device.advice import advise, refusals
from edgetl.device.probe import probe
from edgetl.device.system import System

BOARDS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "data/boards").glob("*.json"))


def test_there_are_enough_boards() -> None:
    assert len(BOARDS) >= 8


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_read_right(name: str, board: Any, tmp_path: Path) -> None:
    system, expect = board(name)
    told = probe(system, tmp_path)
    seen = {
        "name": told["board"]["name"],
        "l4t": told["l4t"],
        "jetpack": told["jetpack"],
        "sm": told["board"]["sm"],
        "dla": told["board"]["dla"],
        "mode": told["power_mode"],
        "total_mw": told["power"]["total_mw"] and round(told["power"]["total_mw"], 2),
        "locked": told["clocks"]["locked"],
        "gpu_mhz": told["clocks"]["gpu"] and told["clocks"]["gpu"]["mhz"],
    }
    assert seen == expect
    json.dumps(told, allow_nan=False)


def test_a_zone_that_is_off_is_left_out(board: Any) -> None:
    found = conditions.temperatures(board("orin-nano-super-jp6.2.1")[0])
    assert found["cpu-thermal"] == 48.3 and "cv0-thermal" not in found
    assert conditions.temperatures(board("unknown-orin-module")[0]) == {}


def test_the_fan_is_no_throttling_and_events_are_counted_from_before(board: Any) -> None:
    system, _ = board("orin-nano-super-jp6.2.1")
    before = conditions.throttle_counts(system)
    assert before == {
        "oc1_events": 0,
        "oc2_events": 15,
        "oc3_events": 37,
        "cooling cpufreq-cpu0": 0,
        "cooling devfreq-17000000.gpu": 0,
    }
    assert conditions.throttled(before, before) == (False, [])
    (system.root / "sys/class/hwmon/hwmon3/oc3_event_cnt").write_text("40\n")
    (system.root / "sys/class/thermal/cooling_device2/cur_state").write_text("3\n")
    slowed, why = conditions.throttled(before, conditions.throttle_counts(system))
    assert slowed and why == ["cooling devfreq-17000000.gpu at state 3", "oc3_events +3"]
    assert conditions.throttled({}, {}) == (None, [])


def test_modes_are_listed_with_this_boards_numbers(board: Any) -> None:
    modes = conditions.power_modes(board("orin-nano-super-jp6.2.1")[0])
    assert modes[2] == {"id": 2, "name": "MAXN_SUPER"} and len(modes) == 4


@pytest.mark.parametrize(
    "said, mode",
    [
        ("NV Power Mode: MAXN\n0", {"id": 0, "name": "MAXN"}),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: 25W\n1\n", {"id": 1, "name": "25W"}),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_30W\n2\n", {"id": 2, "name": "MODE_30W"}),
        ("NVPM ERROR: no such mode", None),
        ("", None),
    ],
)
def test_what_nvpmodel_says(said: str, mode: Any) -> None:
    assert conditions.parse_mode(said) == mode


def test_a_machine_that_tells_nothing_is_unknown_and_no_error(tmp_path: Path) -> None:
    told = probe(System(tmp_path), tmp_path / "not/there/yet")
    assert told["board"]["name"] == told["l4t"] == told["jetpack"] == "unknown" and not told["board"]["jetson"]
    assert told["power_mode"] is None and told["memory"]["total_mb"] is None and told["disk"]["free_mb"] > 0
    assert all(found.ok is not False or found.do or found.name in ("GPU", "DLA") for found in advise(told, time.time()))


@given(
    st.dictionaries(st.sampled_from(["compatible", "release", "mem", "temp", "mode", "dpkg"]), st.binary(max_size=80))
)
def test_no_bytes_break_the_probe(tmp_path_factory: Any, contents: dict[str, bytes]) -> None:
    where = {
        "compatible": "proc/device-tree/compatible",
        "release": "etc/nv_tegra_release",
        "mem": "proc/meminfo",
        "temp": "sys/class/thermal/thermal_zone0/temp",
        "mode": "var/lib/nvpmodel/status",
        "dpkg": "var/lib/dpkg/status",
    }
    root = tmp_path_factory.mktemp("odd")
    for key, data in contents.items():
        path = root / where[key]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    system = System(root)
    for read in (conditions.conditions, power.rails):
        json.dumps(read(system), allow_nan=False)
    system.packages(("bash",))


def test_packages_that_were_removed_are_not_there(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    gone = "Package: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.5.2\n"
    status.write_text(gone + "\nPackage: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1\n")
    assert System(tmp_path).packages(("libnvinfer8", "libnvinfer10")) == {"libnvinfer10": "10.3.0.30-1"}


class Told:
    """A probe's answer with some of it changed."""

    def __init__(self, board: Any, name: str, tmp_path: Path) -> None:
        self.probe = probe(board(name)[0], tmp_path)
        self.probe["tensorrt"] = {"version": "10.3.0.30", "profile": "trt10", "error": None}
        self.probe["python"] = {"version": "3.10.12", "numpy": "1.21.5", "pillow": "9.0.1", "venv": False}
        self.probe["cuda"] = {"gpu": "Orin", "sm": self.probe["board"]["sm"], "runtime": "12.6", "error": None}

    def found(self, name: str) -> Any:
        return next(f for f in advise(self.probe, self.probe["time"]) if f.name == name)


def test_a_good_orin_is_refused_nothing(board: Any, tmp_path: Path) -> None:
    told = Told(board, "orin-nano-super-jp6.2.1", tmp_path)
    assert refusals(told.probe, told.probe["time"]) == []
    assert told.found("INT8").ok and told.found("FP8").ok is False and told.found("DLA").ok is None
    assert "clocks not locked" in told.found("Clocks").do


def test_jetpack_4_is_refused_with_its_reason(board: Any, tmp_path: Path) -> None:
    told = Told(board, "nano-jp4.6.1", tmp_path)
    found = told.found("JetPack")
    assert found.ok is False and "8.2" in found.value and "no newer JetPack" in found.do
    assert told.found("INT8").ok is False and "FP16" in told.found("INT8").do


def test_a_board_beyond_the_table_is_tried(board: Any, tmp_path: Path) -> None:
    told = Told(board, "unknown-orin-module", tmp_path)
    assert told.found("JetPack").ok is None and told.found("INT8").ok is True
    assert refusals(told.probe, told.probe["time"]) == []


@pytest.mark.parametrize(
    "change, name, words",
    [
        ({"tensorrt": {"version": "8.2.1.8", "profile": None, "error": None}}, "TensorRT", "older than 8.5"),
        ({"disk": {"free_mb": 10, "total_mb": 100}}, "Disk", "10 MB"),
        ({"python": {"version": "3.6.9", "numpy": "1.13", "pillow": "5.1", "venv": False}}, "Python", "3.6.9"),
        ({"python": {"version": "3.10", "numpy": None, "pillow": "9.0", "venv": False}}, "Python", "without numpy"),
    ],
)
def test_what_stops_a_deployment(change: Any, name: str, words: str, board: Any, tmp_path: Path) -> None:
    told = Told(board, "orin-nano-super-jp6.2.1", tmp_path)
    told.probe.update(change)
    stopped = refusals(told.probe, told.probe["time"])
    assert [f.name for f in stopped] == [name] and words in stopped[0].value and stopped[0].do


def test_a_clock_years_off_is_told_and_stops_nothing(board: Any, tmp_path: Path) -> None:
    told = Told(board, "orin-nano-super-jp6.2.1", tmp_path)
    found = next(f for f in advise(told.probe, told.probe["time"] + 5 * 366 * 86400) if f.name == "Clock")
    assert found.ok is None and "5 years off" in found.value
