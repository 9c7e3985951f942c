"""INT8 where the device is a CPU: `--target cpu --int8` from export to bench, on onnxruntime's own int8 kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from edgetl.bundle import Bundle
from edgetl.cli.app import app


def edgetl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def told(*arguments: object) -> dict[str, Any]:
    """The JSON object of a command that succeeds."""
    done = edgetl(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smallnet trained for one epoch on 120 generated images."""
    folder = tmp_path_factory.mktemp("cpu")
    rng = np.random.default_rng(0)
    for index, label in enumerate(("red", "green", "blue")):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[:, :, index] += 120
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i}.png")
    options = ("--backbone", "smallnet", "--weights", "none", "--epochs", 1, "--image-size", 32)
    told("finetune", folder / "photos", "--to", folder / "b", *options)
    return folder / "b"


@pytest.fixture(scope="module")
def exported(bundle: Path) -> dict[str, Any]:
    return told("export", bundle, "--target", "cpu", "--int8", "--max-drop", 50, "--threads", 1)


def test_the_int8_graph_is_judged_on_the_kernels_it_will_run_on(bundle: Path, exported: dict[str, Any]) -> None:
    assert [(a["profile"], a["precision"]) for a in exported["artifacts"]] == [
        ("cpu", "fp32"), ("cpu", "fp16"), ("cpu", "int8")
    ]  # fmt: skip
    guard, graph = exported["guard"], exported["artifacts"][-1]
    assert guard["met"] is True and guard["evidence"] == "host-cpu"
    assert -50 <= guard["drop_pp"] <= 50
    assert graph["int8_macs_share"] > 0.99
    assert graph["bytes"] < 0.4 * exported["artifacts"][0]["bytes"]
    record = Bundle.open(bundle).artifact("graph", profile="cpu", precision="int8")
    assert record["weight_bits"] in (7, 8) and record["weight_bits_why"]
    assert record["coverage"]["layers"]["QLinearConv"] >= 10 and record["coverage"]["fallbacks"] == []


def test_activations_are_unsigned_weights_are_int8_and_the_ends_stay_float(
    bundle: Path, exported: dict[str, Any]
) -> None:
    model = onnx.load(bundle / exported["artifacts"][-1]["file"])
    constants = {t.name: t.data_type for t in model.graph.initializer}
    quantised = {constants[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    stored = {constants[n.input[0]] for n in model.graph.node if n.input[0] in constants}
    assert quantised == {onnx.TensorProto.UINT8}
    assert stored == {onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    ends = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert ends == {onnx.TensorProto.FLOAT}


def test_bench_gives_a_latency_of_the_cpu_graph(bundle: Path, exported: dict[str, Any]) -> None:
    fast = ("--seconds", "0.05", "--warmup", 1, "--threads", 1)
    rows = told("bench", bundle, "--target", "cpu", "--backends", "onnxruntime", "--precisions", "fp32,int8", *fast)[
        "rows"
    ]
    assert [(r["precision"], r["status"]) for r in rows] == [("fp32", "ok"), ("int8", "ok")]
    int8 = rows[1]
    assert int8["graph_sha256"] == exported["artifacts"][-1]["sha256"]
    assert (int8["accuracy_evidence"], int8["latency_evidence"]) == ("host-cpu", "host-cpu")
    assert int8["latency_ms"]["p50"] > 0 and int8["throughput_ips"] > 0
    assert int8["agreement"] >= 0.8
    shown = edgetl("bench", bundle, "--target", "cpu", "--precisions", "int8", *fast)
    assert shown.exit_code == 0, shown.stderr
    assert "int8 cpu" in shown.stdout and "simulated" not in shown.stdout


def test_verify_and_classify_run_the_same_kernels(bundle: Path, exported: dict[str, Any]) -> None:
    checks = told("verify", bundle)["checks"]
    (itself,) = [c for c in checks if "cpu/int8" in c["name"] and "(itself)" in c["name"]]
    assert itself["ok"] and itself["value"] == 0.0  # integers: the same to the bit, on the machine that made it
    photo = next((bundle.parent / "photos/green").iterdir())
    (found,) = told("classify", bundle, photo, "--precision", "int8")["predictions"]
    assert found["label"] in ("red", "green", "blue")


def test_one_calibration_serves_all_profiles(bundle: Path, exported: dict[str, Any]) -> None:
    before = Bundle.open(bundle).artifacts("calibration")
    assert len(before) == 1
    made = told("export", bundle, "--target", "jetpack5", "--int8", "--max-drop", 100, "--threads", 1)
    assert made["artifacts"][-1]["profile"] == "trt8"
    assert Bundle.open(bundle).artifacts("calibration") == before


def test_the_same_export_gives_the_same_bytes_and_tells_people_whose_kernels_they_are(
    bundle: Path, exported: dict[str, Any]
) -> None:
    shown = edgetl("export", bundle, "--target", "cpu", "--int8", "--max-drop", 50, "--threads", 1)
    assert shown.exit_code == 0, shown.stderr
    again = [
        Bundle.open(bundle).artifact("graph", profile="cpu", precision=p)["sha256"] for p in ("fp32", "fp16", "int8")
    ]
    assert again == [a["sha256"] for a in exported["artifacts"]]
    assert "evidence: host-cpu" in shown.stdout and "TensorRT" not in shown.stdout
    assert "onnxruntime's int8 kernels on this CPU" in " ".join(shown.stdout.split())
