"""`edgetl pretrain` as a user runs it: a file that finetune takes as it is, whole or not at all, resumable."""

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

import pytest
import torch
from click.testing import Result
from safetensors import safe_open
from typer.testing import CliRunner

from edgetl.bundle import Bundle, work_dir
from edgetl.cli.app import app
from edgetl.errors import InputError, WeightsError
from edgetl.transfer import large, weights, weights_file

ROOT = Path(__file__).resolve().parents[2]
FAST = ("--backbone", "plaincnn", "--backbone-args", "width=4,hidden=8", "--device", "cpu", "--amp", "off")


def edgetl(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args: object) -> dict[str, Any]:
    ran = edgetl(*args, "--json")
    assert ran.exit_code == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def error(*args: object) -> str:
    ran = edgetl(*args, "--json")
    assert ran.exit_code == 1
    assert "Traceback" not in ran.stderr
    return " ".join(json.loads(ran.stdout)["error"].values())


@pytest.fixture
def photos(make_folder: Callable[..., Path]) -> Path:
    return make_folder(classes=("left", "right", "日本"), n=20, size=40)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_file_is_all_that_finetune_needs(tmp_path: Path, photos: Path, suffix: str) -> None:
    file = tmp_path / ("own" + suffix)
    made = done("pretrain", photos, "--to", file, *FAST, "--epochs", 4, "--image-size", 48)
    assert (made["backbone"], made["labels"], made["image_size"]) == ("plaincnn", ["left", "right", "日本"], 48)
    assert made["val"]["accuracy"] > 0.5 and made["bytes"] == file.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([file.name, "photos"]), "no work is left"
    state = weights.read_state(file)
    assert {v.dtype for v in state.values()} == {torch.float32}
    bundle = tmp_path / "bundle"
    tuned = done("finetune", photos, "--to", bundle, "--weights", file, "--strategy", "linear-probe")
    assert tuned["backbone"] == "plaincnn"
    opened = Bundle.open(bundle)
    assert opened.manifest["model"]["backbone_args"] == {"width": 4, "hidden": 8}
    assert opened.preprocess == weights_file.card_of(file).preprocess  # type: ignore[union-attr]
    assert opened.preprocess.size == 48
    kept = weights.read_state(bundle / opened.artifact("checkpoint")["file"])
    assert all(torch.equal(kept[k], v) for k, v in state.items() if not k.startswith("fc.")), "its body, bit for bit"
    other = done("finetune", photos, "--to", tmp_path / "b2", "--weights", file, "--epochs", 1, "--image-size", 32)
    assert other["chosen"]


def test_a_foreign_program_finds_a_plain_state_dict(tmp_path: Path, photos: Path) -> None:
    done("pretrain", photos, "--to", tmp_path / "own.safetensors", *FAST, "--epochs", 1)
    with safe_open(tmp_path / "own.safetensors", framework="pt") as opened:
        assert set(opened.keys()) == {
            f"{n}.{w}" for n in ("features.0", "features.3", "fc1", "fc") for w in ("weight", "bias")
        }
        assert json.loads(opened.metadata()["edgetl"])["backbone"] == "plaincnn"


def test_options_that_contradict_the_file_are_one_line(tmp_path: Path, photos: Path) -> None:
    file = tmp_path / "own.safetensors"
    done("pretrain", photos, "--to", file, *FAST, "--epochs", 1)
    tune = ("finetune", photos, "--to", tmp_path / "b", "--weights", file)
    assert "weights of plaincnn" in error(*tune, "--backbone", "resnet18")
    assert "other arguments" in error(*tune, "--backbone-args", "width=8")
    assert "multiple of 16" in error(*tune, "--image-size", 40)
    assert not (tmp_path / "b").exists()
    again = ("pretrain", photos, "--to", file, *FAST)
    before = file.read_bytes()
    assert "at this place already" in error(*again)
    assert "epochs 1, now 2" in error(*again, "--epochs", 2, "--resume")
    assert file.read_bytes() == before
    first = done(*again, "--epochs", 1, "--resume")
    assert first["file"] == str(file) and file.read_bytes() == before, "finished: the same object"
    done(*again, "--epochs", 2, "--overwrite")
    assert file.read_bytes() != before


