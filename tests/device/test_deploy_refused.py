"""What is measured on the device and found wanting is not switched to: a lost contract, and answers that are off."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.bundle import Bundle, sha256_file
from edgetl.bundle.manifest import seal

Device = Any  # conftest.Device
CPU = ("--backend", "onnxruntime", "--seconds", "0.1")


def deployed(board: Device, bundle: Path, *words: str, code: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgetl", "deploy", str(bundle), "board", "--ssh-config", str(board.config)]
    env = dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1")
    done = subprocess.run([*command, *CPU, "--json", *words], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


def edited(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    for record in manifest["artifacts"]:
        change(record)
    (bundle / "manifest.json").write_text(json.dumps(seal(manifest)))


@pytest.mark.slow
def test_a_contract_that_is_lost_on_the_device_exits_3_and_fp32_is_another_matter(
    board: Device, made: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "flowers"
    shutil.copytree(made, bundle)

    def nothing_is_allowed(record: dict[str, Any]) -> None:
        if record["kind"] == "graph":
            record["options"]["max_drop"] = -100.5  # less than a graph can lose

    edited(bundle, nothing_is_allowed)
    found = deployed(board, bundle, "--precision", "int8", code=3)
    assert found["installed"] is None and [row["precision"] for row in found["rows"]] == ["int8"]
    assert found["rows"][0]["drop_pp"] is not None
    assert not (board.root / "flowers/current").exists()
    # The images went there to prove it, and none of them stays.
    (release,) = (board.root / "flowers/releases").iterdir()
    its_own = {record["sha256"] for record in json.loads((release / "manifest.json").read_text())["artifacts"]}
    kept = {path.name for path in (board.root / "flowers/store").iterdir()} - its_own
    assert {name[:12] for name in kept} == {release.name} and not (board.root / "flowers/images").exists()
    found = deployed(board, bundle, code=0)
    assert found["installed"]["precision"] in ("fp32", "fp16") and (board.root / "flowers/current").exists()


@pytest.mark.slow
def test_answers_that_are_off_for_every_precision_are_a_failure_with_its_reasons(
    board: Device, made: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "flowers"
    shutil.copytree(made, bundle)
    opened = Bundle.open(bundle)
    file = opened.file(opened.artifact("golden-logits"))
    np.save(file, np.load(file)[::-1] * 3)  # as if the network had another one's answers

    def as_it_is(record: dict[str, Any]) -> None:
        if record["kind"] == "golden-logits":
            record.update(sha256=sha256_file(file), bytes=file.stat().st_size)

    edited(bundle, as_it_is)
    error = deployed(board, bundle, "--prove", "none", code=1)["error"]
    assert error["what"] == "no variant works on the device"
    for precision in ("fp32", "fp16", "int8"):
        assert f"{precision}: " in error["value"], error
    assert "checks fail" in error["value"] and not (board.root / "flowers/current").exists()
