"""What `--emit` writes, on what a deploy left there: the example, the service's line; and a sweep of power modes."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetl.bundle import Bundle
from edgetl.bundle.manifest import seal
from edgetl.device.chosen import Wish, choose
from edgetl.measure.parity import golden
from edgetl.runtime import run_pixels

Device = Any  # conftest.Device


def edgetl(*words: object, code: int = 0) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgetl", *map(str, words), "--json"]
    env = dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def on_board(board: Device, script: str) -> str:
    done = subprocess.run(
        ["ssh", "-F", str(board.config), "board", "--", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def deployed(board: Device, made: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(made, tmp_path / "flowers")
    words = ("--ssh-config", board.config, "--backend", "onnxruntime", "--seconds", "0.1", "--prove", "none")
    edgetl("deploy", tmp_path / "flowers", "board", *words, "--precision", "fp32")
    return Bundle.open(tmp_path / "flowers")


def test_the_example_and_the_service_answer_as_the_golden_images_say(
    board: Device, deployed: Bundle, tmp_path: Path
) -> None:
    words = ("--backend", "onnxruntime", "--precision", "fp32")
    files = edgetl("deploy", deployed.path, "--emit", "python,systemd,docker", "--to", tmp_path / "serving", *words)
    assert all(Path(file).is_file() for file in files["files"])
    shutil.copy(tmp_path / "serving/python/classify.py", board.home / "classify.py")
    photos = ".local/share/edgetl/flowers/current/golden/images"
    said = [json.loads(line) for line in on_board(board, f"python3 classify.py {photos}/*").splitlines()]

    cases = golden(deployed)
    assert cases is not None
    pixels, _ = cases
    backend = choose(deployed, Wish("onnxruntime", "fp32", "cpu")).opens()
    logits = run_pixels(backend, pixels)
    backend.close()
    wanted = {Path(record["file"]).name: logits[int(record["index"])] for record in deployed.artifacts("golden-image")}
    assert len(said) == len(wanted) >= 8
    for line in said:
        expected = wanted[Path(line["image"]).name] / deployed.manifest["confidence"]["temperature"]
        shares = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
        assert line["label"] == deployed.labels[int(expected.argmax())] and len(line["top"]) == 3
        assert line["probability"] == pytest.approx(float(shares.max()), abs=0.002)

    # The service's own line, from the folder that systemd starts it in.
    unit = configparser.RawConfigParser(strict=False, delimiters=("=",))
    unit.read(tmp_path / "serving/systemd/edgetl-flowers@.service")
    assert unit["Service"]["WorkingDirectory"] == "~"
    line = unit["Service"]["ExecStart"].replace("${SOURCE}", shlex.quote(photos)).replace("/usr/bin/python3", "python3")
    lines = [json.loads(text) for text in on_board(board, line).splitlines()]
    assert lines[-1]["ended"] == "source ended" and lines[-1]["images"] == len(wanted)
    labels = {Path(one["image"]).name: one["label"] for one in said}
    assert {Path(one["image"]).name: one["label"] for one in lines[:-1]} == labels


@pytest.mark.slow
def test_deepstreams_files_come_with_what_its_resize_costs(for_tensorrt: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "flowers"
    shutil.copytree(for_tensorrt, bundle)
    told = edgetl("deploy", bundle, "--emit", "deepstream", "--to", tmp_path / "serving", code=1)
    assert "semicolons" in told["error"]["what"] and not (tmp_path / "serving").exists()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["labels"] = [label.replace(";", ",") for label in manifest["labels"]]
    (bundle / "manifest.json").write_text(json.dumps(seal(manifest)))
    held = manifest["splits"]["test"]["n"]
    found = edgetl("deploy", bundle, "--emit", "deepstream", "--to", tmp_path / "serving", "--precision", "fp32")
    (row,), cost = found["rows"], found["resize"]
    assert row["id"] == "onnxruntime-trt10-fp32-deepstream-b1" and row["split"] == "test" and row["n_images"] == held
    assert row["accuracy_evidence"] == "simulated" and row["latency_ms"] is None
    assert cost["own_accuracy"] - row["accuracy"] == pytest.approx(cost["drop_pp"] / 100)
    config = (tmp_path / "serving/deepstream/config_infer.txt").read_text(encoding="utf-8")
    assert "DeepStream's resize, emulated: accuracy" in config and f"on {held} test images" in config
    kept = [json.loads(line) for line in (bundle / "runs/bench.jsonl").read_text().splitlines()]
    assert kept[-1]["id"] == row["id"] and kept[-1]["resize"] == cost
    where = [json.loads(line) for line in (bundle / "runs/environments.jsonl").read_text().splitlines()]
    assert where[-1]["id"] == row["environment"]
    # A bench of it has the same row.
    benched = edgetl("bench", bundle, "--deepstream", "--precisions", "fp32", "--backends", "torch", "--seconds", "0.1")
    assert {**benched["rows"][-1], "environment": ""} == {**row, "environment": ""}
    assert benched["resize"] == {row["id"]: cost} and benched["rows"][-1]["environment"] in benched["environments"]
    # Without the images the files come all the same, and say that nothing was measured.
    found = edgetl(
        "deploy", bundle, "--emit", "deepstream", "--to", tmp_path / "serving", "--precision", "fp32", "--prove", "none"
    )
    assert found["rows"] == [] and found["resize"] is None
    assert "was not measured" in (tmp_path / "serving/deepstream/config_infer.txt").read_text(encoding="utf-8")


NVPMODEL = """#!/bin/sh
state=$(dirname "$0")/../../mode
case "$1" in
-q) n=$(cat "$state"); set -- 15W 25W MAXN; shift "$n"; printf 'NV Power Mode: %s\\n%s\\n' "$1" "$n" ;;
-m) read -r reply
    if [ "$2" = 2 ]; then echo 'Reboot required for changing to this power mode: 2'; else echo "$2" >"$state"; fi ;;
