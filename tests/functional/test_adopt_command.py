"""`edgetl adopt`: a classifier made elsewhere becomes a bundle, or one line says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from edgetl.bundle import Bundle
from edgetl.cli.app import app
from edgetl.graph import check_parity, reference_backend
from edgetl.runtime.ort import OrtBackend

LABELS = ("left", "middle", "right")
SPEC = {"size": 16, "resize": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def foreign(batch: int | str = "n", opset: int = 13, softmax: bool = False, classes: int = 3) -> onnx.ModelProto:
    """A convolutional classifier on normalised (batch, 3, 16, 16); its Reshape knows the batch where that is fixed."""
    names = ("x", "y")
    rng = np.random.default_rng(0)
    shape = [batch if isinstance(batch, int) else 0, 32]
    constants = {
        "w0": rng.normal(size=(32, 3, 3, 3)) / 4,
        "w1": rng.normal(size=(32, 32, 3, 3)) / 16,
        "fc": rng.normal(size=(32, classes)),
    }
    last = "inner" if softmax else names[1]
    nodes = [
        helper.make_node("Conv", [names[0], "w0"], ["c0"], name="conv0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"], name="pool"),
        helper.make_node("Reshape", ["p", "shape"], ["flat"], name="reshape"),
        helper.make_node("Gemm", ["flat", "fc"], [last], name="head"),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", [last], [names[1]], name="softmax", axis=1))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info(names[1], TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()]
        + [numpy_helper.from_array(np.array(shape, np.int64), "shape")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


Adopt = Callable[..., Result]


@pytest.fixture
def adopt(tmp_path: Path) -> Adopt:
    """adopt(model, *more, labels=..., spec=...) -> the command's result; the bundle is tmp_path/bundle."""

    def run(
        model: onnx.ModelProto | bytes, *more: str, labels: str = "\n".join(LABELS) + "\n", spec: Any = SPEC
    ) -> Result:
        data = model if isinstance(model, bytes) else model.SerializeToString()
        (tmp_path / "m.onnx").write_bytes(data)
        (tmp_path / "labels.txt").write_text(labels, encoding="utf-8")
        (tmp_path / "spec.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
        arguments = ["adopt", str(tmp_path / "m.onnx"), "--labels", str(tmp_path / "labels.txt")]
        arguments += ["--preprocess", str(tmp_path / "spec.json"), "--to", str(tmp_path / "bundle"), *more]
        return CliRunner().invoke(app, arguments)

    return run


@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("softmax", [False, True])
def test_the_adopted_reference_takes_pixels_and_any_batch(
    adopt: Adopt, tmp_path: Path, batch: int | str, softmax: bool
) -> None:
    result = adopt(foreign(batch, softmax=softmax), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["labels"] == list(LABELS)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 16, 16)).astype(np.float32)
    mean, std = (np.array(SPEC[k], np.float32).reshape(1, 3, 1, 1) for k in ("mean", "std"))
    (tmp_path / "plain.onnx").write_bytes(foreign().SerializeToString())
    expected = OrtBackend(tmp_path / "plain.onnx").run((pixels / 255 - mean) / std)
    found = reference_backend(Bundle.open(tmp_path / "bundle")).run(pixels)
    assert np.allclose(found, expected, atol=1e-4)


def test_after_adopting_with_data_export_and_verify_work(
    adopt: Adopt, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    data = make_folder(classes=LABELS, n=24, size=16)
    assert adopt(foreign(), "--data", str(data)).exit_code == 0
    result = CliRunner().invoke(app, ["export", str(tmp_path / "bundle"), "--int8", "--max-drop", "100", "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert [a["precision"] for a in made["artifacts"]] == ["fp32", "fp16", "int8"]
    assert made["guard"]["n"] > 0
    assert all(check.ok for check in check_parity(Bundle.open(tmp_path / "bundle")))


def test_without_data_export_asks_for_it(adopt: Adopt, tmp_path: Path) -> None:
    assert adopt(foreign()).exit_code == 0
    result = CliRunner().invoke(app, ["export", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "--calib DATA" in result.stderr
    result = CliRunner().invoke(app, ["export", str(tmp_path / "bundle"), "--int8"])
    assert result.exit_code == 1
    assert "--calib DATA" in result.stderr


def quantised() -> onnx.ModelProto:
    model = foreign()
    model.graph.node[0].op_type = "QLinearConv"
    return model


def quantised_by_pairs() -> onnx.ModelProto:
    """As TensorRT's tools write it, its nodes without names."""
    model = foreign()
    constants = {"scale": np.float32(0.1), "zero": np.int8(0)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_dq"]))
    model.graph.node[2].input[0] = "x_dq"
    return model


def with_weight(name: str, value: float, where: int | slice = 0) -> onnx.ModelProto:
    """The classifier with one element (or all) of a weight replaced."""
    model = foreign()
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[where] = value
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return model


def constant_weight(value: float) -> onnx.ModelProto:
    """NaN in a Constant node, as some exporters write weights."""
    model = foreign()
    tensor = next(t for t in model.graph.initializer if t.name == "w1")
    values = numpy_helper.to_array(tensor).copy()
    values[3, 1, 0, 0] = value
    model.graph.initializer.remove(tensor)
    node = helper.make_node("Constant", [], ["w1"], name="held", value=numpy_helper.from_array(values, "w1"))
    model.graph.node.insert(0, node)
    return model


def two_inputs() -> onnx.ModelProto:
    model = foreign()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 1]))
    return model


def channels_last() -> onnx.ModelProto:
    model = foreign()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 16, 3]))
    return model


