"""`--keep`: penalties that hold fine-tuning to what the pretrained backbone knows, from its weights or its features.

Each is an extra loss of the training loop, with the constants of its paper. Weight decay is off for l2sp and delta.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgetl.transfer.backbones import BackboneRow, auxiliary_heads, head_of, set_head
from edgetl.transfer.network import Deployed
from edgetl.transfer.probe import Probe
from edgetl.transfer.recipe import stages_of
from edgetl.transfer.step import ExtraLoss, Step

ALPHA = 0.01  # of what is kept: weights (l2sp) or feature maps (delta)
BETA = 0.01  # of the head's weights
ETA, SMALLEST = 1e-3, 1  # bss: weight, and how many singular values
ATTENTION_IMAGES = 64  # DELTA's channel weights are estimated on that many training images


def penalties(
    keep: str, network: Deployed, spec: BackboneRow, fitted: Probe, images: torch.Tensor, targets: torch.Tensor
) -> list[ExtraLoss]:
    """The penalty of `--keep` for `network` as it is before training: none, or one.

    `images` (B, 3, S, S) and their `targets` are training images for DELTA's attention.
    """
    if keep == "l2sp":
        return [L2SP(network.backbone, spec)]
    if keep == "delta":
        return [Delta(network, spec, fitted, images, targets)]
    return [Bss(network.backbone, spec)] if keep == "bss" else []


class L2SP(ExtraLoss):
    """alpha/2 ||w - w0||^2 over the body + beta/2 ||w||^2 over the heads (Li, Grandvalet & Davoine 2018, eq. 2)."""

    def __init__(self, backbone: nn.Module, spec: BackboneRow) -> None:
        super().__init__()
        heads = _head_parameters(backbone, spec)
        # In tuples: neither trained nor saved along.
        self._heads = tuple(heads.values())
        self._body = tuple((p, p.detach().clone()) for p in backbone.parameters() if id(p) not in heads)

    def forward(self, step: Step) -> torch.Tensor:
        """The penalty; it does not depend on the images."""
        moved = sum(((p - start).square().sum() for p, start in self._body), start=step.outputs[0].new_zeros(()))
        return 0.5 * ALPHA * moved + 0.5 * BETA * _square(self._heads)


class Delta(ExtraLoss):
    """alpha/2 mean_images sum_layers sum_j W_j ||F_j(x) - F_j^0(x)||^2 + beta/2 ||w||^2 over the heads.

    DELTA (Li et al. 2019, eq. 4 to 6). F_j is channel j of the map at the end of a stage, F^0 that of a frozen copy,
    the norm a mean over positions; W_j is C softmax_j(what the loss rises by without channel j), mean 1 over a
    layer's C channels. That rise is taken to first order, -<dL/dF_j, F_j> (Molchanov et al. 2017, eq. 7): one pass
    backwards, where the paper makes one forwards for each of thousands of channels.
    """

    def __init__(
        self, network: Deployed, spec: BackboneRow, fitted: Probe, images: torch.Tensor, targets: torch.Tensor
    ) -> None:
        super().__init__()
        frozen = copy.deepcopy(network).eval().requires_grad_(False)
        set_head(frozen.backbone, spec, torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias))
        names = stage_ends(frozen, spec, images)
        self._frozen = (frozen,)
        self._names = names
        self._heads = tuple(_head_parameters(network.backbone, spec).values())
        self._attention = tuple(_attention(frozen, names, images, targets))
        self._caught: dict[str, torch.Tensor] = {}
        self._original: dict[str, torch.Tensor] = {}
        _catch(frozen, names, self._original)
        self._hooks = _catch(network, names, self._caught)

    def forward(self, step: Step) -> torch.Tensor:
        """The penalty of the labelled images."""
        count = len(step.samples)
        with torch.no_grad():
            self._frozen[0](step.images)
        total = 0.5 * BETA * _square(self._heads)
        for name, weights in zip(self._names, self._attention, strict=True):
            layer = self._frozen[0].get_submodule(name)
            ours, theirs = (channels(layer, maps[name][:count]) for maps in (self._caught, self._original))
            total = total + 0.5 * ALPHA * attended(ours, theirs, weights)
        return total

    def close(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()


class Bss(ExtraLoss):
    """eta times the sum of the k smallest squared singular values of a batch's features (Chen et al. 2019, eq. 5).

    Small singular values stand for directions that do not transfer; they are pushed down, not the large ones.
    """

    of_whole_batch = True

    def __init__(self, backbone: nn.Module, spec: BackboneRow) -> None:
        super().__init__()
        self._caught: list[torch.Tensor] = []

        def catch(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                self._caught[:] = inputs[:1]

        self._hook = head_of(backbone, spec).register_forward_pre_hook(catch)

    def forward(self, step: Step) -> torch.Tensor:
        """The penalty of the labelled images' features."""
        found = step.whole(self._caught[0][: len(step.targets)].float())
        return ETA * smallest_singular(found.mean((2, 3)) if found.ndim == 4 else found)

    def close(self) -> None:
        """Take the hook off the network."""
        self._hook.remove()


