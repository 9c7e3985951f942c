"""The strategies through the command line: features, gradual, auto, --keep, --teacher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgetl.bundle import Bundle
from edgetl.cli.app import app

runner = CliRunner()
FAST = ("--weights", "embedded", "--image-size", "16", "--epochs", "2", "--batch-size", "8", "--amp", "off")


@pytest.fixture
def folder(make_folder: Callable[..., Path]) -> Path:
    return make_folder(n=20, size=20)


def _finetune(folder: Path, to: Path, *options: object) -> dict[str, Any]:
    done = runner.invoke(app, ["finetune", str(folder), "--to", str(to), *FAST, *map(str, options), "--json"])
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_features_are_folded_into_a_head_that_exports_like_any_other(tmp_path: Path, folder: Path) -> None:
    result = _finetune(folder, tmp_path / "b", "--strategy", "features")
    assert [c["name"] for c in result["selection"]["candidates"]] == ["linear-probe", "features"]
    assert result["chosen"] in ("linear-probe", "features")
    assert (result["best_epoch"], result["strategy"]) == (0, "features")
    done = runner.invoke(app, ["export", str(tmp_path / "b"), "--json"])
    assert done.exit_code == 0, done.stderr
    (graph,) = json.loads(done.stdout)["artifacts"]
    assert graph["parity"]["agreement"] == 1.0


def test_auto_says_why_and_is_no_worse_than_the_probe(tmp_path: Path, folder: Path) -> None:
    result = _finetune(folder, tmp_path / "b", "--strategy", "auto")
    assert result["strategy"] == "auto"
    assert result["chosen"] != "auto"
    assert "images a class" in result["selection"]["why"] or "right on all of val" in result["selection"]["why"]
    assert result["chosen"] in result["selection"]["why"]
    assert result["val"]["accuracy"] >= result["linear_probe"]["accuracy"]
    stored = Bundle.open(tmp_path / "b").manifest["training"]["result"]["selection"]
    assert stored == result["selection"]


def test_gradual_with_what_was_kept_is_in_the_manifest(tmp_path: Path, folder: Path) -> None:
    result = _finetune(folder, tmp_path / "b", "--strategy", "gradual", "--keep", "l2sp")
    assert result["strategy"] == "gradual"
    options = Bundle.open(tmp_path / "b").manifest["training"]["options"]
    assert (options["strategy"], options["keep"]) == ("gradual", "l2sp")


def test_a_teacher_teaches_on_unlabelled_images_too(tmp_path: Path, folder: Path, make_folder: Any) -> None:
    _finetune(folder, tmp_path / "teacher", "--strategy", "linear-probe")
    target = make_folder(n=6, size=20, name="target", seed=7)
    taught = ("--teacher", tmp_path / "teacher", "--unlabelled", target)
    result = _finetune(folder, tmp_path / "b", *taught)
    plain = _finetune(folder, tmp_path / "plain")
    losses = [Bundle.open(tmp_path / name).manifest["training"]["history"][0]["train_loss"] for name in ("b", "plain")]
    assert losses[0] != losses[1], "the teacher's part is in the loss"
    assert result["n"] == plain["n"], "unlabelled images are no training images"
    identity = Bundle.open(tmp_path / "b").manifest["training"]["identity"]
    assert identity["teacher_sha256"] == Bundle.open(tmp_path / "teacher").artifact("checkpoint")["sha256"]
    assert len(identity["unlabelled_digest"]) == 64
    assert str(tmp_path) not in json.dumps(Bundle.open(tmp_path / "b").manifest)


def test_what_cannot_be_meant_is_one_line_and_leaves_nothing(tmp_path: Path, folder: Path, make_folder: Any) -> None:
    _finetune(
        make_folder(classes=("cat", "dog"), name="other"), tmp_path / "other-labels", "--strategy", "linear-probe"
    )
    (tmp_path / "empty").mkdir()
    before = sorted(p.name for p in tmp_path.iterdir())
    cases: list[tuple[list[object], str]] = [
        (["--keep", "l2sp", "--strategy", "linear-probe"], "lp-ft, gradual or full"),
        (["--keep", "delta", "--strategy", "features"], "lp-ft, gradual or full"),
        (["--keep", "everything"], "none, l2sp, delta, bss"),
        (["--teacher", tmp_path / "nowhere"], "nowhere"),
        (["--teacher", tmp_path / "other-labels"], "only here: left, right; only there: cat, dog"),
        (["--teacher", tmp_path / "other-labels", "--strategy", "linear-probe"], "frozen"),
        (["--unlabelled", folder], "--teacher"),
        (["--adapt", "mmd", "--unlabelled", tmp_path / "empty"], "no images"),
    ]
    for options, hint in cases:
        arguments = ["finetune", str(folder), "--to", str(tmp_path / "b"), *FAST, *map(str, options), "--json"]
        done = runner.invoke(app, arguments)
        assert done.exit_code == 1, (options, done.stderr)
        assert hint in " ".join(json.loads(done.stdout)["error"].values()), options
        assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before
