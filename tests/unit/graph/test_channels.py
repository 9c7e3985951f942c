from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgetl.graph import surgery
from edgetl.graph.channels import _components, traced
from edgetl.graph.equalise import rescaled
from edgetl.graph.export import source_of_network
from edgetl.runtime.ort import OrtBackend
from edgetl.transfer import backbones

RNG = np.random.default_rng(0)


def model(nodes: Sequence[onnx.NodeProto], weights: dict[str, tuple[int, ...]], opset: int = 13) -> onnx.ModelProto:
    """image (batch, 4, 8, 8) -> nodes -> logits; constants of the given shapes, drawn at random."""
    values = {
        name: np.abs(RNG.normal(size=shape)) if "var" in name else RNG.normal(size=shape)
        for name, shape in weights.items()
    }
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(np.asarray(v, dtype=np.float32), k) for k, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(","), [output], name=output, **attributes)


HEAD = [node("GlobalAveragePool", "y", "pooled"), node("Flatten", "pooled", "flat"), node("Gemm", "flat,fc", "logits")]
CONV = node("Conv", "image,w1,b1", "c")
W = {"w1": (6, 4, 1, 1), "b1": (6,), "fc": (6, 3)}

# name -> nodes between the first Conv's output "c" (6 channels) and HEAD's input "y", their constants, free classes
CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, tuple[int, ...]], int]] = {
    "relu": ([node("Relu", "c", "y")], {}, 6),
    "leaky relu": ([node("LeakyRelu", "c", "y", alpha=0.1)], {}, 6),
    "pooling": (
        [node("MaxPool", "c", "m", kernel_shape=[2, 2]), node("AveragePool", "m", "y", kernel_shape=[2, 2])],
        {},
        6,
    ),
    "sigmoid": ([node("Sigmoid", "c", "y")], {}, 0),
    "clip without an upper end": ([node("Clip", "c,low", "y")], {"low": ()}, 0),  # low is not zero here
    "swish": ([node("Sigmoid", "c", "g"), node("Mul", "c,g", "y")], {}, 0),
    "depthwise": (
        [node("Relu", "c", "r"), node("Conv", "r,dw,db", "y", group=6)],
        {"dw": (6, 1, 3, 3), "db": (6,)},
        12,
    ),
    "groups": ([node("Relu", "c", "r"), node("Conv", "r,g2", "y", group=2)], {"g2": (6, 3, 1, 1)}, 12),
    "deconvolution": ([node("ConvTranspose", "c,t,tb", "y")], {"t": (6, 6, 2, 2), "tb": (6,)}, 12),
    "residual": (
        [node("Relu", "c", "r"), node("Conv", "r,w2,b2", "d"), node("Add", "d,r", "y")],
        {"w2": (6, 6, 1, 1), "b2": (6,)},
        6,
    ),
    "constant added": ([node("Add", "c,k", "y")], {"k": (1, 6, 1, 1)}, 0),
    "squeeze and excite": (
        [
            node("Relu", "c", "r"),
            node("GlobalAveragePool", "r", "p"),
            node("Conv", "p,w2,b2", "q"),
            node("HardSigmoid", "q", "g"),
            node("Mul", "r,g", "y"),
        ],
        {"w2": (6, 6, 1, 1), "b2": (6,)},
        6,
    ),
    "normalisation": (
        [node("BatchNormalization", "c,scale,shift,mean,var", "n"), node("Relu", "n", "y")],
        {"scale": (6,), "shift": (6,), "mean": (6,), "var": (6,)},
        12,
    ),
    "concatenation": (
        [
            node("Conv", "c,w2", "d"),
            node("Concat", "d,c", "e", axis=1),
            node("Relu", "e", "f"),
            node("Conv", "f,w3", "y"),
        ],
        {"w2": (5, 6, 1, 1), "w3": (6, 11, 1, 1)},
        17,
    ),
    "concatenation of pixels": (
        [node("Concat", "c,c", "d", axis=2), node("Relu", "d", "y")],
        {},
        0,
    ),
    "also read by a transposition": (
        [node("Relu", "c", "y"), node("Transpose", "y", "t", perm=[0, 2, 3, 1])],
        {},
        0,
    ),
}  # fmt: skip


def outputs(graph: onnx.ModelProto, path: Path, size: int = 8, channels: int = 4) -> np.ndarray:
    images = np.random.default_rng(1).uniform(-1, 1, (3, channels, size, size)).astype(np.float32)
    return OrtBackend(surgery.save(graph, path)).run(images)


