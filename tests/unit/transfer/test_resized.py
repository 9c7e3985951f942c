"""Networks of other widths and depths, through --backbone-args."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from edgetl.errors import BackboneError
from edgetl.transfer import backbones
from edgetl.transfer.resized import _EFFICIENTNETS, builder_of


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def constants(model: nn.Module) -> list[tuple[float, float | None]]:
    return [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", sorted(_EFFICIENTNETS))
def test_the_multipliers_of_the_table_are_torchvisions(name: str) -> None:
    width, depth, dropout = _EFFICIENTNETS[name]
    with torch.device("meta"):
        plain = models.get_model_builder(name)()
        ours = builder_of(name)(width_mult=width, depth_mult=depth)
    assert shapes(ours) == shapes(plain)
    assert constants(ours) == constants(plain)
    assert ours.get_submodule("classifier.0").p == plain.classifier[0].p == dropout


@pytest.mark.parametrize("name", [n for n in backbones.names() if n.startswith("vit_")])
def test_the_dimensions_of_the_table_are_torchvisions(name: str) -> None:
    layers = {"vit_h_14": 32, "vit_l_16": 24, "vit_l_32": 24}.get(name, 12)
    with torch.device("meta"):
        assert shapes(builder_of(name)(num_layers=layers)) == shapes(models.get_model_builder(name)())


@pytest.mark.parametrize(
    ("name", "arguments", "most"),
    [
        ("efficientnet_b0", {"width_mult": 0.5, "depth_mult": 0.5}, 800_000),
        ("mobilenet_v3_small", {"width_mult": 0.5}, 800_000),
        ("vit_b_16", {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "patch_size": 8}, 50_000),
    ],
)
def test_a_small_network_is_built_and_runs(name: str, arguments: dict[str, float], most: int) -> None:
    model = backbones.build(name, 5, 32, arguments).eval()
    assert sum(p.numel() for p in model.parameters()) < most
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)


def test_dimensions_that_do_not_fit_are_an_error_of_the_arguments() -> None:
    with pytest.raises(BackboneError, match="cannot be built with these arguments"):
        backbones.build("vit_b_16", 5, 32, {"num_heads": 5, "hidden_dim": 32})
