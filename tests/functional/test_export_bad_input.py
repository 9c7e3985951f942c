"""`edgetl export` on data, weights and graphs that are no good: what it does with each, in one clear line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from edgetl import engine
from edgetl.bundle import Bundle, NewArtifact, work_dir, writing
from edgetl.cli.app import app

LABELS = ("left", "middle", "right")
INT8 = ("--int8", "--target", "jetpack5", "--json")


def edgetl(*arguments: object) -> Result:
    """Within this process, which has torch loaded already."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def photos(to: Path, each: dict[str, int], seed: int = 0) -> Path:
    """Noise of another colour for each class, 32 px."""
    rng = np.random.default_rng(seed)
    for label, n in each.items():
        (to / label).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, LABELS.index(label)] += 120
            Image.fromarray(pixels).save(to / label / f"{i:03}.png")
    return to


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smallnet of three classes with 10 images in val, its INT8 graph exported. Copy it before writing to it."""
    root = tmp_path_factory.mktemp("made")
    photos(root / "data/train", dict.fromkeys(LABELS, 20))
    photos(root / "data/val", {"left": 4, "middle": 3, "right": 3}, seed=1)
    quick = ("--backbone", "smallnet", "--weights", "none", "--epochs", 1, "--image-size", 32)
    done = edgetl("finetune", root / "data", "--to", root / "plain", *quick)
    assert done.exit_code == 0, done.stderr
    shutil.copytree(root / "plain", root / "b")
    done = edgetl("export", root / "b", *INT8, "--out", root / "first.json", "--allow-unmet")
    assert done.exit_code == 0, done.stderr
    return root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy of the exported bundle: its calibration is known."""
    return Path(shutil.copytree(made / "b", tmp_path / "b"))


def refused(bundle: Path, *arguments: object) -> str:
    """The one error line of an export that must fail and leave the bundle as it was."""
    before = files(bundle)
    done = edgetl("export", bundle, *arguments)
    assert done.exit_code == 1, (done.exit_code, done.stdout, done.stderr)
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert files(bundle) == before
    assert not work_dir(bundle).exists()
    return line


# --- images


def test_ten_images_to_judge_on_cannot_resolve_half_a_point(made: Path, bundle: Path) -> None:
    guard = json.loads((made / "first.json").read_text())["guard"]
    assert guard["n"] == 10
    assert guard["verdict"] in ("unresolved", "not_met")  # never met: one flip is 10 points
    assert guard["n_needed"] > 100
    done = edgetl("export", bundle, *INT8, "--confident")
    assert done.exit_code == 3, done.stderr
    found = json.loads(done.stdout)["guard"]
    assert (found["met"], found["n"]) == (False, 10)
    assert "--guard-data" in done.stderr or found["verdict"] == "not_met"


@pytest.mark.parametrize("precision", ["--fp16", pytest.param("--int8", marks=pytest.mark.slow)])
def test_a_calibration_set_of_one_class_is_told_with_the_classes_it_lacks(
    bundle: Path, tmp_path: Path, precision: str
) -> None:
    data = photos(tmp_path / "one", {"middle": 12}, seed=2)
    done = edgetl("export", bundle, precision, "--target", "jetpack5", "--calib", data, "--allow-unmet")
    assert done.exit_code == 0, done.stderr
    assert "the calibration set has no image of 2 of 3 classes: left, right" in done.stderr


@pytest.mark.parametrize("precision", ["--fp16", pytest.param("--int8", marks=pytest.mark.slow)])
def test_all_black_images_are_no_base_for_ranges(bundle: Path, tmp_path: Path, precision: str) -> None:
    for index, label in enumerate(LABELS * 8):
        (tmp_path / "black" / label).mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (32 + index, 32))  # another size each, or they would be one image
        image.save(tmp_path / "black" / label / f"{index}.png")
    line = refused(bundle, precision, "--target", "jetpack5", "--calib", tmp_path / "black")
    assert line.startswith("error: the calibration images show nothing: each is one plain colour: ")
    assert "--calib DATA" in line


# --- networks


