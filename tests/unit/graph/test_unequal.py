from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision

from benchmarks.unequal import boundaries, unequal
from edgetl.graph import surgery
from edgetl.graph.export import source_of_network
from edgetl.runtime.ort import OrtBackend
from edgetl.transfer import backbones


@pytest.fixture(scope="module", params=[("mobilenet_v2", 7), ("resnet18", 11)])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, int]:
    name, expected = request.param
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=5).eval()
    scratch = tmp_path_factory.mktemp("unequal")
    return source_of_network(network, backbones.row(name), 32, scratch), expected


def test_every_boundary_is_found_and_the_network_computes_the_same(
    planted: tuple[onnx.ModelProto, int], tmp_path: Path
) -> None:
    source, expected = planted
    assert len(list(boundaries(source))) == expected
    harder = unequal(source, seed=3, spread=256)
    images = np.random.default_rng(0).uniform(-2, 2, (4, 3, 32, 32)).astype(np.float32)
    before = OrtBackend(surgery.save(source, tmp_path / "before.onnx")).run(images)
    after = OrtBackend(surgery.save(harder, tmp_path / "after.onnx")).run(images)
    assert np.abs(before - after).max() <= 1e-6 * np.abs(before).max()


def test_channels_of_one_tensor_end_up_far_apart(planted: tuple[onnx.ModelProto, int]) -> None:
    source, _ = planted
    maker = next(boundaries(source)).makers[0]

    def norms(model: onnx.ModelProto) -> np.ndarray:
        node = next(n for n in model.graph.node if n.name == maker.name)
        weight = next(t for t in model.graph.initializer if t.name == node.input[1])
        return np.abs(onnx.numpy_helper.to_array(weight)).sum(axis=(1, 2, 3))

    ratio = norms(unequal(source, seed=3, spread=256)) / norms(source)
    assert 64 <= ratio.max() / ratio.min() <= 256
    assert np.all(np.log2(ratio) == np.rint(np.log2(ratio)))


def test_a_network_without_a_boundary_is_refused() -> None:
    node = onnx.helper.make_node("Relu", ["image"], ["logits"], name="relu")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", 3, 4, 4]) for name in ("image", "logits")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:]))
    with pytest.raises(ValueError, match="no two layers"):
        unequal(model)
