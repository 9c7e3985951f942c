"""`edgetl finetune --adapt` as a user runs it: glyphs white on black, and dark on paper in uneven light."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from edgetl.bundle import Bundle, read_json, work_dir
from edgetl.cli.app import app
from edgetl.images import Dataset
from edgetl.images.of_bundle import open_data
from edgetl.transfer.adapt.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--backbone", "smallnet", "--weights", "embedded", "--image-size", "32", "--amp", "off", "--strategy"]
runner = CliRunner()
GLYPHS = ("bar", "cross", "ring")


def _glyph(kind: str, rng: np.random.Generator) -> np.ndarray:
    """float (32, 32) in 0-1: a bright figure somewhere near the middle, on noise."""
    y, x = np.mgrid[:32, :32]
    row, column = 16 + rng.integers(-4, 5, 2)
    size = rng.integers(7, 10)
    far = np.hypot(y - row, x - column)
    bar = (abs(x - column) < 2) & (abs(y - row) < size)
    figure = {"bar": bar, "cross": bar | ((abs(y - row) < 2) & (abs(x - column) < size)), "ring": abs(far - size) < 2}
    return np.clip(0.75 * figure[kind] + rng.uniform(0, 0.25, (32, 32)), 0, 1)


def _draw(folder: Path, n: int, seed: int, tinted: bool, classes: tuple[str, ...] = GLYPHS) -> Path:
    rng = np.random.default_rng(seed)
    for kind in classes:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            grey = _glyph(kind if kind in GLYPHS else "bar", rng)[:, :, None]
            pixels = grey * np.ones(3)
            if tinted:
                light = np.linspace(0.3, 1, 32)[None, :, None]
                paper = (0.8 - 0.3 * grey) * np.array([0.95, 0.75, 0.5]) * light
                pixels = np.clip(paper + rng.normal(0, 0.1, (32, 32, 1)), 0, 1)
            Image.fromarray((255 * pixels).astype(np.uint8)).save(folder / kind / f"{seed}-{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("domains")
    return _draw(root / "white on black", 30, 0, tinted=False), _draw(root / "dark on paper", 30, 1, tinted=True)


def _finetune(*arguments: object) -> tuple[int, dict[str, Any], str]:
    done = runner.invoke(app, ["finetune", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout), done.stderr


def _accuracy(bundle: Path, folder: Path) -> float:
    """Of the bundle's network in PyTorch on every image of a labelled folder."""
    from edgetl.images import stream
    from edgetl.measure.predict import predict
    from edgetl.transfer.network import TorchBackend

    opened = Bundle.open(bundle)
    data, samples, _ = open_data(opened, "test", str(folder))
    logits, targets = predict(TorchBackend(opened), stream(data.root, samples, opened.preprocess, 32))
    return float((logits.argmax(1) == targets).mean())


@pytest.mark.parametrize("method", ["mcc", pytest.param("auto", marks=pytest.mark.slow)])
def test_on_frozen_features_it_is_better_on_the_target_and_says_why(
    tmp_path: Path, domains: tuple[Path, Path], method: str
) -> None:
    source, target = domains
    accuracies = {}
    for name, adapt in (("plain", []), ("adapted", ["--adapt", method, "--unlabelled", target])):
        code, result, said = _finetune(source, "--to", tmp_path / name, *FAST, "linear-probe", *adapt)
        assert code == 0, said
        accuracies[name] = _accuracy(tmp_path / name, target)
    assert accuracies["adapted"] > accuracies["plain"] + 0.1, accuracies
    found = result["adaptation"]
    assert (found["asked"], found["n_unlabelled"]) == (method, 90)
    assert result["chosen"] == found["kept"] != "none"
    assert [s["name"] for s in found["scores"]] == ["none", *(METHODS if method == "auto" else ["mcc"])]
    assert found["p_value"] <= 0.01 < found["mmd2"]
    assert "not used as labels" in said
    # Of the target's images: val is seen as the source's are, and test as nothing.
    assert result["confidence"]["test"] is None
    assert result["confidence"]["val"]["ece"] < 0.3 and result["confidence"]["temperature"] < 5
    # The network is the plain one with another last layer, and ranges come from what it will see.
    plain, adapted = (Bundle.open(tmp_path / name) for name in accuracies)
    assert plain.manifest["model"] == adapted.manifest["model"]
    rows = read_json(adapted.file(adapted.artifact("splits")), "splits")
    data = Dataset.from_json(rows, source, adapted.labels)
    assert {s.target for s in data.split("calibration")} == {-1}
    assert all((source / s.path).resolve().is_relative_to(target.resolve()) for s in data.split("calibration"))
    assert not any(Path(s.path).is_absolute() for s in data.split("unlabelled")), "what travels names no place"


