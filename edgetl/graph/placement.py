"""Which tensors are quantised, read off modelopt's output and spoken of in names of the source graph.

modelopt decides where TensorRT fuses Q/DQ; everything else of its output (scales, opset, metadata) is
dropped. A Placement fits the source graph at any opset, so all profiles agree on tensor names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx

from edgetl.errors import GraphError

Use = tuple[str, int]  # node name, position among its inputs
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}


@dataclass(frozen=True)
class Placement:
    """Q/DQ pairs to insert.

    `activations`: tensor -> the uses that read it dequantised. `weights`: use -> channel axis (None: one
    scale). `groups`: tensors that must share a scale, since TensorRT joins them without arithmetic.
    """

    activations: dict[str, tuple[Use, ...]]
    weights: dict[Use, int | None]
    groups: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict for calibration.json."""
        return {
            "activations": {name: [list(use) for use in uses] for name, uses in sorted(self.activations.items())},
            "weights": [[node, index, axis] for (node, index), axis in sorted(self.weights.items())],
            "groups": [list(group) for group in self.groups],
        }


def read_placement(source: onnx.ModelProto, quantised: onnx.ModelProto) -> Placement:
    """The placement in modelopt's `quantised` version of `source`.

    Raises GraphError when modelopt changed more than it was asked to, or quantised nothing.
    """
    made_by = {name: node for node in quantised.graph.node for name in node.output}
    original = {node.name: node for node in source.graph.node}
    weights_there = {tensor.name for tensor in source.graph.initializer}
    activations: dict[str, list[Use]] = {}
    weights: dict[Use, int | None] = {}
    for node in quantised.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            if not _dequantised(made_by, name):
                continue
            tensor = _source_tensor(original, node, index)
            if tensor in weights_there:
                weights[node.name, index] = _axis(original[node.name], source)
            else:
                activations.setdefault(tensor, []).append((node.name, index))
    if not activations or not weights:
        raise GraphError(
            "nothing in the graph can be quantised", f"{len(source.graph.node)} nodes", "use the fp16 graph"
        )
    return Placement(
        {name: tuple(uses) for name, uses in activations.items()}, weights, _concat_groups(source, activations)
    )


def _dequantised(made_by: dict[str, onnx.NodeProto], name: str) -> bool:
    return name in made_by and made_by[name].op_type == "DequantizeLinear"


def _source_tensor(original: dict[str, onnx.NodeProto], node: onnx.NodeProto, index: int) -> str:
    twin = original.get(node.name)
    if twin is None or twin.op_type != node.op_type or index >= len(twin.input):
        raise GraphError("modelopt changed the graph while placing Q/DQ", f"{node.op_type} {node.name}")
    return str(twin.input[index])


def _axis(node: onnx.NodeProto, source: onnx.ModelProto) -> int | None:
    """The output-channel axis of a node's weight."""
    if node.op_type in _CHANNEL_AXIS:
        return _CHANNEL_AXIS[node.op_type]
    rank = next((len(t.dims) for t in source.graph.initializer if t.name == node.input[1]), 0)
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 1 if node.op_type == "MatMul" and rank == 2 else None


def _concat_groups(source: onnx.ModelProto, activations: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Inputs of one Concat, all quantised: with one scale TensorRT writes them in place; joined over shared inputs."""
    quantised = set(activations)
    groups: list[set[str]] = []
    for node in source.graph.node:
        if node.op_type == "Concat" and len(node.input) > 1 and quantised.issuperset(node.input):
            group = set(node.input)
            for other in [g for g in groups if g & group]:
                group |= other
                groups.remove(other)
            groups.append(group)
    return tuple(sorted(tuple(sorted(group)) for group in groups))
