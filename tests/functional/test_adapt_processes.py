"""`--adapt` in several processes on this machine, connected by gloo, against one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

CHILD = Path(__file__).with_name("adapt_processes_child.py")
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600
pytestmark = pytest.mark.slow  # several processes import torch and Fabric each time

COMMON = ("--weights", "embedded", "--image-size", "32", "--batch-size", "8", "--amp", "off", "--json")
MakeFolder = Callable[..., Path]


def _launch(processes: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "--max-restarts",
        "1",
    ]  # see test_two_processes.py


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False, timeout=LIMIT_S)


@pytest.fixture
def domains(make_folder: MakeFolder) -> tuple[str, str]:
    """Two classes, and others with the same names whose stripes lie elsewhere and that are lighter."""
    return str(make_folder(n=31, name="source")), str(make_folder(n=20, name="target", seed=5, size=40))


def test_every_loss_is_that_of_the_whole_batch(tmp_path: Path, domains: tuple[str, str]) -> None:
    """Three processes, whose last batch holds two images: one of them has no labelled image of its own there."""
    outs = [str(tmp_path / name) for name in ("one", "three")]
    for out, launch in zip(outs, ([sys.executable], _launch(3)), strict=True):
        done = _run([*launch, str(CHILD), *domains, out + "-work", out])
        assert done.returncode == 0, done.stderr[-6000:]
    one, three = (json.loads(Path(out + ".json").read_text()) for out in outs)
    assert one["train"] % 12 == 2, "the case is in it"
    alone, together = (np.load(out + ".npz") for out in outs)
    for name in alone:
        apart = np.abs(alone[name] - together[name]).max()
        moved = np.abs(alone[name] - alone["none"]).max()
        # Rounding grows from step to step, most where a discriminator pulls the other way.
        assert one["losses"][name] == pytest.approx(three["losses"][name], rel=5e-4), name
        assert apart < (1e-4 if name == "none" else 0.02 * moved), name


def _adapted(domains: tuple[str, str], to: Path, processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    launch = _launch(processes) if processes > 1 else [sys.executable]
    adapt = ("--adapt", "coral", "--unlabelled", domains[1], *(options or ("--epochs", "3")))
    return _run([*launch, "-m", "edgetl", "finetune", domains[0], "--to", str(to), *adapt, *COMMON])


def _scores(done: subprocess.CompletedProcess[str]) -> dict[str, list[float]]:
    assert done.returncode == 0, done.stderr[-6000:]
    scores = json.loads(done.stdout)["adaptation"]["scores"]
    return {s["name"]: [s["agreement"], s["effective_classes"], s["entropy"]] for s in scores}


def test_the_command_adapts_as_one_process_does_and_speaks_once(tmp_path: Path, domains: tuple[str, str]) -> None:
    done = [_adapted(domains, tmp_path / f"b{processes}", processes) for processes in (1, 2)]
    one, two = map(_scores, done)
    assert list(one) == list(two) == ["none", "coral", "coral end to end", "coral end to end, standardised"]
    for name, score in one.items():
        assert two[name] == pytest.approx(score, abs=0.01), name
    found = [json.loads(d.stdout) for d in done]
    for key in ("chosen", "n", "labels"):
        assert found[0][key] == found[1][key]
    assert found[0]["val"]["accuracy"] == pytest.approx(found[1]["val"]["accuracy"], abs=1 / found[0]["val"]["n"])
    assert done[1].stderr.count("is kept:") == 1
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("b")) == ["b1", "b2"], (
        "no work folder is left"
    )


def test_an_adaptation_that_two_began_is_ended_by_one(tmp_path: Path, domains: tuple[str, str]) -> None:
    to = tmp_path / "b"
    state = tmp_path / "b.work" / "finetune" / "adapt-state.pt"
    adapt = ("--adapt", "coral", "--unlabelled", domains[1], "--epochs", "40")
    command = [*_launch(2)[:-2], "-m", "edgetl", "finetune", domains[0], "--to", str(to), *COMMON, *adapt]
    running = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    while not state.is_file() and running.poll() is None:
        assert time.monotonic() - began < LIMIT_S
        time.sleep(0.02)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(workers[1]), signal.SIGINT)
    _, said = running.communicate(timeout=LIMIT_S)
    assert running.returncode != 0 and not to.exists(), said[-3000:]
    resumed = _adapted(domains, to, 1, "--resume", "--epochs", "40")
    scores = _scores(resumed)
    assert "coral, epoch 40" in resumed.stderr and "coral, epoch 1:" not in resumed.stderr
    assert len(scores) == 4
