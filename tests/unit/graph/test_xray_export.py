"""The X-ray that an export leaves beside each of its INT8 graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from edgetl import engine
from edgetl.bundle import Bundle
from edgetl.cli.app import app
from edgetl.graph import layers, nvidia, surgery


def xray(path: Path, profile: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the graph's record, the body of its X-ray)."""
    bundle = Bundle.open(path)
    graph = bundle.artifact("graph", profile=profile, precision="int8")
    record = bundle.artifact("layers", made_from=graph["sha256"])
    body: dict[str, Any] = json.loads(bundle.file(record).read_text())
    return graph, body


def shipped_steps(model: onnx.ModelProto) -> dict[str, list[np.ndarray]]:
    """Node -> float32 scales of its two operands, as the graph holds them."""
    constants = {t.name: numpy_helper.to_array(t).astype(np.float32).ravel() for t in model.graph.initializer}
    scales = {n.output[0]: constants[n.input[1]] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    products = nvidia.quantised(model)
    return {n.name: [scales[name] for name in n.input[:2]] for n in model.graph.node if n.name in products}


@pytest.mark.parametrize("profile", ["trt10", "trt8"])
def test_each_int8_graph_has_an_xray_of_its_layers(exported: Path, profile: str) -> None:
    graph, body = xray(exported, profile)
    jsonschema.validate(body, json.loads(layers.SCHEMA_FILE.read_text()))
    assert body["graph"] == graph["sha256"] and body["method"] == graph["method"]
    assert body["calibration_n"] == graph["calibration_images"]
    model = surgery.load(Bundle.open(exported).file(graph))
    quantised = {row["node"]: row["op"] for row in body["layers"] if row["kept_float"] is None}
    assert quantised == nvidia.quantised(model) and quantised
    steps = shipped_steps(model)
    for row in body["layers"]:
        assert steps[row["node"]][0].tolist() == [row["scale"]]
        assert (steps[row["node"]][1].min(), steps[row["node"]][1].max()) == (
            row["weight_scale_min"],
            row["weight_scale_max"],
        )
        assert row["scale"] * 127 >= row["amax"] > 0 and row["peak"] > 0
        assert row["sqnr_db"] > 0 and row["sqnr_n"] > 0
    shares = sum(row["macs_share"] for row in body["layers"])
    assert 0.9 < shares <= 1.0


def test_the_most_harmful_layers_were_measured_and_come_first(exported: Path) -> None:
    rows = xray(exported, "trt10")[1]["layers"]
    measured = [row["kl_regained"] is not None for row in rows]
    assert any(measured) and measured == sorted(measured, reverse=True)
    harm = [row["kl_regained"] for row in rows if row["kl_regained"] is not None]
    assert harm == sorted(harm, reverse=True)
    assert all(row["effect_n"] > 0 for row, seen in zip(rows, measured, strict=True) if seen)


@pytest.mark.rtx
@pytest.mark.skipif(bool(engine.missing()), reason=engine.missing() or "present")
@pytest.mark.parametrize("profile", ["trt10", "trt8"])
def test_the_builders_precisions_are_joined(exported: Path, profile: str) -> None:
    graph, body = xray(exported, profile)
    assert body["builder"] == engine.PROXY
    assert {row["precision"] for row in body["layers"] if row["kept_float"] is None} == {"int8"}
    inside = sum(row["macs_share"] for row in body["layers"] if row["precision"] == "int8")
    assert inside == pytest.approx(graph["int8_macs_share"])
    assert graph["coverage"]["left_out"] == {} and graph["coverage"]["fallbacks"] == []


def test_the_command_shows_it(exported: Path) -> None:
    done = CliRunner().invoke(app, ["inspect", str(exported), "--layers", "--json", "--target", "jetpack5"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["graph"]["profile"] == "trt8" and found["layers"] == xray(exported, "trt8")[1]["layers"]
