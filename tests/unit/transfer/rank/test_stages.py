"""What is read at several depths: which modules end a stage, how maps are pooled, and that nothing stays behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgetl.transfer import backbones
from edgetl.transfer.feature_store import FeatureStore
from edgetl.transfer.pretrained import Wish, open_pretrained
from edgetl.transfer.rank.stages import Staged, features_of, pooled
from edgetl.transfer.recipe import STAGES


def test_maps_are_pooled_over_their_places_wherever_the_channels_are() -> None:
    rows = torch.randn(4, 6, 5, 3)
    wanted = torch.cat([rows.mean((2, 3)), rows.std((2, 3), correction=0)], 1)
    found = [pooled(rows, 6), pooled(rows.permute(0, 2, 3, 1), 6), pooled(rows.flatten(2).permute(0, 2, 1), 6)]
    for one in found:
        assert one is not None and torch.allclose(one, wanted, atol=1e-6)


def test_what_is_no_map_has_no_pool() -> None:
    for shape in ((4, 6), (4, 7, 5, 3), (4, 6, 1, 1)):  # features; other channels; a gate of one place
        assert pooled(torch.zeros(shape), 6) is None


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("mobilenet_v2", "features.14"),
        ("resnet18", "layer4.0.bn1"),
        ("squeezenet1_1", "features.11.squeeze"),
    ],
)
def test_a_stage_ends_with_the_largest_module_and_is_the_map_that_module_gives(name: str, last: str) -> None:
    spec = backbones.row(name)
    network = backbones.build(name, 2, spec.size, init=False).eval()
    staged = Staged(network, network, spec, spec.size)
    seen: list[torch.Tensor] = []
    network.get_submodule(last).register_forward_hook(lambda m, i, output: seen.append(output.clone()))
    images = torch.randn(2, 3, spec.size, spec.size)
    with backbones.headless(network, spec), torch.inference_mode():
        rows, head = staged(images), network(images)
    parts = rows.split(staged.widths, 1)
    assert len(parts) == STAGES and torch.equal(parts[0], head)
    wanted = pooled(seen[0], staged.widths[-1] // 2)
    assert wanted is not None and torch.equal(parts[-1], wanted)
    staged.close()
    hooks = [m for m in network.modules() if m._forward_hooks and m is not network.get_submodule(last)]
    assert hooks == [] and isinstance(backbones.head_of(network, spec), (nn.Linear, nn.Conv2d))


def test_a_table_that_is_no_image_of_the_batch_is_no_map() -> None:
    """Swin v2 computes its position bias in a module of its own, once for all images."""
    spec = backbones.row("swin_v2_t")
    staged = Staged(network := backbones.build("swin_v2_t", 2, spec.size, init=False), network, spec, spec.size)
    with backbones.headless(network, spec), torch.inference_mode():
        assert staged(torch.zeros(1, 3, spec.size, spec.size)).shape == (1, sum(staged.widths))


def test_the_store_gives_all_depths_back(tmp_path: Path) -> None:
    from edgetl.embedded.digits import write_digits
    from edgetl.images import read_data
    from edgetl.transfer.decoded import Decoded

    data = read_data(str(write_digits(tmp_path / "digits")))
    network, store = open_pretrained(Wish(device="cpu")), FeatureStore(tmp_path / "cache")
    inputs = Decoded(data.root, network.preprocess).inputs
    samples = data.split("train")[:12]
    features, stages = features_of(network, samples, inputs, store)
    again, known = features_of(network, samples, inputs, store)
    assert features.shape[0] == 12 and len(stages) == STAGES - 1
    for one, other in zip((features, *stages), (again, *known), strict=True):
        assert np.array_equal(one, other)
    assert np.allclose(features, network.features(samples, inputs, store), atol=1e-6)


def test_a_large_map_is_looked_at_by_a_grid_of_places() -> None:
    """The places that are taken are spread evenly, so smooth maps keep their mean and deviation."""
    ramp = torch.linspace(0, 1, 112)
    rows = torch.stack([ramp[:, None].expand(112, 112), (ramp[:, None] + ramp) ** 2])[None]
    wanted = torch.cat([rows.mean((2, 3)), rows.std((2, 3), correction=0)], 1)
    found = pooled(rows, 2)
    assert found is not None and torch.allclose(found, wanted, atol=0.05)
    tokens = pooled(rows.flatten(2).permute(0, 2, 1), 2)
    assert tokens is not None and torch.allclose(tokens, wanted, atol=0.05)
    offset = pooled(rows + 1000, 2)  # a deviation that is small beside the mean is not lost in rounding
    assert offset is not None and torch.allclose(offset[:, 2:], found[:, 2:], atol=1e-3)
