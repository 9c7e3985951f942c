"""Weights that are rounded to make up for each other: the same steps and ranges, less noise behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import qdq, rounding
from edgetl.graph.bias import corrected, restored
from edgetl.graph.calibrate import session
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.graph.rounding import compensated, rounded
from edgetl.images import to_batch

SIDE = 12
PLACED = Placement(
    {"image": (("first", 0),), "a": (("deep", 0),), "b": (("second", 0),), "flat": (("fc", 0),), "m": (("last", 0),)},
    {("first", 1): 0, ("deep", 1): 0, ("second", 1): 0, ("fc", 1): 0, ("last", 1): 1},
    (),
)
WEIGHTS = {"first": "w1", "deep": "wd", "second": "w2", "fc": "wf", "last": "wm"}


def network() -> onnx.ModelProto:
    """Strided Conv, depthwise Conv, dilated grouped Conv, Gemm with transB, MatMul; correlated inputs everywhere."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.normal(size=(8, 3, 3, 3)) / 99,
        "wd": rng.normal(size=(8, 1, 3, 3)),
        "w2": rng.normal(size=(6, 4, 3, 3)),
        "wf": rng.normal(size=(10, 6)),
        "wm": rng.normal(size=(10, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["a"], name="first", strides=[2, 2], pads=[1, 1, 0, 0]),
        helper.make_node("Conv", ["a", "wd"], ["b"], name="deep", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", group=2, dilations=[2, 1], pads=[2, 1, 2, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "wf"], ["m"], name="fc", transB=1),
        helper.make_node("MatMul", ["m", "wm"], ["logits"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def smooth(n: int, seed: int) -> np.ndarray:
    """Images whose neighbouring pixels and channels resemble each other, as photographs' do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, SIDE // 4, SIDE // 4, 1)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + rng.integers(-25, 26, (n, SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def pixels(tmp_path: Path) -> Pixels:
    return Pixels.of_array(tmp_path / "pixels", smooth(64, 0))


def values(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    names = ["a", "b", "c", "m", "logits"]
    return dict(
        zip(names, session(model, names, 1, True).run(names, {"image": to_batch(images, "float32")}), strict=True)
    )


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def quantised_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    return qdq.inserted(model, Placement({}, PLACED.weights, ()), {})


def test_each_layer_is_off_by_less_on_images_that_were_not_seen(pixels: Pixels) -> None:
    source = network()
    model = rounded(source, PLACED, pixels, threads=1)
    others = smooth(64, 1)
    for node, output in zip(("first", "deep", "second", "fc", "last"), ("a", "b", "c", "m", "logits"), strict=True):
        alone = Placement({}, {(node, 1): PLACED.weights[node, 1]}, ())
        one = network()
        for tensor in one.graph.initializer:
            if tensor.name == WEIGHTS[node]:
                tensor.CopyFrom(next(t for t in model.graph.initializer if t.name == tensor.name))
        wanted = values(source, others)[output]
        plain = values(qdq.inserted(source, alone, {}), others)[output] - wanted
        ours = values(qdq.inserted(one, alone, {}), others)[output] - wanted
        assert (ours**2).mean() < 0.6 * (plain**2).mean(), node


def test_the_steps_stay_and_the_pairs_change_no_weight_any_more(pixels: Pixels) -> None:
    source = network()
    model = rounded(source, PLACED, pixels, threads=1)
    before, after = weights_of(quantised_weights(source)), weights_of(quantised_weights(model))
    for name in WEIGHTS.values():
        scale = before[f"{name}_scale"]
        assert (after[f"{name}_scale"] == scale).all()
        axis = PLACED.weights[next(n for n, w in WEIGHTS.items() if w == name), 1]
        shape = [-1 if i == axis else 1 for i in range(after[name].ndim)]
        steps = after[name] / scale.reshape(shape)
        assert np.abs(steps - np.rint(steps)).max() < 0.02
        assert np.abs(after[name] - before[name]).max() > 0.6 * scale.max()  # some went to another than the nearest
        assert np.abs(np.rint(steps)).max() == 127


def test_the_same_images_give_the_same_bytes_however_the_layers_are_parted(
    pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = (rounded(network(), PLACED, pixels, threads=1).SerializeToString(deterministic=True) for _ in "ab")
    assert first == again
    monkeypatch.setattr(rounding, "_KEPT", 1)
    assert rounded(network(), PLACED, pixels, threads=1).SerializeToString(deterministic=True) == first


def test_of_a_sequence_some_tokens_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """image (B, 3, S, S) x weight (S, 7): 36 rows an image are a sequence to the product."""
    weight = np.random.default_rng(3).normal(size=(SIDE, 7)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["logits"], name="tokens")],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, SIDE, 7])],
        [numpy_helper.from_array(weight, "w")],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    placement, pixels = Placement({}, {("tokens", 1): 1}, ()), Pixels.of_array(tmp_path / "p", smooth(64, 0))
    others = to_batch(smooth(32, 1), "float32")

    def off(model: onnx.ModelProto) -> float:
        wanted, given = (
            session(m, ["logits"], 1, True).run(None, {"image": others})[0]
            for m in (source, qdq.inserted(model, placement, {}))
        )
        return float(((given - wanted) ** 2).mean())

    for positions in (36, 8):
        monkeypatch.setattr(rounding, "_POSITIONS", positions)
        assert off(rounded(source, placement, pixels, threads=1)) < 0.6 * off(source)


def test_layers_beyond_the_limits_stay_as_they_are(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_WIDEST", 20)
    source = network()
    before, after = weights_of(source), weights_of(rounded(source, PLACED, pixels, threads=1))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"wd", "wf", "wm"}  # 9, 6 and 10 inputs; not 27 and 36


def test_inputs_that_are_always_zero_leave_the_nearest_steps(tmp_path: Path) -> None:
    source = network()
    black = Pixels.of_array(tmp_path / "black", np.zeros((8, SIDE, SIDE, 3), np.uint8))
    near = weights_of(quantised_weights(source))
    for name, after in weights_of(quantised_weights(rounded(source, PLACED, black, threads=1))).items():
        assert np.allclose(after, near[name], atol=1e-6) or name in WEIGHTS.values()


def test_a_layer_whose_input_overflows_is_named(pixels: Pixels) -> None:
    source = network()
    for tensor in source.graph.initializer:
        if tensor.name in ("w1", "wd"):
            tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), 6e6, np.float32), tensor.name))
    with pytest.raises(GraphError, match="second"):
        rounded(source, PLACED, pixels, threads=1)


def test_biases_are_corrected_for_the_rounded_weights_and_both_can_be_taken_back(pixels: Pixels) -> None:
    source, amax = network(), {"image": 255.0, "a": 4.0, "b": 12.0, "flat": 40.0, "m": 100.0}
    model = rounded(source, PLACED, pixels, threads=1)
    given = corrected(model, qdq.inserted(model, PLACED, amax), pixels, threads=1, base=source)
    off = {
        name: np.abs(
            values(qdq.inserted(m, PLACED, amax), smooth(64, 0))["m"].mean(axis=0)
            - values(source, smooth(64, 0))["m"].mean(axis=0)
        ).max()
        for name, m in (("rounded", model), ("corrected", given))
    }
    assert off["corrected"] < 0.2 * off["rounded"]
    back = restored(given, source, ["first", "fc"])
    was, now = weights_of(source), weights_of(back)
    assert (now["w1"] == was["w1"]).all() and (now["first_bias"] == 0).all()
    assert (now["wf"] == was["wf"]).all() and (now["fc_bias"] == 0).all()
    assert not np.array_equal(now["w2"], was["w2"]) and np.abs(now["second_bias"]).max() > 0


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.float64, (2, 3, 7), elements=st.floats(-4, 4, width=32)),
    arrays.arrays(np.float64, (2, 12, 7), elements=st.floats(-2, 2, width=32)),
)
def test_what_comes_out_is_whole_and_within_the_levels(weights: np.ndarray, inputs: np.ndarray) -> None:
    moments = inputs.transpose(0, 2, 1) @ inputs
    steps = np.maximum(np.abs(weights).max(axis=2), 1e-3) / 15
    found = compensated(weights, moments, steps, levels=15)
    assert (found == np.rint(found)).all() and np.abs(found).max() <= 15
    top = np.abs(weights).argmax(axis=2)[:, :, None]
    # of several that are largest another may have been the first in the order of the columns
    assert (np.abs(found).max(axis=2) >= np.abs(np.rint(np.take_along_axis(weights, top, 2)[:, :, 0] / steps))).all()


def test_uncorrelated_inputs_of_one_size_leave_plain_rounding() -> None:
    weights = np.random.default_rng(0).normal(size=(1, 5, 9))
    steps = np.abs(weights).max(axis=2) / 127
    assert (compensated(weights, np.eye(9)[None] * 3.0, steps) == np.rint(weights / steps[:, :, None])).all()
