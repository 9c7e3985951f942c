"""What goes wrong on a device, for real: no room, no right, a wrong clock, memory, a reboot, damaged files.

After each: the release before still serves, the error says what to do, and the same command finishes the work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Device = Any  # conftest.Device
Result = subprocess.CompletedProcess[str]
QUICK = ("--seconds", "0.1", "--prove", "none", "--json")
CPU = ("--backend", "onnxruntime")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "flowers")
    return tmp_path / "flowers"


def words_of(board: Device, bundle: Path, *words: object) -> list[str]:
    start = [sys.executable, "-m", "edgetl", "deploy", bundle, "board", "--ssh-config", board.config, *QUICK]
    return [str(word) for word in (*start, *words)]


ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1", COLUMNS="120")


def deploy(board: Device, bundle: Path, *words: object) -> Result:
    command = words_of(board, bundle, *words)
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def answer(done: Result) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def refused(done: Result, said: str) -> None:
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    error = json.loads(done.stdout)["error"]
    assert said in " ".join(str(error[key]) for key in ("what", "value", "do")), error


def current(board: Device) -> str:
    return str((board.root / "flowers/current").readlink())


def serves(board: Device) -> None:
    """The release that serves answers for its golden photos."""
    root = board.root / "flowers"
    photos = sorted((root / "current").rglob("golden/images/*"))[:2]
    command = [sys.executable, root / "app.pyz", "classify", root / "current", *CPU, *photos]
    done = subprocess.run([str(w) for w in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == len(photos) == 2


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Any]:
    """A file system of its own at `folder`; calling what it yields mounts it with other options."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here: " + done.stderr.strip())

    def again(other: str) -> None:
        subprocess.run(["mount", "-o", "remount," + other, str(folder)], check=True)

    try:
        yield again
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(board: Device, bundle: Path) -> None:
    with tmpfs(board.root, "size=400m,nr_inodes=1000") as mounted:
        answer(deploy(board, bundle, *CPU, "--precision", "fp32"))
        old = current(board)
        # Nearly no bytes left: told before anything is pushed.
        (board.root / "filler").write_bytes(b"\0" * 310_000_000)
        refused(deploy(board, bundle, *CPU, "--precision", "int8"), "Disk")
        # Bytes enough by what the disk said, and the last of its files is taken in the middle of the push.
        (board.root / "filler").unlink()
        used = os.statvfs(board.root)
        mounted(f"nr_inodes={used.f_files - used.f_ffree + 4}")
        done = deploy(board, bundle, *CPU, "--precision", "int8")
        refused(done, "the disk is full")
        assert current(board) == old
        serves(board)
        mounted("nr_inodes=2000")
        found = answer(deploy(board, bundle, *CPU, "--precision", "int8"))
        assert found["installed"]["precision"] == "int8" and current(board) != old
        serves(board)


@pytest.mark.slow
def test_folders_that_may_not_be_written(board: Device, bundle: Path) -> None:
    answer(deploy(board, bundle, *CPU, "--precision", "fp32"))
    old, root = current(board), board.root / "flowers"
    if os.getuid() == 0:
        # Root may do everything; without these two rights it may what a file's mode says.
        rights = "--bounding-set=-dac_override,-dac_read_search --inh-caps=-dac_override,-dac_read_search"
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv here, and root may write everywhere")
        board.log_in_through("setpriv " + rights)
    for name in ("store", "releases", "."):
        (root / name).chmod(0o500)
        refused(deploy(board, bundle, *CPU, "--precision", "int8"), "may not write")
        (root / name).chmod(0o700)
        assert current(board) == old
        serves(board)
    answer(deploy(board, bundle, *CPU, "--precision", "int8"))
    assert current(board) != old


def faketime() -> str:
    """libfaketime: it moves the clock of one process and its children."""
    places = [os.environ.get("EDGETL_FAKETIME", ""), *map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))]
    found = next((place for place in places if place and Path(place).is_file()), None)
    if found is None:
        pytest.skip("no libfaketime here (apt-get install faketime)")
    return found


@pytest.mark.slow
def test_a_clock_that_is_years_off(board: Device, bundle: Path) -> None:
    library = faketime()
    names = []
    for when, precision in (("+0", "fp32"), ("-40y", "fp16"), ("+30y", "int8")):
        board.export(LD_PRELOAD=library, FAKETIME=when)
        found = answer(deploy(board, bundle, *CPU, "--precision", precision, "--keep", "2"))
        assert found["installed"]["precision"] == precision
        names.append(current(board).split("/")[-1])
        years = {"+0": 0, "-40y": 40, "+30y": 30}[when]
        clock = next(row for row in answer(status(board, bundle))["advice"] if row["name"] == "Clock")
        assert ("years off" in clock["value"]) == bool(years) and (not years or str(years) in clock["value"]), clock
        serves(board)
    # In the order in which they came, whatever their dates say.
    assert answer(status(board, bundle))["state"]["releases"] == names[1:]
    board.export(FAKETIME="-20y")
    answer(deploy(board, bundle, "--rollback"))
    assert current(board).split("/")[-1] == names[1]


