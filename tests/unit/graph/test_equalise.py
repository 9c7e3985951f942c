from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import qdq
from edgetl.graph.calibrate import Calibration, session
from edgetl.graph.equalise import equalised
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.images import to_batch
from edgetl.measure.score import compare

WIDE = 8  # channels between the two convolutions
IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
PLACED = Placement(
    {"image": (("first", 0),), "act": (("second", 0),), "flat": (("fc", 0),)},
    {("first", 1): 0, ("second", 1): 0, ("fc", 1): 1},
    (),
)


def network(activation: str = "Relu", scales: np.ndarray | None = None) -> onnx.ModelProto:
    """image -> Conv -> activation -> Conv -> GlobalAveragePool -> Gemm; `scales` (8,) planted around the activation."""
    rng = np.random.default_rng(1)
    s = np.ones(WIDE) if scales is None else scales
    weights = {
        "w1": rng.normal(size=(WIDE, 3, 3, 3)) / 400 * s.reshape(-1, 1, 1, 1),
        "b1": rng.normal(size=WIDE) * s,
        "w2": rng.normal(size=(6, WIDE, 3, 3)) / s.reshape(1, -1, 1, 1),
        "fc": rng.normal(size=(6, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["conv"], name="first"),
        helper.make_node(activation, ["conv"], ["act"], name="act"),
        helper.make_node("Conv", ["act", "w2"], ["deep"], name="second"),
        helper.make_node("GlobalAveragePool", ["deep"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fc"], ["logits"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    return Pixels.of_array(tmp_path_factory.mktemp("equalise") / "pixels", IMAGES)


def run(model: onnx.ModelProto, tensor: str = "logits") -> np.ndarray:
    batch = to_batch(IMAGES, "float32")
    return np.asarray(session(model, [tensor], 1, simulate=True).run([tensor], {"image": batch})[0])


def kl(model: onnx.ModelProto, expected: np.ndarray) -> float:
    """Of the model in INT8 by max ranges, in nats, against these logits."""
    calibration = Calibration(model, ["image", "act", "flat"], threads=1)
    calibration.feed(IMAGES)
    amax = {name: h.peak for name, h in calibration.statistics.histograms.items()}
    return compare(expected, run(qdq.inserted(model, PLACED, amax)), expected.argmax(axis=1)).kl


@settings(max_examples=25)
@given(st.lists(st.integers(-5, 5), min_size=WIDE, max_size=WIDE))
def test_planted_ranges_are_undone(pixels: Pixels, octaves: list[int]) -> None:
    expected = run(network())
    plain = kl(network(), expected)
    planted = network(scales=np.exp2(octaves))
    repaired = equalised(planted, pixels, 1)
    assert repaired is not None
    assert np.allclose(run(repaired), expected, rtol=0, atol=1e-5 * np.ptp(expected))
    assert kl(repaired, expected) <= 3 * plain + 1e-4
    if max(octaves) - min(octaves) >= 8:
        assert kl(planted, expected) > kl(repaired, expected)


def test_no_range_grows_and_the_narrowest_channel_gains(pixels: Pixels) -> None:
    planted = network(scales=np.exp2(np.arange(WIDE) - 4))
    repaired = equalised(planted, pixels, 1)
    assert repaired is not None
    before, after = (run(m, "act").max(axis=(0, 2, 3)) for m in (planted, repaired))
    assert after.max() <= before.max() * (1 + 1e-6)
    assert after.min() / after.max() > 4 * before.min() / before.max()


def test_a_channel_that_never_moved_is_not_widened(pixels: Pixels) -> None:
    model = network()
    bias = next(t for t in model.graph.initializer if t.name == "b1")
    values = numpy_helper.to_array(bias).copy()
    values[2] = -1e6  # dead behind the ReLU
    bias.CopyFrom(numpy_helper.from_array(values, "b1"))
    repaired = equalised(model, pixels, 1)
    assert repaired is not None
    rows = [numpy_helper.to_array(next(t for t in m.graph.initializer if t.name == "w1"))[2] for m in (model, repaired)]
    assert np.abs(rows[1]).max() <= np.abs(rows[0]).max()


def test_nothing_to_scale(pixels: Pixels) -> None:
    source = network("Sigmoid")
    second = next(n for n in source.graph.node if n.name == "second")
    source.graph.node.append(helper.make_node("Sigmoid", [second.output[0]], ["gate"], name="gate"))
    assert equalised(source, pixels, 1) is None


def test_an_overflow_inside_is_named(pixels: Pixels) -> None:
    model = network()
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    weight.CopyFrom(numpy_helper.from_array(np.full((WIDE, 3, 3, 3), 3e38, np.float32), "w1"))
    with pytest.raises(GraphError, match="NaN or inf"):
        equalised(model, pixels, 1)
