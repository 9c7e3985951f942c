"""A source graph as a PyTorch module: run in fp32, or with a fake quantiser at each place of a Placement.

The graph itself is trained, not the network that it was exported from: BatchNorm is already folded, Q/DQ
stand exactly where they ship (attention and residual additions too), every name stays, and a graph that
was adopted or equalised is trained like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.graph.placement import Placement, Use
from edgetl.graph.qat.ops import Attributes, Operator, attributes, operator
from edgetl.graph.qdq import LEVELS, scale_of

_LOWEST, _HIGHEST = -128, 127  # what QuantizeLinear saturates at
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class _Step:
    """One node, ready to run; `last`: tensors that nobody reads after it."""

    run: Operator
    attributes: Attributes
    reads: tuple[Use, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...]


class GraphNetwork(nn.Module):
    """float32 (B, 3, S, S), RGB 0-255 -> logits (B, C), as the source graph computes them.

    A weight is `start + unit * change`, where only `change` is trained and starts at zero. The unit is the
    range of its output channel (for a bias that times the range of the layer's input), so a learning rate
    means the same in every channel: training does not depend on how ranges are spread over channels. An
    activation's scale is `start * exp(change)`, one for the tensors that share a scale.
    """

    def __init__(self, source: onnx.ModelProto, placement: Placement, amax: Mapping[str, float]) -> None:
        super().__init__()
        self._output = source.graph.output[0].name
        self._amax = {tensor: float(amax[tensor]) for tensor in placement.activations}
        self._shared = _shared(placement)
        self.widths = nn.Parameter(torch.zeros(1 + max(self._shared.values(), default=-1)))
        self._quantised = {use: tensor for tensor, uses in placement.activations.items() for use in uses}
        self._weights = dict(placement.weights)
        self._values = {t.name: _tensor(t) for t in source.graph.initializer}
        self._units = units(source, placement, amax)
        self._names = sorted(self._units)
        self.changes = nn.ParameterList([nn.Parameter(torch.zeros_like(self._values[n])) for n in self._names])
        self._steps = list(_steps(source))

    def forward(self, image: torch.Tensor, quantised: bool = True) -> torch.Tensor:
        """Logits of a batch of pixels; `quantised`: with the rounding and clipping of INT8."""
        values: dict[str, torch.Tensor | None] = {"": None, surgery.INPUT: image}
        trained = dict(self.trained())
        rounded: dict[str, torch.Tensor] = {}
        for step in self._steps:
            inputs = []
            for use, name in zip(step.reads, step.inputs, strict=True):
                value = trained.get(name, self._values.get(name)) if name not in values else values[name]
                inputs.append(self._rounded(use, name, value, rounded) if quantised else value)
            made = step.run(step.attributes, *inputs)
            values.update(zip(step.outputs, (made,) if isinstance(made, torch.Tensor) else made, strict=False))
            for name in step.last:
                values.pop(name, None)
                rounded.pop(name, None)
        logits = values[self._output]
        assert logits is not None  # onnx.checker saw to it that the output is made
        return logits

    def _rounded(
        self, use: Use, name: str, value: torch.Tensor | None, rounded: dict[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """What the node reads: `value`, or its dequantised form where a Q/DQ pair stands before this use."""
        if value is None or (use not in self._quantised and use not in self._weights):
            return value
        if name not in rounded:
            if use in self._quantised:
                rounded[name] = self._activation(name, value)
            else:
                rounded[name] = fake_quantised_weight(value, self._weights[use])
        return rounded[name]

    def _activation(self, name: str, value: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.widths.requires_grad and self._amax[name] > 0:
            scale = self._amax[name] / LEVELS * self.widths[self._shared[name]].exp()
            found: torch.Tensor = StepSize.apply(value, scale)
            return found
        shipped = float(scale_of(self._range(name)))
        return torch.fake_quantize_per_tensor_affine(value, shipped, 0, _LOWEST, _HIGHEST)

    def _range(self, name: str) -> float:
        return self._amax[name] * math.exp(float(self.widths[self._shared[name]].detach()))

    def ranges(self) -> dict[str, float]:
        """tensor -> amax, as trained."""
        return {name: self._range(name) for name in self._amax}

    def trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, value) of each initialiser that is trained."""
        for name, change in zip(self._names, self.changes, strict=True):
            yield name, self._values[name] + self._units[name] * change

    def written(self, source: onnx.ModelProto) -> onnx.ModelProto:
        """`source` with the trained values; nothing else changes."""
        out = surgery.copy_of(source)
        new = {name: value.detach().numpy() for name, value in self.trained()}
        for tensor in out.graph.initializer:
            if tensor.name in new:
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new[tensor.name]), tensor.name))
        return out