def smallest_singular(features: torch.Tensor, count: int = SMALLEST) -> torch.Tensor:
    """Sum of the `count` smallest squared singular values of features (B, D)."""
    values: torch.Tensor = torch.linalg.svdvals(features)
    return values[-count:].square().sum()


def attended(ours: torch.Tensor, theirs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_j W_j of the squared difference of channel j, a mean over images and positions; maps (B, C, P), W (C,)."""
    return (weights * (ours - theirs).square().mean((0, 2))).sum()


def channels(layer: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """A layer's output as float32 (B, C, positions): of a convolution (B, C, H, W), of a linear layer (B, ..., C)."""
    if isinstance(layer, nn.Conv2d):
        return maps.float().flatten(2)
    return maps.float().reshape(len(maps), -1, maps.shape[-1]).transpose(1, 2)


def stage_ends(network: Deployed, spec: BackboneRow, images: torch.Tensor) -> list[str]:
    """Names of the last convolution (or linear layer of tokens) of each stage of the body that a forward pass calls."""
    called: list[nn.Module] = []
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(lambda module, *_: called.append(module)) for m in layers]
    with torch.no_grad():
        network(images[:1])
    for hook in hooks:
        hook.remove()
    names = {id(module): name for name, module in network.named_modules()}
    ran = {id(module) for module in called}
    ends = [[m for m in stage if id(m) in ran] for stage in stages_of(network.backbone, spec)]
    return [names[id(found[-1])] for found in ends if found]


def _attention(
    frozen: Deployed, names: Sequence[str], images: torch.Tensor, targets: torch.Tensor
) -> Iterator[torch.Tensor]:
    """The channel weights (C,) of each layer, from the frozen network with the probe as its head."""
    caught: dict[str, torch.Tensor] = {}
    hooks = _catch(frozen, names, caught, leaf=True)
    functional.cross_entropy(frozen(images), targets).backward()  # type: ignore[no-untyped-call]
    for hook in hooks:
        hook.remove()
    for name in names:
        gradient = caught[name].grad
        assert gradient is not None
        layer = frozen.get_submodule(name)
        rise = -(channels(layer, gradient) * channels(layer, caught[name].detach())).sum((0, 2))
        yield len(rise) * rise.softmax(0)


def _catch(
    network: nn.Module, names: Sequence[str], into: dict[str, torch.Tensor], leaf: bool = False
) -> list[torch.utils.hooks.RemovableHandle]:
    """Keep the outputs of the named layers in `into` at every pass outside inference mode.

    With `leaf` they keep their gradients, though no parameter of the network asks for one.
    """

    def keeper(name: str) -> Callable[[nn.Module, Any, torch.Tensor], torch.Tensor | None]:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor | None:
            if torch.is_inference_mode_enabled():
                return None
            if leaf:
                output = output if output.requires_grad else output.detach().requires_grad_(True)
                output.retain_grad()
            into[name] = output
            return output.clone()  # an in-place ReLU that follows must not change what is kept

        return hook

    return [network.get_submodule(name).register_forward_hook(keeper(name)) for name in names]


def _head_parameters(backbone: nn.Module, spec: BackboneRow) -> dict[int, nn.Parameter]:
    heads = (head_of(backbone, spec), *auxiliary_heads(backbone, spec))
    return {id(p): p for head in heads for p in head.parameters()}


def _square(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    return torch.stack([p.square().sum() for p in parameters]).sum()
