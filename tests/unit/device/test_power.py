"""Watts from hwmon and tegrastats, energy from watts."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.device import power
from edgetl.device.system import System

ORIN = "RAM 3000/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [2%@729,0%@729,off,off] GR3D_FREQ 0% cpu@48.3C "
ORIN += "VDD_IN 4969mW/5010mW VDD_CPU_GPU_CV 480mW/490mW VDD_SOC 1400mW/1390mW"
NANO = "RAM 1200/3956MB (lfb 100x4MB) CPU [5%@102,off] PLL@30C POM_5V_IN 2000/1990 POM_5V_GPU 40/40 POM_5V_CPU 160/160"


@pytest.mark.parametrize("line, total, source", [(ORIN, 4969.0, "VDD_IN"), (NANO, 2000.0, "POM_5V_IN"), ("", None, "")])
def test_a_line_of_tegrastats(line: str, total: Any, source: str) -> None:
    found = power.parse_tegrastats(line)
    assert power.total_mw(found) == (total, source) and not {"RAM", "SWAP", "CPU"} & set(found)


def test_the_whole_is_the_input_rail_or_the_sum_that_makes_the_module() -> None:
    parts = {"VDD_GPU_SOC": 4000.0, "VDD_CPU_CV": 1000.0, "VIN_SYS_5V0": 3500.0, "VDDQ_VDD2_1V8AO": 500.0}
    assert power.total_mw(parts) == (8500.0, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0")
    assert power.total_mw({"VDD_IN": 5000.0, "VDD_SOC": 1400.0}) == (5000.0, "VDD_IN")
    assert power.total_mw({"VDD_GPU_SOC": 4000.0, "RAIL": 1.0}) == (None, "")


def wait_for(meter: power.Meter, mw: int) -> None:
    deadline = time.monotonic() + 60
    while mw not in {round(seen) for _, seen in meter.samples}:
        assert time.monotonic() < deadline, meter.samples[-3:]
        time.sleep(0.01)


def test_the_meter_sees_power_change(board: Any) -> None:
    system, _ = board("orin-nano-super-jp6.2.1")
    amperes = system.root / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr1_input"
    with power.Meter(system, interval=0.002) as meter:
        wait_for(meter, 7022)
        amperes.write_text("2800\n")
        wait_for(meter, 14045)
    seen = {round(mw) for _, mw in meter.samples}
    assert meter.source == "INA3221 VDD_IN" and {7022, 14045} <= seen
    assert 7022 < power.mean_mw(meter.samples) < 14045


def test_the_shortest_look_has_a_sample(board: Any) -> None:
    system, _ = board("orin-nano-super-jp6.2.1")
    with power.Meter(system) as meter:
        meter._stop.set()  # as if the thread got no core before the work was done
    assert power.mean_mw(meter.samples) == pytest.approx(7022.4)


def test_tegrastats_serves_where_no_rail_is_known(board: Any) -> None:
    system, _ = board("nano-jp4.6.1")
    with power.Meter(system) as meter:
        wait_for(meter, 2000)
    assert meter.source == "tegrastats POM_5V_IN" and power.mean_mw(meter.samples) == 2000.0


def test_no_meter_is_no_energy(tmp_path: Path) -> None:
    with power.Meter(System(tmp_path)) as meter:
        pass
    assert meter.source == "" and power.mean_mw(meter.samples) is None
    assert power.energy(None, None, 1.0, 10) == {"gross_mj": None, "net_mj": None, "load_mw": None, "idle_mw": None}


def test_energy_of_an_image_by_hand() -> None:
    # 6 W for 2 s over 400 images: 30 mJ each; 2 W of it were drawn anyway: 20 mJ net.
    found = power.energy(6000.0, 2000.0, 2.0, 400)
    assert (found["gross_mj"], found["net_mj"]) == (30.0, 20.0)
    assert power.energy(6000.0, None, 2.0, 400)["net_mj"] is None


@given(st.lists(st.tuples(st.floats(0.001, 10), st.floats(0, 60_000)), min_size=2, max_size=50))
def test_the_mean_lies_between_its_samples_and_uneven_gaps_do_not_weigh(steps: list[tuple[float, float]]) -> None:
    at, samples = 0.0, []
    for gap, mw in steps:
        at += gap
        samples.append((at, mw))
    mean = power.mean_mw(samples)
    values = [mw for _, mw in samples]
    assert mean is not None and min(values) - 1e-6 <= mean <= max(values) + 1e-6
    doubled = [s for a, b in pairwise(samples) for s in (a, ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2))]
    assert power.mean_mw([*doubled, samples[-1]]) == pytest.approx(mean, rel=1e-6, abs=1e-6)
