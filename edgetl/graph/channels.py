"""Which channels of a graph must be scaled together, so that its function stays the same.

Each channel of each tensor is a slot. Operators that commute with a positive factor join the slots they
read with those they write; layers with constant weights end a class on either side, since the factor can
go into their weights; anything else pins its slots to the factor 1. A class may run through any number of
residual sums, concatenations and gates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Slots = npt.NDArray[np.int64]

# f(s x) = s f(x) for s > 0, channel by channel, in the first input.
_HOMOGENEOUS = frozenset(
    ["AveragePool", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Relu"]
)
_BOUNDED = frozenset(["HardSigmoid", "Sigmoid"])  # makers of gates: their output is pinned, whatever they read


@dataclass(frozen=True)
class Layer:
    """A product with constant weights: `rows` (O,) the slots it writes, `columns` (O, I) those each weight reads.

    A weight's matrix (O, I) is its Conv kernel or Gemm matrix with the taps of the kernel left out.
    """

    node: onnx.NodeProto
    rows: Slots
    columns: Slots

    def magnitudes(self, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(O, I): largest |w| over the taps of the kernel."""
        taps = np.abs(weight.astype(np.float64)).reshape(*weight.shape[:2], -1).max(axis=2)
        return np.asarray(taps.T if _transposed(self.node) else taps)

    def spread(self, matrix: npt.NDArray[np.float64], rank: int) -> npt.NDArray[np.float64]:
        """`matrix` (O, I) in the layout of a weight of `rank` dimensions, to be broadcast over its taps."""
        laid = matrix.T if _transposed(self.node) else matrix
        return np.asarray(laid.reshape(*laid.shape, *[1] * (rank - 2)))


@dataclass(frozen=True)
class Channels:
    """`slots` of each tensor (C,), the `classes` of all slots (S,), which classes are `free`, and the `layers`."""

    slots: dict[str, Slots]
    classes: Slots
    free: npt.NDArray[np.bool_]
    layers: tuple[Layer, ...]

    def of(self, tensor: str) -> Slots:
        """Classes (C,) of a tensor's channels."""
        return np.asarray(self.classes[self.slots[tensor]])


def traced(source: onnx.ModelProto) -> Channels:
    """The channel classes of `source`. A class is free where it is written and read by layers and never pinned."""
    trace = _Trace(source)
    for node in source.graph.node:
        trace.visit(node)
    trace.pin(value.name for value in (*source.graph.input, *source.graph.output))
    return trace.result()


