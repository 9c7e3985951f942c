"""A connection that is cut in each step: the old release serves, or the work goes on, and the same deploy finishes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from edgetl.deploy.ssh import Connection
from edgetl.deploy.stage import DeployOptions, deploy
from edgetl.deploy.steps import Step, Steps
from edgetl.errors import ConnectionLost
from edgetl.spec import Precision

Device = Any  # conftest.Device
# Step -> the verb on the device that does it; those that outlive a connection are joined again by the deploy itself.
STEPS = {"probe": "probe", "push": "receive", "install": "install", "verify": "verify", "bench": "bench"}
STEPS |= {"switch": "activate"}
JOBS = ("verify", "bench")


class Scissors:
    """Cuts `board`'s connections once: in the step of that name, while its verb runs on the device."""

    def __init__(self, board: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        self.board, self.step, self.armed = board, "", False
        self.cuts = 0
        real_step, real_start = Steps.step, Connection.start

        @contextmanager
        def step(steps: Steps, name: str) -> Iterator[Step]:
            self.armed = self.armed or (bool(self.step) and name.split(maxsplit=1)[0] == self.step)
            with real_step(steps, name) as found:
                yield found

        def start(connection: Connection, command: Sequence[str]) -> subprocess.Popen[bytes]:
            process = real_start(connection, command)
            verb = STEPS.get(self.step, "")
            if self.armed and any(f" {verb} " in f"{word} " for word in command):
                self.step, self.armed = "", False
                threading.Thread(target=self._cut, args=(verb, process)).start()
            return process

        monkeypatch.setattr(Steps, "step", step)
        monkeypatch.setattr(Connection, "start", start)

    def _cut(self, verb: str, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            there = _running(self.board.home, verb)
            if there is not None:
                os.kill(there, signal.SIGSTOP)  # so that it cannot be over before the cut
                self.board.cut()
                self.cuts += 1
                os.kill(there, signal.SIGCONT)
                return
            time.sleep(0.002)


def _running(home: Path, verb: str) -> int | None:
    """The device's process that a connection waits for."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if verb.encode() in words and words[1].endswith(b".pyz") and (entry / "cwd").resolve() == home:
                return int(entry.name)
        except (OSError, IndexError):
            pass  # it went meanwhile
    return None


@pytest.mark.slow
def test_a_connection_that_is_cut_in_each_step(
    board: Device, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, link = tmp_path / "flowers", board.root / "flowers/current"
    shutil.copytree(made, bundle)
    scissors = Scissors(board, monkeypatch)

    def deployed(precision: Precision) -> None:
        # One release is kept, so that each deploy has something to push.
        ssh = ("-F", str(board.config))
        options = DeployOptions(precision=precision, backend="onnxruntime", prove="none", seconds=0.1, keep=1, ssh=ssh)
        found = deploy(bundle, "board", options)
        assert found["installed"]["precision"] == precision

    precisions = cycle((Precision.FP32, Precision.INT8))
    deployed(next(precisions))
    for count, (step, precision) in enumerate(zip(STEPS, precisions, strict=False), start=1):
        old, scissors.step = link.readlink(), step
        if step in JOBS:
            deployed(precision)
        else:
            with pytest.raises(ConnectionLost):
                deployed(precision)
            # What was told to switch may still do so, now or a moment later: one or the other serves, and whole.
            assert link.readlink() == old or step == "switch"
            assert (link / "serve.json").is_file() and (link / "manifest.json").is_file()
            if link.readlink() == old:
                deployed(precision)
        assert scissors.cuts == count, step
        assert link.readlink() != old