class StepSize(torch.autograd.Function):
    """A fake quantiser whose scale learns too: Esser et al. 2020 (LSQ), equations 1 to 5.

    Where a value is not clipped the scale's gradient is its rounding error in steps, where it is the level that it
    is clipped at; divided by sqrt(values x levels), so that a step means as much in every tensor.
    """

    @staticmethod
    def forward(context: Any, value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """`value` of any shape, `scale` a scalar > 0."""
        context.save_for_backward(value, scale)
        return torch.fake_quantize_per_tensor_affine(value, float(scale), 0, _LOWEST, _HIGHEST)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the value, straight through where it is not clipped; of the scale."""
        value, scale = context.saved_tensors
        steps = value / scale
        levels = steps.round().clamp_(_LOWEST, _HIGHEST)
        inside = (steps > _LOWEST - 0.5) & (steps < _HIGHEST + 0.5)
        of_scale = (gradient * torch.where(inside, levels - steps, levels)).sum()
        return gradient * inside, of_scale / math.sqrt(value.numel() // len(value) * LEVELS)


def _shared(placement: Placement) -> dict[str, int]:
    """tensor -> which of the scales that learn is its own; the tensors of a group have one."""
    found: dict[str, int] = {}
    for index, tensors in enumerate([*placement.groups, *((tensor,) for tensor in placement.activations)]):
        for tensor in tensors:
            found.setdefault(tensor, index)
    return found


def fake_quantised_weight(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    """`weight` rounded to int8 by its own range, a channel of `axis` each; its range is taken anew at each step."""
    if axis is None:
        scale = float(scale_of(float(weight.detach().abs().max())))
        return torch.fake_quantize_per_tensor_affine(weight, scale, 0, _LOWEST, _HIGHEST)
    scales = torch.from_numpy(scale_of(_range(weight.detach(), axis).numpy()))
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis, _LOWEST, _HIGHEST)


def _range(weight: torch.Tensor, axis: int) -> torch.Tensor:
    return weight.abs().amax([i for i in range(weight.ndim) if i != axis])


def _tensor(initialiser: TensorProto) -> torch.Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(initialiser)))


def units(source: onnx.ModelProto, placement: Placement, amax: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Initialisers to train (weights and biases of convolutions and matrix products), and the unit of each."""
    values = {t.name: t for t in source.graph.initializer if t.data_type == TensorProto.FLOAT}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in source.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, torch.Tensor] = {}
    for node in source.graph.node:
        if node.op_type not in _WEIGHTED or node.input[1] not in values:
            continue
        weight = _tensor(values[node.input[1]])
        axis = placement.weights.get((node.name, 1))
        spread = weight.abs().max().reshape(1) if axis is None else _range(weight, axis)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        found.setdefault(node.input[1], spread.reshape(shape))
        bias = _bias(node, values, readers)
        if bias:
            reach = amax.get(node.input[0])
            own = _tensor(values[bias])
            unit = own.abs().max().reshape(1) if reach is None else spread * reach
            if unit.numel() in (1, own.numel()):
                found.setdefault(bias, unit.reshape([-1 if n > 1 else 1 for n in own.shape] or [1]))
    return found


def _bias(node: onnx.NodeProto, values: Mapping[str, Any], readers: Mapping[str, list[onnx.NodeProto]]) -> str | None:
    """The initialiser that is added to a node's product: its third input, or that of an Add behind a MatMul."""
    if len(node.input) > 2 and node.input[2] in values:
        return str(node.input[2])
    after = readers.get(node.output[0], [])
    if node.op_type == "MatMul" and len(after) == 1 and after[0].op_type == "Add":
        return next((str(name) for name in after[0].input if name in values), None)
    return None


def _steps(source: onnx.ModelProto) -> Iterator[_Step]:
    if surgery.opset_of(source) < 13:
        raise GraphError("graphs below opset 13 cannot be trained", f"opset {surgery.opset_of(source)}")
    last: dict[str, int] = {}
    for index, node in enumerate(source.graph.node):
        last.update(dict.fromkeys([*node.input, *node.output], index))
    last.pop(source.graph.output[0].name, None)
    last.pop("", None)
    for index, node in enumerate(source.graph.node):
        yield _Step(
            operator(node),
            attributes(node),
            tuple((node.name, i) for i in range(len(node.input))),
            tuple(node.input),
            tuple(node.output),
            tuple(name for name in {*node.input, *node.output} if last.get(name) == index),
        )
