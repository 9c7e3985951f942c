"""Writing explicit Q/DQ pairs with our own scales into a source graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.graph.placement import Placement

LEVELS = 127  # symmetric int8: -127 ... 127; -128 is not used, so that a sign flip never saturates
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


def scale_of(amax: np.ndarray | float) -> np.ndarray:
    """The float32 scale for the range +-amax, rounded *up* to a float16, so that no profile clips more than another.

    The FP16-rest graph stores scales as float16: one below its smallest number would become zero and the
    tensor infinite, so tiny ranges get the smallest scale there is. An all-zero tensor gets 1.
    Raises GraphError for a range that is not finite or whose scale is beyond float16.
    """
    wanted = np.asarray(amax, dtype=np.float64) / LEVELS
    if not np.all(np.isfinite(wanted)) or np.any(wanted > np.finfo(np.float16).max):
        raise GraphError(
            "a range that has no scale", float(np.max(wanted)) * LEVELS, "check the weights for NaN or inf"
        )
    half = wanted.astype(np.float16)
    short = half.astype(np.float64) < wanted
    half = np.where(short, np.nextafter(half, np.float16(np.inf)), half)
    half = np.maximum(half.astype(np.float64), _SMALLEST)
    return np.where(wanted == 0, 1.0, half).astype(np.float32)


@dataclass(frozen=True)
class Pair:
    """One QuantizeLinear / DequantizeLinear pair: the tensor it reads and the one it makes."""

    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]
    output: str


def pair_on(tensor: str, scale: np.ndarray, axis: int | None) -> Pair:
    """A symmetric int8 pair on `tensor`; zero points are explicit, since TensorRT 8.5 wants them."""
    names = [f"{tensor}_{end}" for end in ("scale", "zero_point", "quantised", "dequantised")]
    scale_name, zero_name, quantised, output = names
    values = np.asarray(scale, dtype=np.float32).reshape(() if axis is None else (-1,))
    ends = (("QuantizeLinear", tensor, quantised), ("DequantizeLinear", quantised, output))
    nodes = tuple(
        helper.make_node(kind, [read, scale_name, zero_name], [made], name=f"{tensor}_{kind}")
        for kind, read, made in ends
    )
    if axis is not None:
        for node in nodes:
            node.attribute.append(helper.make_attribute("axis", axis))
    constants = (
        numpy_helper.from_array(values, scale_name),
        numpy_helper.from_array(np.zeros(values.shape, dtype=np.int8), zero_name),
    )
    return Pair(nodes, constants, output)


def inserted(source: onnx.ModelProto, placement: Placement, amax: Mapping[str, float]) -> onnx.ModelProto:
    """`source` (fp32, opset >= 13) with the pairs of `placement`.

    `amax`: range of each quantised activation. Weight ranges are read off the weights, a channel each.
    """
    out = surgery.copy_of(source)
    weights = {t.name: t for t in out.graph.initializer}
    pairs: dict[str, Pair] = {}
    reads: dict[tuple[str, int], str] = {}
    before: dict[str, list[Pair]] = {}
    for tensor, uses in placement.activations.items():
        pairs[tensor] = pair_on(tensor, scale_of(amax[tensor]), None)
        reads.update(dict.fromkeys(uses, pairs[tensor].output))
    by_name = {node.name: node for node in out.graph.node}
    for (node_name, index), axis in placement.weights.items():
        tensor = by_name[node_name].input[index]
        if tensor not in pairs:
            values = numpy_helper.to_array(weights[tensor])
            pairs[tensor] = pair_on(tensor, scale_of(weight_range(values, axis, tensor)), axis)
            before.setdefault(node_name, []).append(pairs[tensor])
        reads[node_name, index] = pairs[tensor].output
    _rewrite(out.graph, pairs, reads, before)
    return out


def weight_range(values: np.ndarray, axis: int | None, name: str) -> np.ndarray:
    """Largest |w| at each index of `axis` (None: of the whole weight `name`). Raises GraphError for NaN or inf."""
    if not np.all(np.isfinite(values)):
        raise GraphError("a weight holds NaN or inf", name, "train the model again; this one cannot be quantised")
    others = tuple(i for i in range(values.ndim) if i != axis)
    return np.asarray(np.abs(values).max(axis=None if axis is None else others))


def _rewrite(
    graph: onnx.GraphProto,
    pairs: Mapping[str, Pair],
    reads: Mapping[tuple[str, int], str],
    before: Mapping[str, list[Pair]],
) -> None:
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        nodes.extend(pairs[value.name].nodes if value.name in pairs else ())
    for node in graph.node:
        for pair in before.get(node.name, ()):
            nodes.extend(pair.nodes)
        node.input[:] = [reads.get((node.name, i), name) for i, name in enumerate(node.input)]
        nodes.append(node)
        for name in node.output:
            nodes.extend(pairs[name].nodes if name in pairs else ())
    del graph.node[:]
    graph.node.extend(nodes)
    for pair in pairs.values():
        graph.initializer.extend(pair.constants)
