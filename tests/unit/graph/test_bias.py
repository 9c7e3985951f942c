from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import qdq
from edgetl.graph.bias import corrected
from edgetl.graph.calibrate import session
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.images import to_batch

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
AMAX = {"image": 100.0, "r": 3.0, "flat": 40.0, "m": 100.0}  # too narrow, so that every layer is shifted
PLACED = Placement(
    {"image": (("first", 0),), "r": (("second", 0),), "flat": (("matmul", 0),), "m": (("fc", 0),)},
    {("first", 1): 0, ("second", 1): 0, ("matmul", 1): 1, ("fc", 1): 1},
    (),
)


def network(opset: int = 13, bias_after: bool = True) -> onnx.ModelProto:
    """Conv with a bias, Conv without one, MatMul (with a constant added, or not), Gemm with beta 0.5."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.normal(size=(6, 3, 3, 3)) / 99,
        "b": rng.normal(size=6),
        "w2": rng.normal(size=(6, 6, 3, 3)),
        "wm": rng.normal(size=(6, 6)),
        "wf": rng.normal(size=(6, 4)),
        "bf": rng.normal(size=(1, 4)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b"], ["c"], name="first"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2"], ["d"], name="second"),
        helper.make_node("GlobalAveragePool", ["d"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "wm"], ["product"], name="matmul"),
        # the constant of the first Conv, as exporters join equal ones
        helper.make_node("Add", ["product", "b"] if bias_after else ["product", "flat"], ["m"], name="add"),
        helper.make_node("Gemm", ["m", "wf", "bf"], ["logits"], name="fc", beta=0.5),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def twin(source: onnx.ModelProto) -> onnx.ModelProto:
    return qdq.inserted(source, PLACED, AMAX)


def means(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """(C,) of what each product makes."""
    names = ["c", "d", "m", "logits"]
    values = session(model, names, 1, simulate=True).run(names, {"image": to_batch(images, "float32")})
    return {n: v.mean(axis=tuple(i for i in range(v.ndim) if i != 1)) for n, v in zip(names, values, strict=True)}


@pytest.mark.parametrize("opset", [13, 19])
def test_on_one_batch_every_layer_of_the_twin_has_the_float_means(tmp_path: Path, opset: int) -> None:
    source, images = network(opset), IMAGES[:8]
    given = corrected(source, twin(source), Pixels.of_array(tmp_path / "pixels", images), threads=1)
    wanted, before, after = means(source, images), means(twin(source), images), means(twin(given), images)
    for name, mean in wanted.items():
        was = np.abs(before[name] - mean).max()
        assert was > 1e-2 * np.abs(mean).max(), name
        assert np.abs(after[name] - mean).max() <= 1e-3 * was, name


def test_over_several_batches_nearly_so(tmp_path: Path) -> None:
    source = network()
    given = corrected(source, twin(source), Pixels.of_array(tmp_path / "pixels", IMAGES), threads=1)
    wanted, before, after = means(source, IMAGES), means(twin(source), IMAGES), means(twin(given), IMAGES)
    for name, mean in wanted.items():
        assert np.abs(after[name] - mean).max() <= 0.1 * np.abs(before[name] - mean).max(), name


def test_only_biases_change_and_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    source, pixels = network(), Pixels.of_array(tmp_path / "pixels", IMAGES)
    given = corrected(source, twin(source), pixels, threads=1)
    old = {t.name: t for t in source.graph.initializer}
    new = {t.name: t for t in given.graph.initializer}
    assert all(new[name] == old[name] for name in ("w1", "w2", "wm", "wf"))
    assert set(new) == {*old, "b_of_add", "second_bias"}
    again = corrected(source, twin(source), pixels, threads=1)
    assert given.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert [n.name for n in given.graph.node] == [n.name for n in source.graph.node]


def test_a_matmul_without_a_constant_after_it_keeps_its_shift(tmp_path: Path) -> None:
    source = network(bias_after=False)
    given = corrected(source, twin(source), Pixels.of_array(tmp_path / "pixels", IMAGES[:8]), threads=1)
    wanted, after = means(source, IMAGES[:8]), means(twin(given), IMAGES[:8])
    assert np.abs(after["m"] - wanted["m"]).max() > 1e-2
    assert np.allclose(after["logits"], wanted["logits"], atol=1e-4)


def test_a_twin_without_pairs_changes_nothing(tmp_path: Path) -> None:
    source = network(bias_after=False)
    assert corrected(source, source, Pixels.of_array(tmp_path / "pixels", IMAGES[:8]), threads=1) == source


def test_a_broken_bias_names_its_layer(tmp_path: Path) -> None:
    source = network()
    bias = next(t for t in source.graph.initializer if t.name == "b")
    bias.CopyFrom(numpy_helper.from_array(np.full(6, np.inf, np.float32), "b"))
    with pytest.raises(GraphError, match="first"):
        corrected(source, twin(source), Pixels.of_array(tmp_path / "pixels", IMAGES[:8]), threads=1)