class _Trace:
    """Slots, the pairs joined so far, and what is pinned."""

    def __init__(self, source: onnx.ModelProto) -> None:
        self._constants = {t.name: t for t in source.graph.initializer}
        self._shapes = _shapes(source)
        self._makers = {name: node for node in source.graph.node for name in node.output}
        self._slots: dict[str, Slots] = {}
        self._count = 0
        for name, shape in self._shapes.items():
            if len(shape) >= 2 and shape[1] > 0 and name not in self._constants:
                self._slots[name] = np.arange(self._count, self._count + shape[1])
                self._count += shape[1]
        self._joined: list[tuple[Slots, Slots]] = []
        self._pinned: list[Slots] = []
        self._layers: list[Layer] = []

    def visit(self, node: onnx.NodeProto) -> None:
        """Join, end or pin what `node` reads and writes."""
        known = [name for name in (*node.input, *node.output) if name and name not in self._constants]
        if not all(name in self._slots for name in known) or not self._understood(node):
            self.pin(known)

    def pin(self, names: Iterable[str]) -> None:
        """Hold these tensors' channels at the factor 1."""
        self._pinned += [self._slots[name] for name in names if name in self._slots]

    def result(self) -> Channels:
        """The classes as they stand."""
        empty = np.zeros(0, dtype=np.int64)
        left, right = (np.concatenate([empty, *(pair[i] for pair in self._joined)]) for i in (0, 1))
        classes = _components(self._count, left, right)
        count = int(classes.max(initial=-1)) + 1
        written, read, free = (np.zeros(count, dtype=bool), np.zeros(count, dtype=bool), np.ones(count, dtype=bool))
        for layer in self._layers:
            written[classes[layer.rows]] = True
            read[classes[layer.columns]] = True
        for slots in self._pinned:
            free[classes[slots]] = False
        return Channels(self._slots, classes, free & written & read, tuple(self._layers))

    def _understood(self, node: onnx.NodeProto) -> bool:
        """Take `node` in; False where no factor may pass it."""
        kind = node.op_type
        if kind in _HOMOGENEOUS or (kind == "Clip" and self._is_relu(node)):
            return self._join(node.input[0], node.output[0])
        if kind in ("Conv", "ConvTranspose", "Gemm"):
            return self._end(node)
        if kind == "BatchNormalization":
            return self._end_normalisation(node)
        if kind in ("Add", "Sub"):
            return self._aligned(node) and all(self._join(name, node.output[0]) for name in node.input)
        if kind == "Mul":
            return self._gated(node)
        if kind == "Concat":
            return _attribute(node, "axis", 1) == 1 and self._concatenated(node)
        if kind in ("Flatten", "Reshape"):
            return self._flattened(node)
        return kind == "ReduceMean" and self._pooled(node)

    def _join(self, one: str, other: str) -> bool:
        if one not in self._slots or len(self._slots[one]) != len(self._slots[other]):
            return False
        self._joined.append((self._slots[one], self._slots[other]))
        return True

    def _end_normalisation(self, node: onnx.NodeProto) -> bool:
        """A BatchNormalization that could not be folded: a scale and a shift for each channel."""
        if not all(name in self._constants for name in node.input[1:]) or len(node.output) > 1:
            return False
        self._layers.append(Layer(node, self._slots[node.output[0]], self._slots[node.input[0]].reshape(-1, 1)))
        return True

    def _is_relu(self, node: onnx.NodeProto) -> bool:
        """Clip at zero from below and nowhere from above."""
        ends = [self._constants.get(name) for name in node.input[1:] if name]
        return (
            len(ends) == 1 and ends[0] is not None and node.input[1] != "" and not numpy_helper.to_array(ends[0]).any()
        )

    def _gated(self, node: onnx.NodeProto) -> bool:
        """x times a gate of squeeze-and-excitation: the gate is pinned where it is made, x passes."""
        gates = [name for name in node.input if name in self._makers and self._makers[name].op_type in _BOUNDED]
        passing = [name for name in node.input if name not in gates]
        return self._aligned(node) and len(gates) == len(passing) == 1 and self._join(passing[0], node.output[0])

    def _aligned(self, node: onnx.NodeProto) -> bool:
        """Whether axis 1 is the channel in every input: none has fewer dimensions and is moved by broadcasting."""
        return len({len(self._shapes.get(name, ())) for name in (*node.input, *node.output)}) == 1

    def _concatenated(self, node: onnx.NodeProto) -> bool:
        parts = [self._slots.get(name) for name in node.input]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return False
        self._joined.append((np.concatenate(known), self._slots[node.output[0]]))
        return True

    def _flattened(self, node: onnx.NodeProto) -> bool:
        """(B, C, ...) to (B, C x places): each channel becomes a run of features."""
        before, after = self._shapes[node.input[0]], self._shapes[node.output[0]]
        if len(after) != 2 or 0 in before[1:] or np.prod(before[1:]) != after[1]:
            return False
        self._joined.append((np.repeat(self._slots[node.input[0]], after[1] // before[1]), self._slots[node.output[0]]))
        return True

    def _pooled(self, node: onnx.NodeProto) -> bool:
        """A mean over the places alone."""
        axes = _attribute(node, "axes", None)
        if axes is None and len(node.input) > 1 and node.input[1] in self._constants:
            axes = numpy_helper.to_array(self._constants[node.input[1]]).tolist()
        rank = len(self._shapes[node.input[0]])
        return bool(axes) and all(axis % rank > 1 for axis in axes) and self._join(node.input[0], node.output[0])

    def _end(self, node: onnx.NodeProto) -> bool:
        """A layer ends the classes on both its sides, where its weights and bias are constants."""
        weight = self._constants.get(node.input[1])
        if weight is None or not all(name in self._constants for name in node.input[2:] if name):
            return False
        reads, writes = self._slots.get(node.input[0]), self._slots[node.output[0]]
        groups = _attribute(node, "group", 1)
        if reads is None or (node.op_type != "Conv" and groups != 1) or _attribute(node, "transA", 0):
            return False
        if _attribute(node, "alpha", 1.0) == 0 or len(reads) % groups or len(writes) % groups:
            return False
        of_group = reads.reshape(groups, -1)
        columns = np.repeat(of_group, len(writes) // groups, axis=0)
        self._layers.append(Layer(node, writes, columns))
        return True


def _components(count: int, left: Slots, right: Slots) -> Slots:
    """Connected components, numbered from 0, of `count` nodes with the edges left[i] - right[i]."""
    least = np.arange(count)
    while True:
        one, other = least[left], least[right]
        if np.array_equal(one, other):
            return np.asarray(np.unique(least, return_inverse=True)[1], dtype=np.int64)
        np.minimum.at(least, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(least, least[least]):  # everyone points at the root of its tree
            least = least[least]


def _shapes(source: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Dimensions of every tensor whose rank is known; 0 where one is free."""
    inferred = onnx.shape_inference.infer_shapes(source, data_prop=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {
        v.name: tuple(int(d.dim_value) for d in v.type.tensor_type.shape.dim)
        for v in values
        if v.type.tensor_type.HasField("shape")
    }


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _transposed(node: onnx.NodeProto) -> bool:
    """Whether a layer's weight lies (I, O) in the file."""
    return node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0))
