"""A board with TensorRT 8 (the double of it): its fp16 is the fp32 graph with a flag, and nothing stands in for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Device = Any  # conftest.Device


def edgetl(*words: object) -> dict[str, Any]:
    env = dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1")
    command = [sys.executable, "-m", "edgetl", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("exported", [(), ("--fp16",)], ids=["fp32 exported", "fp16 exported"])
def test_fp16_is_fp16(with_tensorrt: Device, made: Path, tmp_path: Path, exported: tuple[str, ...]) -> None:
    board, bundle = with_tensorrt, tmp_path / "flowers"
    shutil.copytree(made, bundle)
    edgetl("export", bundle, "--target", "jetpack5", *exported)
    board.export(DOUBLE_TRT_VERSION="8.5.2.2", DOUBLE_TRT_LAYERS="Half")
    words = ("--ssh-config", board.config, "--seconds", "0.1", "--prove", "none", "--precision", "fp16")
    found = edgetl("deploy", bundle, "board", *words)
    assert found["installed"]["precision"] == "fp16" and len(found["installed"]["key"]) == 12
    assert [row["precision"] for row in found["rows"]] == ["fp16"]
    assert json.loads((board.root / "flowers/current/serve.json").read_text())["precision"] == "fp16"
