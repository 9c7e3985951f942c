from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import DataError, GraphError
from edgetl.graph.calibrate import FP16_LIMIT, Calibration, outside_float16
from edgetl.graph.macs import int8_share, macs


def network(gain: float = 1.0) -> onnx.ModelProto:
    """image (N, 3, 8, 8) -> Conv 3x3 (5 channels, gain) -> Relu -> Flatten -> Gemm -> logits (N, 4)."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["act"], name="relu"),
        helper.make_node("Flatten", ["act"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "fc"], ["logits"], name="fc"),
    ]
    weights = {"w": rng.normal(size=(5, 3, 3, 3)) * gain, "fc": rng.normal(size=(5 * 36, 4)) / 1e4}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


IMAGES = np.random.default_rng(3).integers(0, 256, (21, 8, 8, 3), dtype=np.uint8)


def test_the_input_and_every_tensor_are_counted_and_nothing_twice() -> None:
    run = Calibration(network(), ["image", "act"], threads=1)
    run.feed(IMAGES)
    found = run.statistics
    assert found.n == 21
    assert found.histograms["image"].counts.sum() == 21 * 3 * 64
    assert found.histograms["act"].counts.sum() == 21 * 5 * 36
    assert found.peaks["image"] == float(IMAGES.max())
    assert set(found.peaks) == {"image", "conv", "act", "flat", "logits"}
    assert found.peaks["act"] == found.histograms["act"].peak
    assert not found.histograms["act"].signed


def counted(batches: list[np.ndarray]) -> dict[str, object]:
    run = Calibration(network(), ["image", "conv", "act", "flat", "logits"], threads=1)
    for batch in batches:
        run.feed(batch)
    found = run.statistics
    return {"peaks": found.peaks, "n": found.n, **{name: h.to_json() for name, h in found.histograms.items()}}


ALONE = counted([IMAGES])


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_counts_do_not_depend_on_the_batch_size_to_the_bit(batch: int) -> None:
    assert counted([IMAGES[i : i + batch] for i in range(0, len(IMAGES), batch)]) == ALONE


def test_counts_do_not_depend_on_the_order_to_the_bit() -> None:
    assert counted([np.random.default_rng(5).permutation(IMAGES)]) == ALONE


def test_a_look_is_not_moved_by_what_comes_after() -> None:
    run = Calibration(network(), ["act"], threads=1)
    run.feed(IMAGES[:5])
    before = run.look()["act"]
    kept = before.to_json()
    run.feed(IMAGES[5:])
    assert before.to_json() == kept != run.look()["act"].to_json()


def test_images_that_show_nothing_are_no_base_for_ranges() -> None:
    run = Calibration(network(), ["act"], threads=1)
    black = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    red = np.tile(np.array([250, 3, 3], np.uint8), (2, 8, 8, 1))
    run.feed(black)
    run.feed(red)
    with pytest.raises(DataError, match=r"plain colour: 6 images; .*--calib"):
        run.check()
    run.feed(IMAGES[:1])
    run.check()
    assert run.blank == 6


def test_a_network_that_does_not_look_is_told_of() -> None:
    dead = network()
    fc = next(t for t in dead.graph.initializer if t.name == "fc")
    fc.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(fc)), "fc"))
    run = Calibration(dead, ["act"], threads=1)
    run.feed(IMAGES[:1])
    run.check()  # one image tells nothing
    run.feed(IMAGES[1:3])
    with pytest.raises(GraphError, match="same answer whatever it sees: 3 calibration images"):
        run.check()


def test_nan_inside_the_network_is_named() -> None:
    broken = network()
    weight = numpy_helper.to_array(broken.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = np.nan
    broken.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    with pytest.raises(GraphError, match="NaN or inf inside the network"):
        Calibration(broken, ["conv"], threads=1).feed(IMAGES)


def test_a_tensor_that_is_not_there_is_refused() -> None:
    with pytest.raises(GraphError, match="nowhere"):
        Calibration(network(), ["nowhere"], threads=1)


def test_nodes_around_values_near_float16s_limit_are_named() -> None:
    run = Calibration(network(gain=1000.0), [], threads=1)
    run.feed(IMAGES)
    assert run.statistics.peaks["conv"] > FP16_LIMIT
    assert list(outside_float16(network(), run.statistics.peaks)) == ["conv", "relu", "flat", "fc"]
    assert list(outside_float16(network(), {"conv": 10.0, "act": 0.0})) == []


def test_nodes_around_values_that_float16_hardly_holds_are_named() -> None:
    assert list(outside_float16(network(), {"act": 1e-4})) == ["relu", "flat"]
    assert list(outside_float16(network(), {"act": 2.0**-13})) == []


def test_a_weight_beyond_float16_keeps_its_node_in_float32() -> None:
    heavy = network()
    weight = numpy_helper.to_array(heavy.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = -65504.0
    heavy.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    assert list(outside_float16(heavy, {})) == []
    weight[0, 0, 0, 0] = -65600.0
    heavy.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    assert list(outside_float16(heavy, {})) == ["conv"]


def test_macs_of_a_convolution_and_a_gemm_are_counted_by_hand() -> None:
    assert macs(network()) == {"conv": 5 * 36 * 27, "fc": 4 * 180}


def test_the_int8_share_is_by_macs_and_not_by_nodes() -> None:
    assert int8_share(network(), {"conv": "int8", "fc": "fp16"}) == pytest.approx(4860 / (4860 + 720))
    assert int8_share(network(), {}) == 0.0


def test_macs_of_matmul_einsum_and_transposed_convolution() -> None:
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["ab"], name="matmul"),
        helper.make_node("Einsum", ["a", "b"], ["e"], name="einsum", equation="bij,jk->bik"),
        helper.make_node("ConvTranspose", ["image", "k"], ["up"], name="up"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8]),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 6, 7]),
        ],
        [helper.make_tensor_value_info("ab", TensorProto.FLOAT, ["batch", 6, 5])],
        [
            numpy_helper.from_array(np.zeros((7, 5), np.float32), "b"),
            numpy_helper.from_array(np.zeros((3, 2, 3, 3), np.float32), "k"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert macs(model) == {"matmul": 6 * 7 * 5, "einsum": 6 * 7 * 5, "up": 3 * 64 * 2 * 9}