def status(board: Device, bundle: Path) -> Result:
    return deploy(board, bundle, "--status")


@pytest.mark.slow
def test_the_kernel_kills_a_build(with_tensorrt: Device, for_tensorrt: Path, tmp_path: Path) -> None:
    board, bundle = with_tensorrt, tmp_path / "flowers"
    shutil.copytree(for_tensorrt, bundle)
    answer(deploy(board, bundle, *CPU))
    old = current(board)
    # More than any rung of the ladder gives: killed on each.
    board.export(DOUBLE_TRT_NEEDS="1,-1")
    done = deploy(board, bundle, "--precision", "fp16")
    refused(done, "memory ran out on every rung")
    assert "next: 256 MiB workspace" in done.stderr and "stop the desktop" in done.stderr
    assert current(board) == old
    serves(board)
    # A desktop was stopped, and the second rung is enough.
    board.export(DOUBLE_TRT_NEEDS="256,2")
    done = deploy(board, bundle, "--precision", "fp16")
    found = answer(done)
    assert "killed (-9) for memory" in done.stderr and "next: 256 MiB workspace, level 2" in done.stderr
    assert found["installed"]["precision"] == "fp16" and len(found["installed"]["key"]) == 12
    assert current(board) != old
    assert json.loads((board.root / "flowers/current/serve.json").read_text())["backend"] == "tensorrt"


def wait_for(found: Any, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["build", "bench"])
def test_a_board_that_reboots_in_a_step(with_tensorrt: Device, for_tensorrt: Path, tmp_path: Path, step: str) -> None:
    """The deploy joins its work again by itself; what was on the disk is enough to go on."""
    board, bundle = with_tensorrt, tmp_path / "flowers"
    shutil.copytree(for_tensorrt, bundle)
    answer(deploy(board, bundle, *CPU))
    old = current(board)
    words = words_of(board, bundle, "--precision", "fp16")
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT) as process:
        wait_for(lambda: list((board.root / "flowers/jobs").glob(step + "-*/asked")) or process.poll() is not None)
        board.reboot()
        assert current(board) == old
        out, said = process.communicate()
    found = answer(subprocess.CompletedProcess(words, process.returncode, out, said))
    assert "joining the work on the device again" in said
    assert found["installed"]["precision"] == "fp16" and current(board) != old
    assert not list((board.root / "flowers/jobs").iterdir())


@pytest.mark.slow
def test_a_lock_whose_holder_is_silent_is_free_again(board: Device, bundle: Path) -> None:
    """A laptop that was closed: its connection stands for the device, and nothing comes over it."""
    from edgetl.deploy import lock
    from edgetl.deploy.ssh import Connection

    root = ".local/share/edgetl/flowers"
    with (
        Connection("board", options=("-F", str(board.config))) as asleep,
        Connection("board", options=("-F", str(board.config))) as other,
    ):
        held = lock.Lock(asleep, root)
        time.sleep(lock.BEAT_S * 1.5)
        with pytest.raises(lock.Busy):
            lock.Lock(other, root)
        held._ended.set()  # no beat any more; the connection stays
        wait_for(lambda: _free(other, root), 300)
        assert not held.held
        held.close()


def _free(connection: Any, root: str) -> bool:
    from edgetl.deploy import lock

    try:
        lock.Lock(connection, root).close()
    except lock.Busy:
        return False
    return True


@pytest.mark.slow
def test_damage_on_the_device_is_mended(board: Device, bundle: Path) -> None:
    first = answer(deploy(board, bundle, *CPU, "--precision", "fp32"))
    root = board.root / "flowers"
    graph = next((root / "current").rglob("fp32-*.onnx"))
    data = graph.read_bytes()
    graph.write_bytes(data[:-10] + b"\0" * 10)  # the store's copy is the same file
    app = next((board.root / "app").iterdir())
    app.write_bytes(app.read_bytes()[:1000])
    again = answer(deploy(board, bundle, *CPU, "--precision", "fp32"))
    assert again["installed"] == first["installed"] and graph.read_bytes() == data
    assert {s["name"]: s["status"] for s in again["steps"]}["push"] == "done"
    serves(board)
