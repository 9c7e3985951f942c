"""The same deploy into a real aarch64 userland: both machines say the same of the same encoded files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # emulated: 3 minutes on a quiet machine, 14 on a busy one


def test_aarch64_agrees_with_this_machine(orin: Any, made: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "flowers"
    shutil.copytree(made, bundle)
    command = [sys.executable, "-m", "edgetl", "deploy", str(bundle), "board", "--ssh-config", str(orin.config)]
    command += ["--backend", "onnxruntime", "--seconds", "0.2", "--timeout", "60", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, NO_COLOR="1"), check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["probe"]["platform"] == "linux-aarch64"
    assert found["probe"]["board"]["name"].startswith("Orin Nano") and found["probe"]["jetpack"] == "6.1-6.2"
    rows = {row["precision"]: row for row in found["rows"]}
    # On a board's own CPU the evidence is the device's; against PyTorch here, on 15 test images.
    assert rows["fp32"]["accuracy_evidence"] == "device" and rows["fp32"]["drop_pp"] == 0
    assert rows["int8"]["agreement"] >= 0.8

    config = ["ssh", "-F", str(orin.config), "board", "--"]
    verify = "python3 .local/share/edgetl/flowers/app.pyz verify .local/share/edgetl/flowers/current"
    told = subprocess.run([*config, verify + " --backend onnxruntime"], capture_output=True, text=True, check=True)
    checks = {check["name"]: check for check in json.loads(told.stdout)["checks"]}
    assert all(check["ok"] for check in checks.values()), checks
    pixels = next(check for name, check in checks.items() if name.startswith("decode and resize"))
    assert pixels["value"] == "equal"
    assert checks["onnxruntime-cpu-fp32 against its graph"]["value"] < 1e-4
    assert checks["onnxruntime-cpu-int8 against its graph: KL"]["value"] < 1e-3
    assert checks["onnxruntime-cpu-int8 against its graph: top-1 changes with a margin over two quanta"]["value"] == 0
