"""A sweep over power modes with a stand-in nvpmodel, and the old mode back whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgetl.device.conditions import power_mode
from edgetl.device.modes import parse_modes, set_mode, sweep
from edgetl.device.system import System
from edgetl.errors import BackendError, InputError

ROOT = Path(__file__).resolve().parents[3]

# Keeps the mode in a file; mode 3 asks for a reboot as nvpmodel does, mode 1 is refused with its own words.
NVPMODEL = """#!/bin/sh
state="$(dirname "$0")/mode"
case "$1" in
-q) n=$(cat "$state"); set -- 15W 25W MAXN_SUPER 7W; shift "$n"; echo "NV Power Mode: $1"; echo "$n" ;;
-m) case "$2" in
    3) echo 'NVPM WARN: Reboot required for changing to this power mode: 3'
       echo 'NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:'
       read answer; [ "$answer" = YES ] && echo "$2" > "$state" ;;
    1) echo 'NVPM ERROR: Error writing 2 to /sys/devices/gpu.0/fbp_pg_mask: 19' ; exit 1 ;;
    *) echo "$2" > "$state"; echo set >> "$state.log" ;;
    esac ;;
esac
"""
CONF = "".join(f"< POWER_MODEL ID={i} NAME={n} >\n" for i, n in enumerate(("15W", "25W", "MAXN_SUPER", "7W")))


@pytest.fixture
def jetson(tmp_path: Path) -> System:
    for name, text in (("usr/sbin/nvpmodel", NVPMODEL), ("usr/bin/sudo", '#!/bin/sh\nshift\nexec "$@"\n')):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nvpmodel.conf").write_text(CONF)
    (tmp_path / "usr/sbin/mode").write_text("0\n")
    return System(tmp_path)


def test_each_mode_is_measured_in_itself_and_the_old_one_comes_back(jetson: System) -> None:
    seen = []

    def measure(mode: Any) -> dict[str, Any]:
        seen.append((mode["id"], power_mode(jetson)["id"]))  # type: ignore[index]
        return {"rows": []}

    found = sweep(jetson, "all", measure, settle=0)
    assert [(f["id"], f["status"]) for f in found] == [
        (0, "measured"),
        (1, "refused"),
        (2, "measured"),
        (3, "refused"),
    ]
    assert seen == [(0, 0), (2, 2)] and power_mode(jetson) == {"id": 0, "name": "15W"}
    assert "fbp_pg_mask" in found[1]["why"] and "reboot" in found[3]["why"]


def test_the_old_mode_comes_back_after_an_error(jetson: System) -> None:
    def measure(mode: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(jetson, "MAXN_SUPER", measure, settle=0)
    assert power_mode(jetson) == {"id": 0, "name": "15W"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_old_mode_comes_back_however_the_process_ends(jetson: System, number: signal.Signals) -> None:
    program = (
        "import sys, time\nfrom edgetl.device.modes import sweep\nfrom edgetl.device.system import System\n"
        "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children inherit that it is ignored\n"
        "sweep(System(sys.argv[1]), '2', lambda mode: print('in it', flush=True) or time.sleep(60), settle=0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(jetson.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == "in it\n"
    assert power_mode(jetson) == {"id": 2, "name": "MAXN_SUPER"}
    process.send_signal(number)
    process.wait(timeout=120)
    process.stdout.close()
    deadline = time.monotonic() + 120
    while power_mode(jetson) != {"id": 0, "name": "15W"} and time.monotonic() < deadline:
        time.sleep(0.02)
    assert power_mode(jetson) == {"id": 0, "name": "15W"}


def test_the_guardian_does_nothing_when_all_went_well(jetson: System) -> None:
    sweep(jetson, "2", lambda mode: {}, settle=0)
    assert (jetson.root / "usr/sbin/mode.log").read_text().count("set") == 2  # there and back, no third time


def test_a_mode_that_cannot_be_put_back_is_an_error_with_the_command(jetson: System) -> None:
    def measure(mode: Any) -> dict[str, Any]:
        (jetson.root / "usr/sbin/nvpmodel").write_text(NVPMODEL.replace('echo "$2" > "$state";', ""))
        return {}

    with pytest.raises(BackendError, match=r"could not be put back.*sudo nvpmodel -m 0"):
        sweep(jetson, "2", measure, settle=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="as root no sudo is asked")
def test_root_needs_no_sudo(jetson: System) -> None:
    (jetson.root / "usr/bin/sudo").unlink()
    assert set_mode(jetson, {"id": 2, "name": "MAXN_SUPER"}) is None


def test_words_that_are_no_mode(jetson: System, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such power mode: 9; it has: 0 \(15W\)"):
        sweep(jetson, "0,9", lambda mode: {}, settle=0)
    with pytest.raises(InputError, match="tells no power modes"):
        parse_modes("all", [])
    known = [{"id": 0, "name": "15W"}, {"id": 2, "name": "MAXN"}]
    assert [m["id"] for m in parse_modes("MAXN, 0", known)] == [2, 0]