@pytest.mark.parametrize("name", CASES)
def test_free_classes_are_all_found_and_may_be_scaled(name: str, tmp_path: Path) -> None:
    nodes, weights, free = CASES[name]
    graph = model([CONV, *nodes, *HEAD], {**W, **weights})
    channels = traced(graph)
    assert channels.free.sum() == free
    factors = np.random.default_rng(2).uniform(0.1, 10, len(channels.free))
    scaled = rescaled(graph, channels, factors)
    before, after = outputs(graph, tmp_path / "before.onnx"), outputs(scaled, tmp_path / "after.onnx")
    assert np.abs(before - after).max() <= 2e-6 * np.abs(before).max()
    changed = [a != b for a, b in zip(graph.graph.initializer, scaled.graph.initializer, strict=True)]
    assert any(changed) == (free > 0)


def test_relu_written_as_a_clip_passes() -> None:
    graph = model([CONV, node("Clip", "c,low", "y"), *HEAD], {**W, "low": ()})
    graph.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.float32(0), "low"))
    assert traced(graph).free.sum() == 6


def test_flattened_pixels_keep_their_channels_factor(tmp_path: Path) -> None:
    nodes = [CONV, node("Relu", "c", "y"), node("Flatten", "y", "flat"), node("Gemm", "flat,fc,fb", "logits", transB=1)]
    graph = model(nodes, {**W, "fc": (3, 6 * 64), "fb": (3,)})
    channels = traced(graph)
    assert channels.free.sum() == 6
    scaled = rescaled(graph, channels, np.random.default_rng(2).uniform(0.1, 10, len(channels.free)))
    before, after = outputs(graph, tmp_path / "before.onnx"), outputs(scaled, tmp_path / "after.onnx")
    assert np.abs(before - after).max() <= 2e-6 * np.abs(before).max()


@pytest.mark.parametrize("opset", [13, 18])
def test_a_mean_over_the_pixels_passes_and_one_over_channels_does_not(opset: int) -> None:
    found = []
    for axes in ([2, 3], [1, 3]):
        means = {"axes": axes} if opset < 18 else {}
        name = "y" if opset < 18 else "y,axes"
        nodes = [CONV, node("Relu", "c", "y"), node("ReduceMean", name, "flat", keepdims=0, **means)]
        graph = model([*nodes, node("Gemm", "flat,fc", "logits")], {**W, "fc": (6 if axes == [2, 3] else 8, 3)}, opset)
        if opset >= 18:
            graph.graph.initializer.append(numpy_helper.from_array(np.array(axes), "axes"))
        found.append(int(traced(graph).free.sum()))
    assert found == [6, 0]


def drawn(name: str) -> torch.nn.Module:
    """torchvision's network with random weights, all BatchNorms doing something."""
    torch.manual_seed(0)
    arguments = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, num_classes=5, **arguments).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0, 0.3)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
            torch.nn.init.normal_(layer.running_mean, 0, 0.3)
    return network


# A share of all the channels that Convs write (what is scalable there was counted by hand for the first two).
@pytest.mark.parametrize(
    ("name", "size", "free"),
    [
        ("resnet18", 32, 64 + 2 * (64 + 128 + 256 + 512) + 128 + 256 + 512),
        ("mobilenet_v2", 32, 16 + 24 + 32 + 64 + 96 + 160 + 320),
        ("mobilenet_v3_small", 32, None),
        ("efficientnet_b0", 32, None),
        pytest.param("mnasnet0_5", 32, None, marks=pytest.mark.slow),
        pytest.param("regnet_y_400mf", 32, None, marks=pytest.mark.slow),
        ("squeezenet1_1", 32, None),
        pytest.param("densenet121", 32, None, marks=pytest.mark.slow),
        pytest.param("googlenet", 64, None, marks=pytest.mark.slow),
    ],
)
def test_real_networks_say_the_same_whatever_the_factors(
    name: str, size: int, free: int | None, tmp_path: Path
) -> None:
    source = surgery.unshared(source_of_network(drawn(name), backbones.row(name), size, tmp_path))
    channels = traced(source)
    assert channels.free.sum() == free if free else channels.free.sum() > 0
    scaled = rescaled(source, channels, np.random.default_rng(2).uniform(0.25, 4, len(channels.free)))
    before = outputs(source, tmp_path / "before.onnx", size, 3)
    after = outputs(scaled, tmp_path / "after.onnx", size, 3)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


@given(st.integers(1, 30), st.data())
def test_components_are_those_of_a_walk(count: int, data: st.DataObject) -> None:
    node_number = st.integers(0, count - 1)
    edges = data.draw(st.lists(st.tuples(node_number, node_number), max_size=40))
    left, right = (np.array([edge[i] for edge in edges], dtype=np.int64) for i in (0, 1))
    given_classes = _components(count, left, right)
    sets = [{i} for i in range(count)]
    for a, b in edges:
        joined = sets[a] | sets[b]
        for member in joined:
            sets[member] = joined
    assert sorted(set(given_classes.tolist())) == list(range(len({min(s) for s in sets})))
    for a in range(count):
        for b in range(count):
            assert (given_classes[a] == given_classes[b]) == (b in sets[a])
