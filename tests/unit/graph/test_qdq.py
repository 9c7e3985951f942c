from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.graph.placement import Placement, read_placement
from edgetl.graph.qdq import inserted, scale_of
from edgetl.runtime.ort import OrtBackend


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e6))
def test_a_scale_is_a_float16_that_does_not_clip(amax: float) -> None:
    scale = scale_of(amax)
    assert scale.dtype == np.float32
    assert np.float32(np.float16(scale)) == scale > 0
    assert float(scale) * 127 >= amax
    assert float(scale) * 127 <= max(amax * 1.01, 127 * 1.2e-7) or amax < 1e-2 or amax == 0


def test_tiny_ranges_get_the_smallest_scale_and_dead_ones_get_one() -> None:
    assert scale_of(1e-12) == np.float32(np.finfo(np.float16).smallest_subnormal)
    assert scale_of(0.0) == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_a_range_beyond_float16_is_refused(bad: float) -> None:
    with pytest.raises(GraphError, match="has no scale"):
        scale_of(bad)


def conv_model(weight: np.ndarray, opset: int = 13) -> onnx.ModelProto:
    """image -> Conv 1x1 -> GlobalAveragePool -> Flatten -> logits."""
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["conv_out"], name="conv"),
        helper.make_node("GlobalAveragePool", ["conv_out"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], name="flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(weight)])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


PLACED = Placement({"image": (("conv", 0),)}, {("conv", 1): 0}, ())


def fake(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values / scale), -128, 127) * scale


@pytest.mark.parametrize("opset", [13, 19])
def test_the_inserted_pairs_do_what_int8_does(tmp_path: Path, opset: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 3, 1, 1)) * np.array([0.01, 10.0]).reshape(2, 1, 1, 1)
    model = inserted(conv_model(weight, opset), PLACED, {"image": 255.0})
    image = rng.uniform(0, 255, (5, 3, 4, 4)).astype(np.float32)
    given_logits = OrtBackend(surgery.save(model, tmp_path / "q.onnx")).run(image)
    scales = scale_of(np.abs(weight.astype(np.float32)).max(axis=(1, 2, 3))).reshape(2, 1, 1, 1)
    quantised = fake(weight.astype(np.float32), scales)[:, :, 0, 0]
    expected = np.einsum("oc,nchw->nohw", quantised, fake(image, scale_of(255.0))).mean(axis=(2, 3))
    assert np.allclose(given_logits, expected, rtol=1e-4, atol=1e-3)


def test_zero_points_are_explicit_and_biases_stay_float() -> None:
    model = inserted(conv_model(np.ones((2, 3, 1, 1))), PLACED, {"image": 1.0})
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert len(node.input) == 3
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert TensorProto.INT32 not in kinds.values()
    assert kinds["weight_zero_point"] == TensorProto.INT8


def test_nan_in_a_weight_is_named() -> None:
    weight = np.ones((2, 3, 1, 1))
    weight[0, 0] = np.nan
    with pytest.raises(GraphError, match="weight"):
        inserted(conv_model(weight), PLACED, {"image": 1.0})


def test_a_placement_is_read_back_from_what_was_inserted() -> None:
    source = conv_model(np.ones((2, 3, 1, 1)))
    found = read_placement(source, inserted(source, PLACED, {"image": 1.0}))
    assert found == PLACED


def test_an_unquantised_graph_has_no_placement() -> None:
    source = conv_model(np.ones((2, 3, 1, 1)))
    with pytest.raises(GraphError, match="nothing in the graph can be quantised"):
        read_placement(source, source)


def test_a_node_that_the_source_does_not_have_is_refused() -> None:
    source = conv_model(np.ones((2, 3, 1, 1)))
    changed = inserted(source, PLACED, {"image": 1.0})
    next(n for n in changed.graph.node if n.name == "conv").name = "conv_fused"
    with pytest.raises(GraphError, match="conv_fused"):
        read_placement(source, changed)


def test_inputs_of_a_concat_share_a_scale() -> None:
    source = conv_model(np.ones((2, 3, 1, 1)))
    extra = [
        helper.make_node("Relu", ["image"], ["left"], name="relu"),
        helper.make_node("Concat", ["left", "image"], ["both"], name="cat", axis=1),
        helper.make_node("MaxPool", ["both"], ["pool2"], name="pool2", kernel_shape=[1, 1]),
    ]
    source.graph.node.extend(extra)
    placement = Placement(
        {"image": (("conv", 0), ("cat", 1)), "left": (("cat", 0),)}, {("conv", 1): 0}, (("image", "left"),)
    )
    found = read_placement(source, inserted(source, placement, {"image": 1.0, "left": 1.0}))
    assert found.groups == (("image", "left"),)


@pytest.mark.parametrize(("trans", "axis"), [(0, 1), (1, 0)])
def test_a_gemm_is_quantised_by_output_channel(trans: int, axis: int) -> None:
    source = conv_model(np.ones((2, 3, 1, 1)))
    source.graph.initializer.append(numpy_helper.from_array(np.ones((2, 2), np.float32), "fc_w"))
    source.graph.node.append(helper.make_node("Gemm", ["logits", "fc_w"], ["fc_out"], name="fc", transB=trans))
    placement = Placement({"image": (("conv", 0),), "logits": (("fc", 0),)}, {("conv", 1): 0, ("fc", 1): axis}, ())
    found = read_placement(source, inserted(source, placement, {"image": 1.0, "logits": 1.0}))
    assert found.weights[("fc", 1)] == axis