def test_bad_places_and_bad_files(tmp_path: Path, photos: Path) -> None:
    assert ".safetensors" in error("pretrain", photos, "--to", tmp_path / "own.onnx", *FAST)
    (tmp_path / "folder.pth").mkdir()
    assert "folder" in error("pretrain", photos, "--to", tmp_path / "folder.pth", *FAST, "--overwrite")
    assert "no weights are published" in error("finetune", photos, "--to", tmp_path / "b", "--backbone", "plaincnn")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.pth", "photos"]
    card = weights_file.Card("plaincnn", {}, ("a",), weights_file.Preprocess(size=32, resize=32))
    weights_file.write(tmp_path / "new.safetensors", {"x": torch.zeros(1)}, card)
    text = card.dumps()
    for broken, what in ((text.replace('"format":1', '"format":99'), "newer"), ("{}", "cannot be read"), ("[", "read")):
        torch.save({"state_dict": {"x": torch.zeros(1)}, "edgetl": broken}, tmp_path / "broken.pth")
        with pytest.raises(WeightsError, match=what):
            weights_file.card_of(tmp_path / "broken.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    assert weights_file.card_of(tmp_path / "text.safetensors") is None
    assert weights_file.card_of(tmp_path / "nowhere.pth") is None


def test_the_network_trains_where_the_run_is_to_train(tmp_path: Path, photos: Path) -> None:
    """On the run's device and laid out as its images are, before anything passes through it."""
    from edgetl.images import ReadOptions, read_data
    from edgetl.transfer import FinetuneOptions
    from edgetl.transfer.pretrain import pretrain

    started: list[Any] = []

    def views(start: Any) -> Any:
        started.append((start.device, [p for p in start.network.parameters() if p.ndim == 4]))
        raise InputError("seen", "enough", "end here")

    options = FinetuneOptions(backbone="plaincnn", weights="none", strategy="scratch", epochs=1)
    with pytest.raises(InputError, match="enough"):
        pretrain(read_data(str(photos), ReadOptions()), tmp_path / "own.pth", options, views=views)
    ((device, kernels),) = started
    assert {p.device.type for p in kernels} == {device.type}
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def test_a_large_set_is_not_decoded_before_training_starts(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "EAGER_IMAGES", 30)
    monkeypatch.setattr(large, "START_IMAGES", 10)
    made = done("pretrain", photos, "--to", tmp_path / "own.pth", *FAST, "--epochs", 2)
    assert made["near_duplicates"] is not None and made["val"]["n"] == made["n"]["val"]
    ran = edgetl("pretrain", photos, "--to", tmp_path / "again.pth", *FAST, "--epochs", 2)
    assert "training starts from a linear probe on" in ran.stderr


@pytest.mark.slow
def test_killed_it_leaves_no_file_and_resumes_to_the_same_bytes(tmp_path: Path, photos: Path) -> None:
    options = [*FAST, "--epochs", "40", "--json"]  # so many that none is over before it is killed
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(to: str, *more: str) -> list[str]:
        return [sys.executable, "-m", "edgetl", "pretrain", str(photos), "--to", str(tmp_path / to), *options, *more]

    whole = subprocess.run(command("whole.safetensors"), capture_output=True, cwd=ROOT, env=environment, check=True)
    state = work_dir(tmp_path / "cut.safetensors") / "pretrain/state.pt"
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            command("cut.safetensors", "--resume"),
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not state.exists():
            time.sleep(0.01)
        process.send_signal(number)
        process.wait()
        assert not (tmp_path / "cut.safetensors").exists()
    resumed = subprocess.run(
        command("cut.safetensors", "--resume"), capture_output=True, cwd=ROOT, env=environment, check=True
    )
    results = [json.loads(run.stdout) for run in (whole, resumed)]
    assert results[0]["sha256"] != "" and results[0]["val"] == results[1]["val"]
    tensors = [weights.read_state(tmp_path / f"{name}.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(tensors[0][k], v) for k, v in tensors[1].items())
    assert not state.parent.parent.exists()


def test_torchvision_backbones_and_their_arguments_go_the_same_way(tmp_path: Path, photos: Path) -> None:
    file = tmp_path / "narrow.safetensors"
    how = ("--backbone", "mobilenet_v2", "--backbone-args", "width_mult=0.25", "--image-size", 32, "--epochs", 1)
    done("pretrain", photos, "--to", file, *how, "--device", "cpu", "--amp", "off")
    tuned = done("finetune", photos, "--to", tmp_path / "b", "--weights", file, "--strategy", "linear-probe")
    assert tuned["backbone"] == "mobilenet_v2"
    assert Bundle.open(tmp_path / "b").manifest["model"]["backbone_args"] == {"width_mult": 0.25}
