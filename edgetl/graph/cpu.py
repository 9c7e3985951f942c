"""INT8 for onnxruntime's own CPU kernels: where Q/DQ pairs go.

TensorRT's placement is not enough there: a kernel of onnxruntime takes a node over only when everything
that it reads comes out of a DequantizeLinear and what it makes goes into a QuantizeLinear, so sums,
poolings and concatenations between convolutions need pairs too. Without them each convolution is followed by a
change of type and layout, and INT8 is slower than FP32 (resnet18 at 128 px: 0.8x; with them 6x).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from onnx import numpy_helper

from edgetl.graph import surgery
from edgetl.graph.macs import int8_share, macs
from edgetl.graph.nvidia import Built, quantised
from edgetl.graph.placement import Placement, Use
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.ort import optimised

# Nodes with an int8 kernel of their own. HardSigmoid has none, but between two pairs it costs one pass over its
# tensor, and without them the Mul after it and both its convolutions would be float too.
_FOLLOWERS = frozenset(
    ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "HardSigmoid", "LeakyRelu")
)
EVIDENCE = "onnxruntime's own list of kernels, on this machine"
_KERNELS = frozenset(("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"))
# Nodes that only move values: onnxruntime runs them on uint8 where both sides have one scale.
_MOVERS = frozenset(("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"))


def cpu_placement(source: onnx.ModelProto, placement: Placement) -> Placement:
    """`placement` (TensorRT's) with what onnxruntime's int8 kernels need around the same products.

    What is left out of `placement` stays float here too, so a search may exclude nodes of either. Every use of
    a quantised tensor reads it dequantised; logits are never quantised (8 bits would make ties of them).
    """
    graph = _Graph(source)
    wanted = {name for name, _ in placement.weights}
    products = {node.name for node in source.graph.node if node.name in wanted and graph.multiplies(node)}
    tensors: dict[str, None] = {}
    constants: dict[Use, int | None] = {use: axis for use, axis in placement.weights.items() if use[0] in products}
    groups: list[set[str]] = []
    for node in source.graph.node:
        if node.name in products:
            tensors.update(dict.fromkeys([*graph.operands(node), *graph.quantised_result(node)]))
        elif graph.follows(node, tensors):
            tensors.update(dict.fromkeys(graph.quantised_result(node)))
            constants.update(dict.fromkeys(graph.constant_uses(node), None))
            if node.op_type == "Concat":
                _join(groups, graph.alike(node))
        elif moved := graph.moved(node, tensors):
            tensors.update(dict.fromkeys(moved))
            _join(groups, {node.input[0], *moved})
    return Placement(
        {tensor: graph.uses(tensor) for tensor in tensors if graph.uses(tensor)},
        constants,
        tuple(sorted(tuple(sorted(group)) for group in groups)),
    )


def counted(source: onnx.ModelProto, placement: Placement) -> list[str]:
    """The tensors that a calibration counts so that it serves every profile: TensorRT's and onnxruntime's."""
    return list(dict.fromkeys([*placement.activations, *cpu_placement(source, placement).activations]))


def _join(groups: list[set[str]], tensors: set[str]) -> None:
    """Add `tensors` as a group, merged with every group that it meets."""
    for other in [group for group in groups if group & tensors]:
        tensors |= other
        groups.remove(other)
    groups.append(tensors)


def kernels(model: onnx.ModelProto, path: Path, monitor: Monitor = SILENT) -> Built:
    """What onnxruntime on this machine makes of the graph `model`, which lies in `path`: asked, not looked up.

    `layers` counts its kernels, those of everything. Raises BackendError when it refuses the graph.
    """
    target = path.with_suffix(".optimised.onnx")
    try:
        optimised(path, target)
        found = {node.name: node.op_type for node in surgery.load(target).graph.node}
    finally:
        target.unlink(missing_ok=True)
    wanted = quantised(model)
    fallen = tuple(node for node in wanted if found.get(node) not in _KERNELS)
    monitor.say(f"{len(wanted) - len(fallen)} of {len(wanted)} quantised products have an int8 kernel in onnxruntime")
    precisions = {node: "int8" if node in wanted and node not in fallen else "fp32" for node in macs(model)}
    return Built(
        int8_share(model, precisions),
        precisions,
        fallen,
        tuple(node for node in fallen if wanted[node] == "Conv"),
        dict(sorted(Counter(found.values()).items())),
        EVIDENCE,
        "onnxruntime on this CPU",
    )


class _Graph:
    """Who makes and who reads what in a source graph. `ends`: its outputs, also those that are only moved there."""

    def __init__(self, source: onnx.ModelProto) -> None:
        inferred = onnx.shape_inference.infer_shapes(source, data_prop=True).graph
        values = (*inferred.value_info, *inferred.output, *inferred.input)
        self._constants = {tensor.name: tensor for tensor in source.graph.initializer}
        self._floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
        self._floats -= set(self._constants)
        self._ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values}
        self._readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in source.graph.node:
            for index, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((node, index))
        self.ends = {value.name for value in source.graph.output}
        for node in reversed(source.graph.node):
            if node.op_type in _MOVERS and self.ends.intersection(node.output):
                self.ends.add(node.input[0])
        self._clamps: dict[str, str] = {}
        for node in source.graph.node:
            self._note_clamp(node)

    def _note_clamp(self, node: onnx.NodeProto) -> None:
        """Which clamp each tensor went through last, as far as its range still shows it: "Relu", "Clip 6.0"."""
        clamp = self._clamp(node)
        if clamp is None and (node.op_type in _MOVERS or node.op_type == "Concat"):
            kinds = {self._clamps.get(name) for name in self.operands(node)}
            clamp = kinds.pop() if len(kinds) == 1 else None
        if clamp is not None:
            self._clamps.update(dict.fromkeys(node.output, clamp))

    def operands(self, node: onnx.NodeProto) -> list[str]:
        """The float tensors that `node` reads and that are no constants."""
        return [name for name in node.input if name in self._floats]

    def uses(self, tensor: str) -> tuple[Use, ...]:
        return tuple((node.name, index) for node, index in self._readers.get(tensor, ()))

    def constant_uses(self, node: onnx.NodeProto) -> Iterator[Use]:
        """Constant operands of a sum or product of two tensors."""
        for index, name in enumerate(node.input):
            if name in self._constants and self._constants[name].data_type == onnx.TensorProto.FLOAT:
                yield node.name, index

    def result(self, node: onnx.NodeProto) -> str:
        """What `node` gives once the kernel's own clamp to 0 ... 255 has taken over a Relu or Clip after it."""
        name = node.output[0]
        readers = self._readers.get(name, [])
        if name not in self.ends and len(readers) == 1 and self._clamp(readers[0][0]):
            return str(readers[0][0].output[0])
        return str(name)

    def _clamp(self, node: onnx.NodeProto) -> str | None:
        """Relu, or a Clip between zero and a constant: a uint8 range that starts at zero does the same."""
        if node.op_type != "Clip":
            return "Relu" if node.op_type == "Relu" else None
        limits = [self._constants[name] for name in node.input[1:] if name in self._constants]
        if len(limits) != 2:
            return None
        low, high = (float(numpy_helper.to_array(limit)) for limit in limits)
        return f"Clip {high}" if low == 0.0 else None

    def alike(self, concat: onnx.NodeProto) -> set[str]:
        """The result of a Concat and those of its operands that can share its scale.

        With one scale they are copied and not computed anew. But in a range made wider by the others the end of
        a Relu or Clip would be lost, so an operand that went through one shares with its like only.
        """
        out = concat.output[0]
        kind = self._clamps.get(out)
        return {out, *(name for name in self.operands(concat) if self._clamps.get(name) == kind)}

    def multiplies(self, node: onnx.NodeProto) -> bool:
        """Whether `node` has an int8 kernel that multiplies.

        That of Conv cannot give float32, which logits are. A MatMul of matrices with an Add after it becomes a
        Gemm with a float bias in onnxruntime before it looks for Q/DQ, and that Gemm has none.
        """
        if node.op_type == "MatMul":
            added = any(reader.op_type == "Add" for reader, _ in self._readers.get(node.output[0], ()))
            return not (added and self._ranks.get(node.input[0]) == 2)
        return node.op_type == "Gemm" or (node.op_type == "Conv" and self.result(node) not in self.ends)

    def quantised_result(self, node: onnx.NodeProto) -> list[str]:
        """The result, but for logits, and for a MatMul: in a transformer what follows computes in float anyway."""
        name = self.result(node)
        return [] if name in self.ends or node.op_type == "MatMul" else [name]

    def follows(self, node: onnx.NodeProto, tensors: Mapping[str, None]) -> bool:
        """Whether a node with an int8 kernel reads quantised tensors only, and its result may be quantised."""
        operands = self.operands(node)
        return (
            node.op_type in _FOLLOWERS
            and bool(operands)
            and all(name in tensors for name in operands)
            and self.result(node) not in self.ends
        )

    def moved(self, node: onnx.NodeProto, tensors: Mapping[str, None]) -> list[str]:
        """The outputs of a node that only moves a quantised tensor; none where it moves it to the graph's end."""
        if node.op_type not in _MOVERS or node.input[0] not in tensors or self.ends.intersection(node.output):
            return []
        return [name for name in node.output if name in self._floats]
