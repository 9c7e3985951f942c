"""`finetune --folds` and `--label-budget` as a user runs them: what comes out, what is refused, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from edgetl.bundle import Bundle, work_dir
from edgetl.cli.app import app
from edgetl.transfer.network import Deployed

ROOT = Path(__file__).resolve().parents[2]
FAST = ("--weights", "embedded", "--image-size", "32", "--amp", "off", "--device", "cpu")
PROBE = (*FAST, "--strategy", "linear-probe")


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(classes=("left", "right", "up"), n=14, size=32)


def finetune(*args: object, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["finetune", *map(str, args), "--json"])
    assert done.exit_code == code, done.stderr
    return dict(json.loads(done.stdout))


def test_folds_and_budgets_leave_the_bundle_as_it_is_without_them(tmp_path: Path, folder: Path) -> None:
    result = finetune(folder, "--to", tmp_path / "b", *PROBE, "--folds", 3, "--label-budget", "2,4,8")
    finetune(folder, "--to", tmp_path / "plain", *PROBE)
    shas = [Bundle.open(tmp_path / name).artifact("checkpoint")["sha256"] for name in ("b", "plain")]
    assert shas[0] == shas[1]
    assert not work_dir(tmp_path / "b").exists()

    folds = result["folds"]
    assert (folds["k"], folds["n"], len(folds["per_fold"])) == (3, 42, 3)
    assert sum(row["n"]["held_out"] for row in folds["per_fold"]) == 42
    assert {sum(row["n"].values()) for row in folds["per_fold"]} == {42}
    mean = sum(row["accuracy"] for row in folds["per_fold"]) / 3
    assert folds["accuracy"] == pytest.approx(mean)
    assert folds["accuracy_ci"][0] <= mean <= folds["accuracy_ci"][1]
    assert sum(map(sum, folds["pooled"]["confusion"])) == folds["pooled"]["n"] == 42

    budget = result["label_budget"]
    assert [(row["labels"], row["images"]) for row in budget["rows"]] == [(2, 6), (4, 12), (8, 24)]
    for row in budget["rows"]:
        assert len(row["linear_probe"]["draws"]) == len(row["strategy"]["draws"]) == 5
        assert row["linear_probe"]["accuracy_ci"][0] <= row["linear_probe"]["accuracy"]
    assert budget["verdict"] in ("more", "enough", "unclear")
    stored = Bundle.open(tmp_path / "b").manifest["training"]["result"]
    assert (stored["folds"], stored["label_budget"]) == (folds, budget)
    again = finetune(folder, "--to", tmp_path / "b", *PROBE, "--folds", 3, "--label-budget", "2,4,8", "--resume")
    assert again == result


def test_each_image_passes_through_the_frozen_backbone_once(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Deployed.outputs

    def counting(self: Deployed, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Deployed, "outputs", counting)
    passes = []
    for name, extra in (("plain", ()), ("b", ("--folds", 4, "--label-budget", "2,4"))):
        seen.clear()
        result = finetune(folder, "--to", tmp_path / name, *PROBE, *extra)
        passes.append(sum(seen))
    more = passes[1] - passes[0]
    assert 0 <= more - result["n"]["test"] <= 1, "the test split's features, and an image to see how wide they are"


def test_people_get_tables_and_an_answer(tmp_path: Path, folder: Path) -> None:
    command = ["finetune", str(folder), "--to", str(tmp_path / "b"), *PROBE, "--folds", "2", "--label-budget", "2,4"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    for said in (
        "2 folds",
        "mean ± sd",
        "cross-validated accuracy",
        "labels a class",
        "all there are",
        "4 labels a class:",
    ):
        assert said in done.stdout, said
    assert "fold 2 of 2: accuracy" in done.stderr


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (("--folds", 15), "left has 14"),
        (("--folds", 1), "--folds must be at least 2"),
        (("--label-budget", "5,60"), "60 labels a class, and left has 10 different training images"),
        (("--label-budget", "5,x"), "labels a class"),
        (("--label-budget", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    tmp_path: Path, folder: Path, extra: tuple[object, ...], said: str
) -> None:
    error = finetune(folder, "--to", tmp_path / "b", *PROBE, *extra, code=1)["error"]
    assert said in " ".join(error.values())
    assert not (tmp_path / "b").exists() and not work_dir(tmp_path / "b").exists()


def test_a_class_of_one_image_is_named(tmp_path: Path, folder: Path) -> None:
    for path in sorted((folder / "up").iterdir())[1:]:
        path.unlink()
    error = finetune(folder, "--to", tmp_path / "b", *PROBE, "--folds", 2, code=1)["error"]
    assert "up has 1" in error["value"]
    done = CliRunner().invoke(app, ["finetune", str(folder), "--to", str(tmp_path / "b"), *PROBE, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["test"]["per_class"]["up"]["n"] == 0
    for split in ("val", "test"):
        assert f"warning: {split} has no image of some classes, so it says nothing about them: up" in done.stderr


def test_near_duplicates_across_folds_are_told_or_kept_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("left", "right"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(8):
            coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(
                (64, 64), Image.Resampling.BICUBIC
            )
            coarse.save(tmp_path / "photos" / label / f"{i}.png")
            if i < 3:  # saved again, as a messenger would
                coarse.save(tmp_path / "photos" / label / f"{i}-again.jpg", quality=80)
    told = finetune(tmp_path / "photos", "--to", tmp_path / "b", *PROBE, "--folds", 4)["folds"]["near_duplicates"]
    assert 1 <= told <= 12
    result = finetune(
        tmp_path / "photos", "--to", tmp_path / "c", *PROBE, "--folds", 4, "--near-duplicates", "together"
    )
    assert result["folds"]["near_duplicates"] == 0


@pytest.mark.slow
def test_killed_in_a_fold_and_in_a_budget_it_resumes_to_the_same_figures(tmp_path: Path, folder: Path) -> None:
    options = (*FAST, "--epochs", "3", "--folds", "2", "--label-budget", "3,6", "--json")

    def command(name: str, *more: str) -> list[str]:
        start = [sys.executable, "-m", "edgetl", "finetune", str(folder), "--to", str(tmp_path / name)]
        return [*start, *options, *more]

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run(command("whole"), cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    state = work_dir(tmp_path / "cut") / "finetune"
    moments = (
        (state / "folds/1/state.pt", signal.SIGKILL),
        (state / "folds/2/state.pt", signal.SIGINT),
        (state / "budgets/6-2/state.pt", signal.SIGKILL),
    )
    for path, number in moments:
        process = subprocess.Popen(
            command("cut", "--resume"), cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while not path.exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        _, stderr = process.communicate()
        assert process.returncode == (130 if number == signal.SIGINT else -number), stderr
        assert b"Traceback" not in stderr
        assert not (tmp_path / "cut").exists()
    assert (state / "folds/1.json").is_file(), "a finished fold is kept"
    last = subprocess.run(command("cut", "--resume"), cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    found, expected = json.loads(last.stdout), json.loads(whole.stdout)
    for row in (*found["folds"]["per_fold"], *expected["folds"]["per_fold"]):
        del row["seconds"]
    assert found["folds"] == expected["folds"]
    assert found["label_budget"] == expected["label_budget"]
    assert [len(row["strategy"]["draws"]) for row in found["label_budget"]["rows"]] == [3, 3]
    assert not work_dir(tmp_path / "cut").exists()
