"""The FP16-rest INT8 graph of a network whose tensors are too large or too small for float16, through real AutoCast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl import engine
from edgetl.graph import qdq, surgery
from edgetl.graph.calibrate import FP16_FLOOR, FP16_LIMIT, outside_float16
from edgetl.graph.nvidia import built, with_whole_pairs
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.graph.quantise import Calibrated, calibrated
from edgetl.graph.worker import worker
from edgetl.images import to_batch
from edgetl.runtime.ort import OrtBackend

# What each 1x1 convolution does to the size of what flows: up beyond FP16_LIMIT, down below FP16_FLOOR, back.
GAINS = {"up": 200.0, "down": 1e-3, "further": 1e-3, "tiny": 1e-5, "back": 1e3, "again": 1e2}


def network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes, weights, x, width = [], [], "image", 3
    for name, gain in GAINS.items():
        weights.append(numpy_helper.from_array((rng.uniform(0.5, 1, (4, width, 1, 1)) * gain).astype("f"), name + "_w"))
        nodes.append(helper.make_node("Conv", [x, name + "_w"], [name + "_out"], name=name))
        x, width = name + "_out", 4
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"], name="flat"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


PLACED = Placement(
    {x: ((name, 0),) for x, name in zip(["image", *(n + "_out" for n in GAINS)], GAINS, strict=False)},
    {(name, 1): 0 for name in GAINS},
    (),
)
IMAGES = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], onnx.ModelProto, onnx.ModelProto]:
    """(calibration peaks, the INT8 graph with its rest in FP32, the same with what may be in FP16)."""
    folder = tmp_path_factory.mktemp("range")
    found = Calibrated(PLACED, calibrated(network(), PLACED, Pixels.of_array(folder / "pixels", IMAGES), threads=1))
    ranges = found.ranges("max")
    twin = qdq.inserted(network(), PLACED, ranges)
    peaks = {**found.statistics.peaks, **{f"{name}_dequantised": peak for name, peak in ranges.items()}}
    with worker(folder) as child:
        return peaks, twin, child.fp16(twin, list(outside_float16(twin, peaks)))


def test_the_network_is_what_it_should_be(graphs: tuple[dict[str, float], onnx.ModelProto, onnx.ModelProto]) -> None:
    peaks, _, _ = graphs
    assert peaks["up_out"] > 65504 > FP16_LIMIT > peaks["down_out"]
    assert 0 < peaks["tiny_out"] < FP16_FLOOR < peaks["again_out"]


def test_no_tensor_outside_float16s_range_is_a_float16(
    graphs: tuple[dict[str, float], onnx.ModelProto, onnx.ModelProto],
) -> None:
    peaks, _, lowered = graphs
    inferred = onnx.shape_inference.infer_shapes(lowered, data_prop=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    outside = {name for name, peak in peaks.items() if peak > FP16_LIMIT or 0 < peak < FP16_FLOOR}
    assert {"up_out", "up_out_dequantised", "tiny_out", "tiny_out_dequantised"} <= outside
    assert all(types[name] == TensorProto.FLOAT for name in outside & set(types))
    assert TensorProto.FLOAT16 in types.values()  # the others are lowered all the same


def test_no_scale_became_zero_or_inf(graphs: tuple[dict[str, float], onnx.ModelProto, onnx.ModelProto]) -> None:
    _, twin, lowered = graphs
    for model in (twin, lowered):
        values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        scales = [values[n.input[1]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
        assert len(scales) == 12
        assert all(np.isfinite(s).all() and (s > 0).all() for s in scales)


def test_it_says_what_its_fp32_twin_says(
    graphs: tuple[dict[str, float], onnx.ModelProto, onnx.ModelProto], tmp_path: Path
) -> None:
    _, twin, lowered = graphs
    images = to_batch(IMAGES, "float32")
    expected, given = (
        OrtBackend(surgery.save(model, tmp_path / f"{name}.onnx"), threads=1).run(images)
        for name, model in (("twin", twin), ("lowered", lowered))
    )
    assert np.abs(expected - given).max() < 0.02 * np.abs(expected).max()


@pytest.mark.rtx
@pytest.mark.skipif(bool(engine.missing()), reason="needs tensorrt-rtx")
def test_convolutions_that_stay_fp32_around_int8_still_run_in_int8(
    graphs: tuple[dict[str, float], onnx.ModelProto, onnx.ModelProto], tmp_path: Path
) -> None:
    """A Cast between DequantizeLinear and convolution ends NVIDIA's fusion; with whole pairs there is none."""
    peaks, twin, cut = graphs
    alone = built(cut, surgery.save(cut, tmp_path / "cut.onnx"))
    with worker(tmp_path) as child:
        whole = child.fp16(twin, sorted(with_whole_pairs(twin, outside_float16(twin, peaks))))
    kept = built(whole, surgery.save(whole, tmp_path / "whole.onnx"))
    assert alone is not None and kept is not None
    assert alone.convolutions  # and it is seen, although the Cast hides the pair
    assert kept.convolutions == ()
    assert kept.int8_macs_share == 1.0
