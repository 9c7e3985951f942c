from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from edgetl.errors import GraphError
from edgetl.graph.local import noise
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.graph.qdq import scale_of

IMAGES = np.random.default_rng(0).integers(0, 256, (21, 8, 8, 3), dtype=np.uint8)
FLOATS = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).astype(np.float64))


def model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], opset: int = 13) -> onnx.ModelProto:
    """image (batch, 3, 8, 8) -> nodes -> logits."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def pixels(tmp_path: Path) -> Pixels:
    return Pixels.of_array(tmp_path / "pixels", IMAGES)


def fake(values: np.ndarray | torch.Tensor, amax: np.ndarray | float) -> torch.Tensor:
    scale = scale_of(amax).astype(np.float64)
    return torch.from_numpy(np.clip(np.rint(np.asarray(values, dtype=np.float64) / scale), -128, 127) * scale)


def rows(values: np.ndarray, axis: int) -> np.ndarray:
    """Range of each output channel, broadcastable."""
    return np.asarray(np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis), keepdims=True))


def two_convs() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    weights = {"w1": rng.normal(size=(6, 1, 3, 3)) / 99, "b1": rng.normal(size=6), "w2": rng.normal(size=(6, 5, 2, 2))}
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c"], name="conv", group=3),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ConvTranspose", ["r", "w2"], ["logits"], name="deconv"),
    ]
    return model(nodes, weights), weights


def test_each_layer_is_judged_by_itself_on_float_inputs(pixels: Pixels) -> None:
    source, w = two_convs()
    placement = Placement({"image": (("conv", 0),), "r": (("deconv", 0),)}, {("conv", 1): 0, ("deconv", 1): 1}, ())
    found = noise(source, placement, {"image": 200.0, "r": 2.0}, pixels, threads=1)
    assert list(found) == ["conv", "deconv"]

    t = {name: torch.from_numpy(value.astype(np.float64)) for name, value in w.items()}
    y = functional.conv2d(FLOATS, t["w1"], t["b1"], groups=3)
    y_q = functional.conv2d(fake(FLOATS, 200.0), fake(w["w1"], rows(w["w1"], 0)), t["b1"], groups=3)
    r = y.relu()
    z = functional.conv_transpose2d(r, t["w2"])
    z_q = functional.conv_transpose2d(fake(r, 2.0), fake(w["w2"], rows(w["w2"], 1)))
    for name, whole, rough in (("conv", y, y_q), ("deconv", z, z_q)):
        shift = (whole - rough).mean(dim=(0, 2, 3)).numpy()
        sqnr = 10 * np.log10(float((whole**2).sum() / ((whole - rough) ** 2).sum()))
        # a value that float32 rounds to the other side of a half moves one of 4,000 products
        assert np.abs(found[name].shift - shift).max() <= 2e-3 * float((whole - rough).abs().max())
        assert found[name].sqnr_db == pytest.approx(sqnr, abs=0.02)
        assert found[name].shift.dtype == np.float64
        assert found[name].n == 21


@pytest.mark.parametrize(("kind", "trans"), [("Gemm", 0), ("Gemm", 1), ("MatMul", 0)])
@pytest.mark.parametrize("opset", [13, 19])
def test_products_of_features(pixels: Pixels, kind: str, trans: int, opset: int) -> None:
    weight = np.random.default_rng(2).normal(size=(192, 5)).astype(np.float32)
    attributes = {"transB": trans} if kind == "Gemm" else {}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], name="flatten"),
        helper.make_node(kind, ["flat", "w"], ["logits"], name="fc", **attributes),
    ]
    source = model(nodes, {"w": weight.T if trans else weight}, opset)
    placement = Placement({"flat": (("fc", 0),)}, {("fc", 1): 0 if trans else 1}, ())
    found = noise(source, placement, {"flat": 255.0}, pixels, threads=1)["fc"]
    x = FLOATS.reshape(21, -1).numpy()
    off = x @ weight.astype(np.float64) - (fake(x, 255.0) @ fake(weight, rows(weight, 1))).numpy()
    assert np.allclose(found.shift, off.mean(axis=0), atol=1e-3 * np.abs(off).max())


def test_the_batch_leaves_no_trace(pixels: Pixels, tmp_path: Path) -> None:
    source, _ = two_convs()
    placement = Placement({"image": (("conv", 0),), "r": (("deconv", 0),)}, {("conv", 1): 0, ("deconv", 1): 1}, ())
    amax = {"image": 255.0, "r": 5.0}
    together = noise(source, placement, amax, pixels, threads=1)  # not alone, and the last batch is smaller
    alone = [
        noise(source, placement, amax, Pixels.of_array(tmp_path / "one", IMAGES[i : i + 1]), threads=1)
        for i in range(len(IMAGES))
    ]
    for name, found in together.items():
        mean = np.mean([one[name].shift for one in alone], axis=0)
        assert np.abs(found.shift - mean).max() <= 1e-5 * np.abs(mean).max()
    assert noise(source, placement, amax, pixels, threads=1, limit=3)["conv"].n == 3


def test_what_int8_holds_exactly_makes_no_noise(tmp_path: Path) -> None:
    weight = np.array([[127, -3, 0], [1, -127, 4]], dtype=np.float32).reshape(2, 3, 1, 1)
    source = model([helper.make_node("Conv", ["image", "w"], ["logits"], name="conv")], {"w": weight})
    pixels = Pixels.of_array(tmp_path / "pixels", IMAGES // 3)
    found = noise(source, Placement({"image": (("conv", 0),)}, {("conv", 1): 0}, ()), {"image": 127.0}, pixels)["conv"]
    assert found.sqnr_db == np.inf
    assert not found.shift.any()


def test_a_product_of_two_activations_has_noise_and_no_bias(pixels: Pixels) -> None:
    source = model([helper.make_node("MatMul", ["image", "image"], ["logits"], name="attend")], {})
    placement = Placement({"image": (("attend", 0), ("attend", 1))}, {}, ())
    found = noise(source, placement, {"image": 255.0}, pixels)["attend"]
    assert found.shift.shape == (0,)
    assert 30 < found.sqnr_db < 60


def test_an_overflow_names_its_layer(pixels: Pixels) -> None:
    weight = np.full((2, 3, 1, 1), 3e38, dtype=np.float32)
    source = model([helper.make_node("Conv", ["image", "w"], ["logits"], name="conv")], {"w": weight})
    with pytest.raises(GraphError, match="conv"):
        noise(source, Placement({"image": (("conv", 0),)}, {}, ()), {"image": 255.0}, pixels)


def test_weights_that_were_rounded_are_judged_against_the_float_ones(pixels: Pixels) -> None:
    source, w = two_convs()
    placement = Placement({"image": (("conv", 0),), "r": (("deconv", 0),)}, {("conv", 1): 0, ("deconv", 1): 1}, ())
    amax = {"image": 255.0, "r": 5.0}
    other, _ = two_convs()
    changed = 1.01 * w["w1"]
    next(t for t in other.graph.initializer if t.name == "w1").CopyFrom(numpy_helper.from_array(changed, "w1"))
    plain = noise(source, placement, amax, pixels, threads=1)
    found = noise(source, placement, amax, pixels, threads=1, weights=other)
    y = functional.conv2d(FLOATS, torch.from_numpy(w["w1"]).double(), torch.from_numpy(w["b1"]).double(), groups=3)
    y_q = functional.conv2d(
        fake(FLOATS, 255.0), fake(changed, rows(w["w1"], 0)), torch.from_numpy(w["b1"]).double(), groups=3
    )
    expected = 10 * np.log10(float((y**2).sum() / ((y - y_q) ** 2).sum()))
    assert found["conv"].sqnr_db == pytest.approx(expected, abs=0.02)
    assert found["conv"].sqnr_db < plain["conv"].sqnr_db - 3
    assert found["deconv"].sqnr_db == plain["deconv"].sqnr_db  # fed with the float network's tensors as before
