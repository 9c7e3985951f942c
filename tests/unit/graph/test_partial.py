"""Variants run from where they part say to the bit what they say when run whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.graph import partial, qdq
from edgetl.graph.calibrate import session
from edgetl.graph.groups import without
from edgetl.graph.partial import Trunk, logits_of_all
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.images import to_batch

PLACEMENT = Placement(
    {
        "image": (("first", 0),),
        "a": (("branch", 0), ("sum", 1)),
        "b": (("project", 0),),
        "s": (("last", 0), ("beside", 0)),
        "flat": (("head", 0),),
    },
    {(name, 1): 0 for name in ("first", "branch", "project", "last", "beside")} | {("head", 1): 1},
    (),
)
AMAX = {"image": 255.0, "a": 3.0, "b": 2.0, "s": 3.0, "flat": 1.0}
CASES = {  # left in float -> where that graph parts from the trunk
    ("first",): "image",
    ("branch",): "a",
    ("project",): "a",  # beside it the skip is read too
    ("sum",): "a",
    ("beside",): "s",
    ("last", "head"): "s",
    ("head",): "flat",
}


def network() -> onnx.ModelProto:
    """image -> first -> (branch -> project) + skip -> (last + beside) -> pool -> head; Conv, Clip, Relu; 16 px."""
    rng = np.random.default_rng(0)
    shapes = {"first": (16, 3, 3, 3), "branch": (24, 16, 3, 3), "project": (16, 24, 1, 1), "head": (16, 5)}
    shapes |= {"last": (16, 16, 3, 3), "beside": (16, 16, 1, 1)}
    weights = {f"w_{name}": rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    weights["w_first"] /= 100
    padded = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "w_first"], ["a_raw"], name="first", **padded),
        helper.make_node("Relu", ["a_raw"], ["a"], name="relu_a"),
        helper.make_node("Conv", ["a", "w_branch"], ["b_raw"], name="branch", **padded),
        helper.make_node("Clip", ["b_raw", "zero", "six"], ["b"], name="clip_b"),
        helper.make_node("Conv", ["b", "w_project"], ["c"], name="project"),
        helper.make_node("Add", ["c", "a"], ["s_raw"], name="sum"),
        helper.make_node("Relu", ["s_raw"], ["s"], name="relu_s"),
        helper.make_node("Conv", ["s", "w_last"], ["d"], name="last", **padded),
        helper.make_node("Conv", ["s", "w_beside"], ["e"], name="beside"),
        helper.make_node("Add", ["d", "e"], ["f"], name="join"),
        helper.make_node("GlobalAveragePool", ["f"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w_head"], ["logits"], name="head"),
    ]
    weights |= {"zero": np.array(0.0), "six": np.array(6.0)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def leaving(*nodes: str) -> onnx.ModelProto:
    return qdq.inserted(network(), without(PLACEMENT, nodes), AMAX)


@pytest.fixture
def pixels(tmp_path: Path) -> Pixels:
    images = np.random.default_rng(1).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    return Pixels.of_array(tmp_path / "pixels", images)


def whole(model: onnx.ModelProto, pixels: Pixels) -> np.ndarray:
    run = session(model, ["logits"], 1, simulate=True)
    return np.concatenate([run.run(None, {"image": to_batch(b, "float32")})[0] for b in pixels.batches(step=4)])


@pytest.mark.parametrize(("nodes", "start"), CASES.items())
def test_each_variant_goes_on_from_the_last_tensor_before_it_differs(nodes: tuple[str, ...], start: str) -> None:
    rest = Trunk(leaving()).rest_of(leaving(*nodes))
    assert rest.start == start
    assert rest.model.graph.input[0].name == start
    onnx.checker.check_model(rest.model, full_check=True)
    assert (rest.skipped == 0) == (start == "image")
    assert len(rest.model.graph.node) + rest.skipped == len(leaving(*nodes).graph.node)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_logits_are_those_of_the_whole_graphs_to_the_bit(pixels: Pixels, threads: int) -> None:
    variants = [leaving(*nodes) for nodes in CASES]
    own, found = logits_of_all(leaving(), variants, pixels, threads)
    assert own.shape == (10, 5) and own.dtype == np.float32
    assert (own == whole(leaving(), pixels)).all()
    for nodes, variant, given in zip(CASES, variants, found, strict=True):
        assert (given == whole(variant, pixels)).all(), nodes
        assert (given != own).any(), nodes


def test_graphs_that_do_not_fit_at_once_are_run_in_parts(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [leaving(*nodes) for nodes in CASES]
    _, together = logits_of_all(leaving(), variants, pixels, 1)
    runs: list[int] = []
    plain = partial._run

    def counted(base: onnx.ModelProto, rests: list[partial.Rest], *others: object) -> list[np.ndarray]:
        runs.append(len(rests))
        return plain(base, rests, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(partial, "_run", counted)
    monkeypatch.setattr(partial, "_KEPT", 1)
    _, apart = logits_of_all(leaving(), variants, pixels, 1)
    assert runs == [1] * len(CASES)
    assert all((one == other).all() for one, other in zip(together, apart, strict=True))


def test_another_weight_is_another_graph_from_there_on(pixels: Pixels) -> None:
    variant = leaving()
    tensor = next(t for t in variant.graph.initializer if t.name == "w_last")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.9), "w_last"))
    assert Trunk(leaving()).rest_of(variant).start == "s"
    own, (given,) = logits_of_all(leaving(), [variant], pixels, 1)
    assert (given == whole(variant, pixels)).all() and (given != own).any()


def test_nothing_beside_the_trunk_is_the_trunk_alone(pixels: Pixels) -> None:
    own, found = logits_of_all(leaving(), [], pixels, 1)
    assert found == [] and (own == whole(leaving(), pixels)).all()