esac
"""


def jetson(board: Device) -> Path:
    """A root that tells of a Jetson's power modes, as far as `--modes` looks; its nvpmodel keeps the mode in a file."""
    root = board.home / "jetson"
    (root / "etc").mkdir(parents=True)
    (root / "usr/sbin").mkdir(parents=True)
    for name in ("proc", "sys"):
        (root / name).symlink_to("/" + name)
    modes = "".join(f"< POWER_MODEL ID={i} NAME={name} >\n" for i, name in enumerate(("15W", "25W", "MAXN")))
    (root / "etc/nvpmodel.conf").write_text(modes)
    (root / "mode").write_text("0\n")
    for name, text in (("nvpmodel", NVPMODEL), ("sudo", '#!/bin/sh\nshift\nexec "$@"\n')):
        (root / "usr/sbin" / name).write_text(text)
        (root / "usr/sbin" / name).chmod(0o755)
    board.export(EDGETL_ROOT=root)
    return root


@pytest.mark.slow
def test_modes_are_swept_and_the_old_one_is_back(board: Device, deployed: Bundle) -> None:
    root = jetson(board)
    words = ("--ssh-config", board.config, "--backend", "onnxruntime", "--seconds", "0.1", "--precision", "fp32")
    found = edgetl("deploy", deployed.path, "board", *words, "--modes", "all")
    modes = {mode["name"]: mode for mode in found["modes"]}
    assert {name: mode["status"] for name, mode in modes.items()} == {
        "15W": "measured", "25W": "measured", "MAXN": "refused",
    }  # fmt: skip
    assert "reboot" in modes["MAXN"]["why"] and modes["MAXN"]["rows"] == []
    assert (root / "mode").read_text() == "0\n"
    (row,) = modes["25W"]["rows"]
    assert row["id"] == "onnxruntime-cpu-fp32-b1@25W" and row["latency_ms"]["p50"] > 0
    kept = [json.loads(line) for line in (deployed.path / "runs/bench.jsonl").read_text().splitlines()]
    line = next(line for line in kept if line["id"] == row["id"])
    assert line["conditions"]["before"]["power_mode"] == {"id": 1, "name": "25W"} and line["host"] == "board"
    told = edgetl("deploy", deployed.path, "board", *words, "--modes", "60W", code=1)
    assert "no such power mode" in told["error"]["what"] and "25W" in told["error"]["do"]
