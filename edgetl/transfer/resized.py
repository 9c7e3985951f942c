"""Widths and depths that torchvision's own builder functions fix: EfficientNet's multipliers, the ViT's dimensions.

`--backbone-args width_mult=0.5` reaches MobileNets by itself. An EfficientNet builder has its multipliers
written in and a ViT builder its dimensions; here the same classes are called with what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models import efficientnet

# Tan & Le 2019, as in torchvision: (width, depth, dropout).
_EFFICIENTNETS = {
    "efficientnet_b0": (1.0, 1.0, 0.2),
    "efficientnet_b1": (1.0, 1.1, 0.2),
    "efficientnet_b2": (1.1, 1.2, 0.3),
    "efficientnet_b3": (1.2, 1.4, 0.3),
    "efficientnet_b4": (1.4, 1.8, 0.4),
    "efficientnet_b5": (1.6, 2.2, 0.4),
    "efficientnet_b6": (1.8, 2.6, 0.5),
    "efficientnet_b7": (2.0, 3.1, 0.5),
}
# Dosovitskiy et al. 2021, table 1: (layers, heads, hidden, MLP); the name's number is the patch size.
_TRANSFORMERS = {"b": (12, 12, 768, 3072), "l": (24, 16, 1024, 4096), "h": (32, 16, 1280, 5120)}

Builder = Callable[..., nn.Module]


def builder_of(name: str) -> Builder:
    """torchvision's builder of `name`; for EfficientNet B0 to B7 and the ViTs one that also takes other widths."""
    plain: Builder = models.get_model_builder(name)
    if name in _EFFICIENTNETS:
        return _either(plain, _efficientnet(name), ("width_mult", "depth_mult"))
    if name.startswith("vit_"):
        return _either(plain, _vit(name), ("patch_size", "num_layers", "num_heads", "hidden_dim", "mlp_dim"))
    return plain


def _either(plain: Builder, other: Builder, ours: tuple[str, ...]) -> Builder:
    """`plain` unless one of the arguments in `ours` is given."""

    def build(**kwargs: Any) -> nn.Module:
        return other(**kwargs) if set(ours) & set(kwargs) else plain(**kwargs)

    return build


def _efficientnet(name: str) -> Builder:
    width, depth, drop = _EFFICIENTNETS[name]

    def build(width_mult: float = width, depth_mult: float = depth, dropout: float = drop, **kwargs: Any) -> nn.Module:
        blocks, last = efficientnet._efficientnet_conf(name, width_mult=width_mult, depth_mult=depth_mult)
        model: nn.Module = efficientnet.EfficientNet(blocks, dropout, last_channel=last, **_norm(name), **kwargs)
        return model

    return build


def _norm(name: str) -> dict[str, Any]:
    """B5 to B7 have BatchNorm with other constants, as their weights were trained with."""
    if name < "efficientnet_b5":
        return {}
    return {"norm_layer": lambda channels: nn.BatchNorm2d(channels, eps=0.001, momentum=0.01)}


def _vit(name: str) -> Builder:
    _, kind, patch = name.split("_")
    layers, heads, hidden, mlp = _TRANSFORMERS[kind]
    fixed = {"patch_size": int(patch), "num_layers": layers, "num_heads": heads, "hidden_dim": hidden, "mlp_dim": mlp}

    def build(image_size: int = 224, **kwargs: Any) -> nn.Module:
        model: nn.Module = models.VisionTransformer(image_size=image_size, **{**fixed, **kwargs})
        return model

    return build