def test_the_same_domain_keeps_source_only_and_says_so(tmp_path: Path, domains: tuple[Path, Path]) -> None:
    more = _draw(tmp_path / "more", 20, 7, tinted=False)
    code, result, said = _finetune(
        domains[0], "--to", tmp_path / "b", *FAST, "linear-probe", "--adapt", "mmd", "--unlabelled", more
    )
    assert code == 0, said
    assert (result["chosen"], result["adaptation"]["kept"]) == ("linear-probe", "none")
    assert "same domain" in result["adaptation"]["why"]
    assert "source-only is kept" in said


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, domains: tuple[Path, Path]) -> None:
    source, target = domains
    (tmp_path / "empty").mkdir()
    partial = _draw(tmp_path / "partial", 10, 2, tinted=True, classes=("bar", "cross", "zebra"))
    before = sorted(p.name for p in tmp_path.iterdir())
    cases: list[tuple[list[object], str]] = [
        (["--adapt", "mcc"], "--unlabelled"),
        (["--adapt", "magic", "--unlabelled", target], "standardise"),
        (["--unlabelled", target], "--adapt"),
        (["--adapt", "mcc", "--unlabelled", tmp_path / "empty"], "no images"),
        (["--adapt", "mcc", "--unlabelled", partial], "only there: zebra; only in DATA: ring"),
        (["--adapt", "mcc", "--unlabelled", target, "--adapt-classes", "theirs"], "source"),
    ]
    for arguments, hint in cases:
        code, result, said = _finetune(source, "--to", tmp_path / "b", *FAST, "linear-probe", *arguments)
        assert code == 1, (arguments, said)
        assert hint in " ".join(result["error"].values()), result
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    partly = ["--adapt", "standardise", "--unlabelled", partial, "--adapt-classes", "source"]
    code, result, said = _finetune(source, "--to", tmp_path / "b", *FAST, "linear-probe", *partly)
    assert code == 0, said
    assert result["adaptation"]["n_unlabelled"] == 20
    assert "left out: zebra" in said


def test_a_corrupt_unlabelled_image_shows_before_anything_is_fitted(tmp_path: Path, domains: tuple[Path, Path]) -> None:
    source, target = domains
    pool = tmp_path / "pool"
    pool.mkdir()
    for i, image in enumerate(sorted(target.rglob("*.png"))[:10]):
        (pool / f"{i}.png").write_bytes(b"not an image" if i == 3 else image.read_bytes())
    command = [source, "--to", tmp_path / "b", *FAST, "linear-probe", "--adapt", "standardise", "--unlabelled", pool]
    code, result, _ = _finetune(*command)
    assert code == 1 and "3.png" in result["error"]["value"], result
    left = {path.name for path in work_dir(tmp_path / "b").rglob("*")}
    assert "probe.npz" not in left and "features.f32" not in left, "it was found only after the fit"
    code, result, said = _finetune(*command, "--skip-corrupt", "--overwrite")
    assert code == 0, said
    assert result["adaptation"]["n_unlabelled"] == 9 and "3.png" in said
    for i in (5, 6):
        (pool / f"{i}.png").write_bytes(b"nor is this %d" % i)
    code, result, _ = _finetune(*command, "--skip-corrupt", "--overwrite")
    assert code == 1 and (result["error"]["what"], result["error"]["value"]) == (
        "too few unlabelled images to adapt to",
        "7",
    )


@pytest.mark.slow
def test_end_to_end_adds_the_loss_to_the_training_and_competes(tmp_path: Path, domains: tuple[Path, Path]) -> None:
    source, target = domains
    code, result, said = _finetune(
        *(source, "--to", tmp_path / "b", *FAST, "lp-ft", "--epochs", 4, "--adapt", "mcc", "--unlabelled", target)
    )
    assert code == 0, said
    names = [s["name"] for s in result["adaptation"]["scores"]]
    assert names == ["none", "mcc", "mcc end to end", "mcc end to end, standardised"]
    assert result["adaptation"]["kept"] in names
    assert "mcc, epoch 4" in said, "every epoch is run"
    assert _accuracy(tmp_path / "b", target) > 0.5


@pytest.mark.slow
def test_ctrl_c_in_the_adaptation_resumes_to_the_same_bytes(tmp_path: Path, domains: tuple[Path, Path]) -> None:
    source, target = domains
    options = [*FAST, "lp-ft", "--epochs", 3, "--adapt", "dann", "--unlabelled", target, "--resume"]
    command = [sys.executable, "-m", "edgetl", "finetune", source, *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    state = work_dir(tmp_path / "cut") / "finetune"
    for name, awaited in (("cut", "target.f32"), ("cut", "adapt-none.npz"), ("cut", "adapt-state.pt"), ("whole", "")):
        process = subprocess.Popen([*map(str, command), "--to", str(tmp_path / name)], cwd=ROOT, env=env)
        while awaited and process.poll() is None and not (state / awaited).exists():
            time.sleep(0.01)
        if awaited:
            process.send_signal(signal.SIGINT)
        assert process.wait() == (130 if awaited else 0)
    subprocess.run([*map(str, command), "--to", str(tmp_path / "cut")], cwd=ROOT, env=env, check=True)
    shas = [Bundle.open(tmp_path / name).artifact("checkpoint")["sha256"] for name in ("whole", "cut")]
    assert shas[0] == shas[1]
