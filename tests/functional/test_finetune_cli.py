"""`edgetl finetune` as a user runs it: in a process of its own, with real signals."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from edgetl.bundle import Bundle, work_dir
from edgetl.cli.app import app

runner = CliRunner()
ROOT = Path(__file__).resolve().parents[2]
FAST = ["--backbone", "smallnet", "--weights", "embedded", "--image-size", "32", "--amp", "off"]


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "edgetl", "finetune", *map(str, arguments)]


def _edgetl(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(_command(*arguments), capture_output=True, text=True, cwd=ROOT, env=env, check=False)


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(classes=("left", "right", "日本"), n=30, size=40)


def test_json_is_the_only_thing_on_stdout(tmp_path: Path, folder: Path) -> None:
    done = _edgetl(folder, "--to", tmp_path / "b", *FAST, "--epochs", 1, "--json", "--out", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "r.json").read_text())
    assert result["labels"] == ["left", "right", "日本"]
    assert result["backbone"] == "smallnet"
    assert "linear probe: val accuracy" in done.stderr
    assert Bundle.open(tmp_path / "b").local["command"][1] == "finetune"


@pytest.mark.slow
def test_without_json_people_get_a_table_and_the_next_command(tmp_path: Path, folder: Path) -> None:
    bundle = tmp_path / "my [bold] flowers"
    done = _edgetl(folder, "--to", bundle, *FAST, "--strategy", "linear-probe", COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "linear probe, val" in done.stdout
    assert f"Next: edgetl export '{bundle}' --int8" in done.stdout


def _kill_when(process: subprocess.Popen[bytes], ready: Callable[[], bool], number: int) -> None:
    for _ in range(6000):
        if ready() or process.poll() is not None:
            break
        time.sleep(0.005)
    process.send_signal(number)
    process.wait()


@pytest.mark.slow
def test_killed_at_several_moments_it_resumes_to_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    options = [*FAST, "--epochs", "4", "--json"]
    assert _edgetl(folder, "--to", tmp_path / "whole", *options).returncode == 0
    state = work_dir(tmp_path / "cut") / "finetune"
    epochs = state / "epochs.jsonl"
    moments = [
        (state / "pixels.jsonl").exists,
        (state / "features.f32").exists,
        (state / "state.pt").exists,
        lambda: epochs.exists() and epochs.read_text().count("\n") >= 3,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for ready in moments:
        command = _command(folder, "--to", tmp_path / "cut", *options, "--resume")
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _kill_when(process, ready, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "cut").exists(), "no half bundle"
    last = _edgetl(folder, "--to", tmp_path / "cut", *options, "--resume")
    assert last.returncode == 0, last.stderr
    assert "resumed after epoch 3 of 4" in last.stderr
    shas = [Bundle.open(tmp_path / name).artifact("checkpoint")["sha256"] for name in ("whole", "cut")]
    assert shas[0] == shas[1]
    assert not work_dir(tmp_path / "cut").exists()
    again = _edgetl(folder, "--to", tmp_path / "cut", *options, "--resume")
    assert json.loads(again.stdout) == json.loads(last.stdout), "finished: the same object"


@pytest.mark.slow
def test_ctrl_c_during_training_exits_130_and_keeps_what_resume_needs(tmp_path: Path, folder: Path) -> None:
    state = work_dir(tmp_path / "b") / "finetune" / "state.pt"
    command = _command(folder, "--to", tmp_path / "b", *FAST, "--epochs", "200")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _kill_when(process, state.exists, signal.SIGINT)
    assert process.returncode == 130
    assert state.exists()
    assert not (tmp_path / "b").exists()
    assert process.stderr is not None
    said = process.stderr.read()
    assert b"Traceback" not in said
    assert b"--resume" in said


class _Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch " + self.target,)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Evil(str(tmp_path / "ran"))))
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "cut" / "a").mkdir(parents=True)
    (tmp_path / "cut" / "b").mkdir()
    for label in "ab":
        for i in range(8):
            source = (folder / "left" / f"{i + 8 * (label == 'b'):03}.png").read_bytes()
            (tmp_path / "cut" / label / f"{i}.png").write_bytes(source)
    (tmp_path / "cut" / "b" / "text.jpg").write_text("hello")
    before = sorted(p.name for p in tmp_path.iterdir())
    cases = [
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path / "cut", "--weights", "none", "--backbone", "smallnet"], "text.jpg"),
        ([folder, "--backbone", "mobilnet_v2"], "mobilenet_v2"),
        ([folder, "--backbone", "smallnet", "--weights", tmp_path / "evil.pth"], "nothing in it was run"),
        ([folder, "--backbone", "smallnet", "--weights", tmp_path / "other.pth"], "unexpected"),
        ([folder, "--backbone", "inception_v3", "--image-size", "32", "--weights", "none"], "at least 75"),
        ([folder, "--strategy", "gradually"], "lp-ft"),
    ]
    for arguments, hint in cases:
        done = runner.invoke(app, ["finetune", *map(str, arguments), "--to", str(tmp_path / "b"), "--json"])
        assert done.exit_code == 1, (arguments, done.stderr)
        assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] != []
        assert "Traceback" not in done.stderr
        assert hint in " ".join(json.loads(done.stdout)["error"].values()), arguments
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert not (tmp_path / "ran").exists()


@pytest.mark.data
@pytest.mark.slow
def test_fine_tuning_beats_the_probe_on_real_images(tmp_path: Path, samples: Path, mobilenet_weights: Path) -> None:
    done = _edgetl(
        samples / "data/cifar10_mini",
        *("--to", tmp_path / "b", "--backbone", "mobilenet_v2", "--weights", mobilenet_weights),
        *("--image-size", 64, "--epochs", 2, "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["n"] == {"train": 1700, "val": 300, "test": 1000, "calibration": 512}
    assert result["linear_probe"]["accuracy"] > 0.45
    assert result["chosen"] == "lp-ft"
    assert result["test"]["accuracy"] > 0.58