def test_a_checkpoint_with_nan_is_told_with_the_weight(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    state = load_file(opened.file(opened.artifact("checkpoint")))
    next(v for v in state.values() if v.ndim == 4).view(-1)[0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with writing(bundle, "test") as (writable, _):
        record = {"kind": "checkpoint", "made_by": "test"}
        writable.add([NewArtifact(tmp_path / "nan.safetensors", "checkpoint-{sha12}.safetensors", record)])
    line = refused(bundle, "--int8")
    assert line.startswith("error: a weight holds NaN or inf: ")
    assert "of checkpoint-" in line


def gram() -> onnx.ModelProto:
    """A classifier of 3x3 channel correlations, with an operator that TensorRT does not have: Det."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        helper.make_node("Reshape", ["p", "square"], ["m"], name="square_up"),
        helper.make_node("Det", ["m"], ["y"], name="/gram/Det"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [
            numpy_helper.from_array(rng.normal(size=(12, 3, 3, 3)).astype(np.float32), "w"),
            numpy_helper.from_array(np.array([0, 3, 2, 2], np.int64), "square"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.rtx
@pytest.mark.skipif(bool(engine.missing()), reason=engine.missing() or "present")
def test_an_operator_that_tensorrt_does_not_know_is_told_with_its_node(tmp_path: Path) -> None:
    data = photos(tmp_path / "data", dict.fromkeys(LABELS, 8))
    onnx.save(gram(), str(tmp_path / "m.onnx"))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    (tmp_path / "spec.json").write_text(json.dumps({"size": 16, "resize": 16, "mean": [0.5] * 3, "std": [0.2] * 3}))
    described = ("--labels", tmp_path / "labels.txt", "--preprocess", tmp_path / "spec.json")
    adopted = edgetl("adopt", tmp_path / "m.onnx", *described, "--data", data, "--to", tmp_path / "b")
    assert adopted.exit_code == 0, adopted.stderr
    line = refused(tmp_path / "b", "--int8")
    assert "parser refused the graph: Det '/gram/Det'" in line
    done = edgetl("export", tmp_path / "b", "--target", "cpu")  # as the line says
    assert done.exit_code == 0, done.stderr


# --- processes

MOMENTS = ("lock", "export/exported.onnx", "export/calibration.pixels", "export/calibration.json", "export/fp16.onnx")
MOMENTS += ("export/search.pixels", "export/guard.pixels", "export/int8.onnx", "export/int8.npy")


def process(bundle: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "edgetl", "export", str(bundle), *arguments]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_the_bundle_is_as_it_was_and_the_next_export_works(
    made: Path, tmp_path: Path, moment: str
) -> None:
    bundle = Path(shutil.copytree(made / "plain", tmp_path / "b"))
    before = files(bundle)
    running = process(bundle, "--int8", "--max-drop", "100")
    while running.poll() is None and not (work_dir(bundle) / moment).exists():
        time.sleep(0.002)
    assert running.poll() is None, f"{moment} was never there: {running.communicate()[1]!r}"
    running.send_signal(signal.SIGKILL)  # this process alone: its child must notice by itself
    running.communicate()
    assert files(bundle) == before
    assert all(check.ok for check in Bundle.open(bundle).check_files())
    done = edgetl("export", bundle)
    assert done.exit_code == 0, done.stderr
    assert not work_dir(bundle).exists()


@pytest.mark.slow
def test_two_fresh_processes_make_the_same_bytes(made: Path, tmp_path: Path) -> None:
    """Whatever Python's hash seed; trt8 and trt10, and the calibration they share."""
    found = []
    for seed in ("1", "2"):
        bundle = Path(shutil.copytree(made / "plain", tmp_path / f"b{seed}"))
        for target in ("jetpack6", "jetpack5"):
            running = process(bundle, "--int8", "--max-drop", "100", "--target", target, PYTHONHASHSEED=seed)
            _, stderr = running.communicate(timeout=300)
            assert running.returncode == 0, stderr
        records = Bundle.open(bundle).artifacts("graph") + Bundle.open(bundle).artifacts("calibration")
        found.append({(r["kind"], r.get("profile"), r.get("precision")): r["sha256"] for r in records})
    assert len(found[0]) == 7
    assert found[0] == found[1]
