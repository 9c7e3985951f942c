"""What TensorRT fuses into one kernel, so that the search keeps or drops the Q/DQ pairs of such a group together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from edgetl.graph.placement import Placement

# One-input nodes (and the Mul of a gate) that TensorRT runs in the epilogue of the product before them.
_EPILOGUE = frozenset(
    ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Mul", "BatchNormalization")
)


@dataclass(frozen=True)
class Group:
    """Quantised nodes that become one kernel; `name` is the one that multiplies (or the only one)."""

    name: str
    nodes: tuple[str, ...]


def groups(source: onnx.ModelProto, placement: Placement) -> tuple[Group, ...]:
    """The groups of `placement`, in graph order: product + bias + activation, product + residual sum + activation.

    A quantised node that joins no product (a pooling, a product of two activations) is a group of its own.
    """
    quantised = {node for uses in placement.activations.values() for node, _ in uses}
    quantised |= {node for node, _ in placement.weights}
    products = {node for node, _ in placement.weights}
    readers = _readers(source)
    sums: dict[str, str] = {}  # residual sum -> the product it is fused with
    for node in source.graph.node:
        if node.name in products:
            found = _sum_after(node, readers)
            if found is not None and found in quantised:
                sums[found] = node.name  # of two products the later one: TensorRT waits for both operands
    out = []
    for node in source.graph.node:
        if node.name in quantised and node.name not in sums:
            out.append(Group(node.name, (node.name, *(s for s, p in sums.items() if p == node.name))))
    return tuple(out)


def _readers(source: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    out: dict[str, list[onnx.NodeProto]] = {}
    for node in source.graph.node:
        for name in dict.fromkeys(node.input):
            out.setdefault(name, []).append(node)
    return out


def _sum_after(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> str | None:
    """The Add that `node`'s output reaches through nothing but an epilogue, each tensor read once."""
    while True:
        after = [reader for name in node.output for reader in readers.get(name, ())]
        if len(after) != 1:
            return None
        node = after[0]
        if node.op_type == "Add":
            return str(node.name)
        if node.op_type not in _EPILOGUE:
            return None


def without(placement: Placement, nodes: Collection[str]) -> Placement:
    """`placement` less every pair on the way into `nodes`, which then run in the rest's precision."""
    dropped = frozenset(nodes)
    activations = {
        tensor: kept
        for tensor, uses in placement.activations.items()
        if (kept := tuple(use for use in uses if use[0] not in dropped))
    }
    weights = {use: axis for use, axis in placement.weights.items() if use[0] not in dropped}
    joined = (tuple(name for name in group if name in activations) for group in placement.groups)
    return Placement(activations, weights, tuple(group for group in joined if len(group) > 1))
