"""`edgetl export` as scripts see it: a process of its own, its stdout, stderr and exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from edgetl.cli.app import app

ARTIFACT = {"kind", "profile", "precision", "input", "file", "sha256", "bytes", "opset", "parity", "int8_macs_share"}
GUARD = {"verdict", "met", "drop_pp", "drop_ci_pp", "p_mcnemar", "n", "n_needed", "flips", "worst_class"} | {
    "excluded_nodes",
    "rungs",
}


def edgetl(*arguments: object) -> Result:
    """Within this process, which has torch loaded already."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A smallnet trained for one epoch on 90 generated images."""
    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    for index, label in enumerate(("stripes", "dots", "plain")):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, index] += 120
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i}.png")
    made = edgetl(
        "finetune", folder / "photos", "--to", folder / "b", "--backbone", "smallnet", "--weights", "none",
        "--epochs", 1, "--image-size", 32,
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    yield folder / "b"


@pytest.fixture(scope="module")
def int8(bundle: Path) -> subprocess.CompletedProcess[str]:
    options = ["--int8", "--max-drop", "100", "--json", "--out", str(bundle.parent / "out.json")]
    command = [sys.executable, "-m", "edgetl", "export", str(bundle), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_stdout_is_one_json_object_whatever_modelopt_prints(int8: subprocess.CompletedProcess[str]) -> None:
    assert int8.returncode == 0, int8.stderr
    result: dict[str, Any] = json.loads(int8.stdout)
    assert set(result) == {"artifacts", "guard", "seconds"}
    assert [a["precision"] for a in result["artifacts"]] == ["fp32", "fp16", "int8"]
    assert all(set(a) == ARTIFACT for a in result["artifacts"])
    assert all({"max_abs", "agreement", "n"} <= set(a["parity"]) for a in result["artifacts"])
    assert set(result["guard"]) >= GUARD
    assert all({"name", "drop_pp", "seconds"} <= set(rung) for rung in result["guard"]["rungs"])


def test_out_holds_the_same_object(int8: subprocess.CompletedProcess[str], bundle: Path) -> None:
    assert json.loads((bundle.parent / "out.json").read_text()) == json.loads(int8.stdout)


def test_verify_proves_what_was_exported(int8: subprocess.CompletedProcess[str], bundle: Path) -> None:
    assert int8.returncode == 0
    checked = edgetl("verify", bundle, "--json")
    assert checked.exit_code == 0, checked.stderr
    assert json.loads(checked.stdout)["ok"] is True


def test_a_contract_that_few_images_cannot_show_is_exit_3_with_confident(
    int8: subprocess.CompletedProcess[str], bundle: Path
) -> None:
    assert int8.returncode == 0
    options = ("export", bundle, "--int8", "--target", "jetpack5", "--max-drop", 0, "--confident", "--json")
    refused = edgetl(*options)
    assert refused.exit_code == 3
    guard = json.loads(refused.stdout)["guard"]
    assert guard["met"] is False
    assert guard["verdict"] in ("unresolved", "not_met")
    assert "not met:" in refused.stderr


def test_people_see_a_table_and_the_verdict(int8: subprocess.CompletedProcess[str], bundle: Path) -> None:
    assert int8.returncode == 0
    options = ("--int8", "--method", "max", "--max-drop", 0, "--confident", "--allow-unmet", "--target", "jetpack5")
    shown = edgetl("export", bundle, *options)
    assert shown.exit_code == 0, shown.stderr
    assert "INT8 drop" in shown.stdout
    assert "trt8 int8" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--method", "percentil", "--int8"), 1, "unknown calibration method"),
        (("--target", "jetpack4"), 2, "jetpack4"),
        (("--calib", "nowhere", "--int8"), 1, "no such folder"),
        (("--calib-size", "0", "--int8"), 1, "--calib-size"),
        (("--rescue", "pray", "--int8"), 2, "--rescue"),
    ],
)
def test_bad_options_are_one_line(bundle: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    found = edgetl("export", bundle, *arguments)
    assert found.exit_code == code
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
