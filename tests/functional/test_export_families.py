"""Each backbone family, small and with random weights, through export, trt8 and trt10 INT8, and NVIDIA's builder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgetl.errors import BackboneError
from edgetl.graph import nvidia, qdq, surgery
from edgetl.graph.calibrate import Calibration
from edgetl.graph.export import check_network, source_of_network
from edgetl.graph.placement import read_placement
from edgetl.graph.ranges import ranges
from edgetl.graph.reference import based_on
from edgetl.graph.worker import worker
from edgetl.images import to_batch
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Precision, Preprocess, Profile
from edgetl.transfer import backbones
from edgetl.transfer.network import Deployed

# name, pixels, least share of MACs that NVIDIA's builder runs in INT8. One of each family, its smallest useful size.
FAMILIES = [
    ("smallnet", 32, 0.9),
    ("resnet18", 64, 0.9),
    ("resnext50_32x4d", 64, 0.9),
    ("mobilenet_v2", 64, 0.9),
    ("mobilenet_v3_small", 64, 0.5),
    ("efficientnet_b0", 64, 0.5),
    ("efficientnet_v2_s", 64, 0.5),
    ("convnext_tiny", 64, 0.3),
    ("regnet_y_400mf", 64, 0.5),
    ("shufflenet_v2_x0_5", 64, 0.5),
    ("squeezenet1_1", 64, 0.9),
    ("densenet121", 64, 0.5),
    ("mnasnet0_5", 64, 0.9),
    ("vgg11", 64, 0.5),
    ("alexnet", 64, 0.4),  # most of its MACs are in Gemms, which modelopt leaves in float (one row at batch 1)
    ("inception_v3", 96, 0.5),
    ("googlenet", 64, 0.5),
    ("vit_b_32", 64, 0.0),
    ("swin_t", 64, 0.0),
    ("maxvit_t", 224, 0.0),
]


def network_of(name: str, size: int) -> Deployed:
    """Random weights, and BatchNorm statistics that fit noise images, so that values stay in range."""
    torch.manual_seed(0)
    body = backbones.build(name, 4, size)
    network = Deployed(body, Preprocess(size, size))
    for layer in body.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        network.train()
        network(torch.from_numpy(to_batch(noise(size, 8), "float32")))
    return network.eval()


def noise(size: int, n: int) -> np.ndarray:
    """Smooth random images, uint8 (n, size, size, 3)."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(size // 8 + 1, axis=1).repeat(size // 8 + 1, axis=2)[:, :size, :size])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "share"), FAMILIES, ids=[name for name, *_ in FAMILIES])
def test_a_family_goes_through_every_profile_it_claims(name: str, size: int, share: float, tmp_path: Path) -> None:
    network, images = network_of(name, size), noise(size, 4)
    row, labels, spec = backbones.row(name), list("abcd"), Preprocess(size, size)
    source = source_of_network(network, row, size, tmp_path)
    batch = to_batch(images, "float32")
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    plain = OrtBackend(surgery.save(source, tmp_path / "source.onnx")).run(batch)
    spread = float(expected.max() - expected.min())
    assert np.abs(plain - expected).max() < 1e-3 * spread
    single = OrtBackend(tmp_path / "source.onnx").run(batch[:1])
    assert np.abs(single - expected[:1]).max() < 1e-3 * spread
    with worker(tmp_path) as child:
        placement = read_placement(source, child.place(source, batch[:2]))
        run = Calibration(source, list(placement.activations))
        run.feed(images)
        amax = ranges(run.statistics.histograms, "max", placement.groups)
        for profile in (Profile.TRT8, Profile.TRT10):
            if profile not in row.profiles_at(size):
                with pytest.raises(BackboneError, match=str(profile)):
                    check_network(row, size, profile)
                continue
            graph = qdq.inserted(based_on(source, profile), placement, amax)
            graph = graph if profile is Profile.TRT8 else child.fp16(graph)
            model = surgery.finished(graph, profile, Precision.INT8, labels, spec)
            path = surgery.save(model, tmp_path / f"{profile}.onnx")
            assert surgery.opset_of(model) <= (17 if profile is Profile.TRT8 else 20)
            assert np.isfinite(OrtBackend(path).run(batch)).all()
            built = nvidia.built(model, path)
            if built is not None:
                assert built.fallbacks == () and built.int8_macs_share >= share
