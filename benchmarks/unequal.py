"""Networks that are hard for INT8 on purpose: the same function, but channel ranges far apart.

Between two layers with nothing but ReLU, addition and pooling in between, channel c may be multiplied by
any s_c > 0 before and divided by it after (Nagel et al. 2019, section 3.1, the other way round). One scale
per tensor then has to cover the widest channel, and the narrow ones drown in its rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgetl.graph import surgery

_PASSES = frozenset(["Add", "Identity", "MaxPool", "Relu"])  # f(s x) = s f(x) for s > 0, channel by channel


@dataclass
class Boundary:
    """`tensors` that share their channels' scales, the Convs that make them and the Convs that read them."""

    tensors: set[str] = field(default_factory=set)
    makers: list[onnx.NodeProto] = field(default_factory=list)
    readers: list[onnx.NodeProto] = field(default_factory=list)


def unequal(source: onnx.ModelProto, seed: int = 0, spread: int = 256) -> onnx.ModelProto:
    """`source` with the channels at every boundary scaled by random powers of two, at most `spread` (>= 2) apart.

    Powers of two commute with float32's rounding, so the outputs are the same to the bit wherever the
    kernels add in the same order. Raises ValueError where no boundary can be scaled.
    """
    out = surgery.unshared(source)
    weights = {tensor.name: tensor for tensor in out.graph.initializer}
    rng = np.random.default_rng(seed)
    octaves = int(np.log2(spread))
    found = list(boundaries(out))
    if not found:
        raise ValueError("no two layers in the graph with only ReLU, Add and pooling between them")
    for boundary in found:
        channels = weights[boundary.makers[0].input[1]].dims[0]
        factors = np.exp2(rng.integers(0, octaves + 1, channels) - octaves // 2).astype(np.float32)
        for node in boundary.makers:
            for name in node.input[1:]:
                _multiply(weights[name], factors, 0)
        for node in boundary.readers:
            _multiply(weights[node.input[1]], 1 / factors, 1)
    return out


def boundaries(source: onnx.ModelProto) -> Iterator[Boundary]:
    """Every boundary between dense Convs (no groups), in graph order."""
    done: set[str] = set()
    for node in source.graph.node:
        if _dense(node, source.graph) and node.output[0] not in done:
            boundary = _flooded(source.graph, node.output[0])
            if boundary is not None:
                done |= boundary.tensors
                yield boundary


def _flooded(graph: onnx.GraphProto, start: str) -> Boundary | None:
    """What a scale on `start` reaches before Convs end it on every side; None where something else does."""
    weights = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    out = Boundary()
    pending = {start}
    while pending:
        tensor = pending.pop()
        if tensor in weights or tensor in outputs:
            return None
        out.tensors.add(tensor)
        makers = [n for n in graph.node if tensor in n.output]
        readers = [n for n in graph.node if tensor in n.input]
        if not makers or not all(n.op_type in _PASSES or _dense(n, graph) for n in makers + readers):
            return None
        out.makers += [n for n in makers if n.op_type == "Conv"]
        out.readers += [n for n in readers if n.op_type == "Conv"]
        for node in makers + readers:
            if node.op_type in _PASSES:
                pending |= {*node.input, *node.output} - {""} - out.tensors
    return out if out.readers else None


def _dense(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    if node.op_type != "Conv":
        return False
    groups = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "group"), 1)
    constants = {tensor.name for tensor in graph.initializer}
    return groups == 1 and constants.issuperset(node.input[1:])


def _multiply(tensor: onnx.TensorProto, factors: npt.NDArray[np.float32], axis: int) -> None:
    values = numpy_helper.to_array(tensor)
    shape = [1] * values.ndim
    shape[axis] = -1
    tensor.CopyFrom(numpy_helper.from_array(values * factors.reshape(shape), tensor.name))