def half() -> onnx.ModelProto:
    model = foreign()
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name == "w0":
            values = numpy_helper.to_array(tensor).astype(np.float16)
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, "w0"))
    return model


def custom() -> onnx.ModelProto:
    model = foreign()
    model.graph.node[1].domain = "com.acme"
    return model


def baked_batch() -> onnx.ModelProto:
    """Its answer depends on the other images of the batch: no batch axis at all."""
    model = foreign(2)
    node = next(n for n in model.graph.node if n.name == "reshape")
    model.graph.node.remove(node)
    mean = helper.make_node("ReduceMean", ["p"], ["m"], name="mean", axes=[0], keepdims=1)
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 32, 1, 1], np.int64), "both"))
    spread = helper.make_node("Expand", ["m", "both"], ["e"], name="expand")
    flat = helper.make_node("Flatten", ["e"], ["flat"], name="flatten")
    nodes = [*list(model.graph.node)[:5], mean, spread, flat, model.graph.node[5]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"this is no model" * 9, "not an ONNX file"),
        (quantised(), "quantised already: QLinearConv conv0 in"),
        (quantised_by_pairs(), "quantised already: QuantizeLinear x_q in"),
        (with_weight("w1", np.nan), "a weight holds NaN or inf: w1 in"),
        (with_weight("fc", -np.inf), "a weight holds NaN or inf: fc in"),
        (constant_weight(np.nan), "a weight holds NaN or inf: w1 in"),
        (with_weight("w1", 3e38, slice(None)), "gives NaN or inf: on noise, black or white"),
        (with_weight("fc", 0.0, slice(None)), "the same answer whatever it sees"),
        (two_inputs(), "one input and one output"),
        (channels_last(), "channels first"),
        (half(), "adopt the fp32 model"),
        (custom(), "com.acme.Relu"),
        (foreign(classes=4), "3 labels"),
        (baked_batch(), "dynamic batch"),
    ],
    ids=[
        "bytes",
        "quantised",
        "pairs",
        "nan",
        "inf",
        "held",
        "overflow",
        "constant",
        "inputs",
        "nhwc",
        "half",
        "custom",
        "classes",
        "batch",
    ],
)
def test_a_graph_that_does_not_fit_is_one_line(adopt: Adopt, tmp_path: Path, model: Any, message: str) -> None:
    result = adopt(model)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("error:") == 1
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "bundle.work").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("left\nleft\nright\n", "repeated label"),
        ("left\n\nright\n", "empty or repeated"),
        ("left\nright\n", "2 labels"),
        ("left\n", "at least two"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(adopt: Adopt, labels: str, message: str) -> None:
    result = adopt(foreign(), labels=labels)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{", "Preprocess cannot be read"),
        ([1], "not a JSON object"),
        ({**SPEC, "size": 24, "resize": 24}, "another image size"),
        ({**SPEC, "scale": 2}, "scale"),
        ({"size": 16}, "mean"),
    ],
)
def test_a_preprocess_that_does_not_fit_is_one_line(adopt: Adopt, spec: Any, message: str) -> None:
    result = adopt(foreign(), spec=spec)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_bundle_that_is_there_is_left_alone_unless_overwritten(adopt: Adopt, tmp_path: Path) -> None:
    assert adopt(foreign()).exit_code == 0
    result = adopt(foreign())
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert adopt(foreign(), "--overwrite").exit_code == 0
    assert Bundle.open(tmp_path / "bundle").manifest["generation"] == 2


def test_json_labels_are_read_too(adopt: Adopt, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(LABELS))
    assert adopt(foreign(), "--labels", str(path)).exit_code == 0
    path.write_text("[1, 2, 3]")
    assert "not a list of names" in adopt(foreign(), "--labels", str(path)).stderr
