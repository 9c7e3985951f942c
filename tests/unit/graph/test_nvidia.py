"""Quantised products that NVIDIA's real builder runs in float, ahead of time and without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl import engine
from edgetl.errors import EngineError
from edgetl.graph import nvidia, qdq, surgery
from edgetl.graph.groups import without
from edgetl.graph.placement import Placement
from edgetl.monitor import Monitor

MakeGraph = Callable[..., Path]
rtx = pytest.mark.skipif(bool(engine.missing()), reason=engine.missing() or "present")


class Heard(Monitor):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def spoilt(path: Path, nodes: tuple[str, ...] = ("c0", "c1")) -> onnx.ModelProto:
    """The int8 graph in `path` with one activation scale a channel before `nodes`: parsed, and then run in float."""
    model = surgery.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        channels = 3 if node == "c0" else 8
        for end in ("_s", "_z"):
            old = numpy_helper.to_array(constants[f"{node}_x{end}"])
            constants[f"{node}_x{end}"].CopyFrom(
                numpy_helper.from_array(old.repeat(channels).reshape(channels), f"{node}_x{end}")
            )
        for found in model.graph.node:
            if found.name in (f"{node}_x", f"{node}_x_q"):
                found.attribute.append(helper.make_attribute("axis", 1))
    onnx.save(model, str(path))
    return model


def test_quantised_products_are_read_off_the_graph(tiny_graph: MakeGraph) -> None:
    model = surgery.load(tiny_graph(precision="int8"))
    assert nvidia.quantised(model) == {"c0": "Conv", "c1": "Conv", "fc": "Gemm"}
    assert nvidia.quantised(surgery.load(tiny_graph(precision="fp32"))) == {}
    half = surgery.load(tiny_graph(precision="int8", seed=1))
    next(n for n in half.graph.node if n.name == "c1").input[0] = "c0_relu"
    assert nvidia.quantised(half) == {"c0": "Conv", "fc": "Gemm"}, "weights alone make no INT8 product"


@pytest.mark.rtx
@rtx
def test_a_good_graph_keeps_its_products_and_shows_their_precisions(tiny_graph: MakeGraph) -> None:
    path = tiny_graph(precision="int8")
    found = nvidia.built(surgery.load(path), path)
    assert found is not None and found.fallbacks == ()
    assert found.precisions == {"c0": "int8", "c1": "int8", "fc": "int8"}
    assert found.int8_macs_share == 1.0
    assert found.record() == {"layers": {"int8": 3, "fp16": 0, "fp32": 0}, "fallbacks": [], "evidence": engine.PROXY}
    found.check()


@pytest.mark.rtx
@rtx
def test_a_convolution_that_falls_back_is_an_error_with_its_name(tiny_graph: MakeGraph) -> None:
    path = tiny_graph(precision="int8")
    found = nvidia.built(spoilt(path, ("c1",)), path)
    assert found is not None and found.fallbacks == found.convolutions == ("c1",)
    with pytest.raises(EngineError, match=r"run in float in NVIDIA's builder: c1;"):
        found.check()


@pytest.mark.rtx
@rtx
def test_what_falls_back_is_left_out_once_and_told(tiny_graph: MakeGraph) -> None:
    asked: list[tuple[str, ...]] = []
    bad, good = (tiny_graph(name=name, precision="int8") for name in ("bad", "good"))
    spoilt(bad, ("c1",))

    def make(left_out: tuple[str, ...]) -> tuple[onnx.ModelProto, Path]:
        asked.append(left_out)
        path = good if left_out else bad
        return surgery.load(path), path

    heard = Heard()
    found = nvidia.settled(make, heard)
    assert asked == [(), ("c1",)] and found.left_out == ("c1",)
    assert found.path == good and found.built is not None and found.built.fallbacks == ()
    record = found.record()
    assert record is not None and record["left_out"] == {"c1": nvidia.IN_FLOAT} and record["fallbacks"] == []
    assert len(heard.warnings) == 1 and "c1: NVIDIA's builder runs it in float" in heard.warnings[0]


@pytest.mark.rtx
@rtx
def test_a_convolution_that_falls_back_twice_ends_the_export(tiny_graph: MakeGraph) -> None:
    path = tiny_graph(precision="int8")
    model = spoilt(path)
    with pytest.raises(EngineError, match=r"2 quantised convolutions run in float .*c0, c1"):
        nvidia.settled(lambda left_out: (model, path))


@pytest.mark.rtx
@rtx
def test_a_graph_without_fallbacks_is_made_once(tiny_graph: MakeGraph) -> None:
    path = tiny_graph(precision="int8")
    asked: list[tuple[str, ...]] = []
    found = nvidia.settled(lambda left_out: (asked.append(left_out), (surgery.load(path), path))[1])
    assert asked == [()] and found.left_out == ()


@pytest.mark.rtx
@rtx
def test_the_parsers_refusal_passes_through(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 4, 4])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3, 4, 4])
    node = helper.make_node("Einsum", ["image", "image"], ["logits"], name="/attn", equation="Bchw,Bchw->Bchw")
    graph = helper.make_graph([node], "g", [image], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    with pytest.raises(EngineError, match="'/attn'"):
        nvidia.built(model, surgery.save(model, tmp_path / "bad.onnx"))


def upsampler() -> onnx.ModelProto:
    """image -> Conv -> Relu -> ConvTranspose -> pool -> logits: NVIDIA's builder has no INT8 kernel for the latter."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "conv_w"], ["conv_out"], name="conv"),
        helper.make_node("Relu", ["conv_out"], ["relu_out"], name="relu"),
        helper.make_node("ConvTranspose", ["relu_out", "up_w"], ["up_out"], name="up", strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["up_out"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="flat"),
    ]
    weights = {"conv_w": (8, 3, 3, 3), "up_w": (8, 4, 2, 2)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 4])],
        [numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name) for name, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.rtx
@rtx
def test_a_transposed_convolution_ships_in_float(tmp_path: Path) -> None:
    source = upsampler()
    placement = Placement({"image": (("conv", 0),), "relu_out": (("up", 0),)}, {("conv", 1): 0, ("up", 1): 1}, ())

    def make(left_out: tuple[str, ...]) -> tuple[onnx.ModelProto, Path]:
        model = qdq.inserted(source, without(placement, left_out), {"image": 3.0, "relu_out": 9.0})
        return model, surgery.save(model, tmp_path / "int8.onnx")

    found = nvidia.settled(make)
    assert found.left_out == ("up",) and nvidia.quantised(found.model) == {"conv": "Conv"}
    assert found.built is not None and found.built.precisions == {"conv": "int8", "up": "fp32"}
    # Multiply-accumulates: conv 6*6*8*27 = 7776; up 8*6*6 inputs times 4*2*2 = 4608.
    assert found.built.int8_macs_share == 7776 / (7776 + 4608)
