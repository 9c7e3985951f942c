"""Multiply-accumulates of each node of a graph at batch 1, from inferred shapes, and how many run in INT8."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from edgetl.graph import surgery

Shape = tuple[int, ...]


def macs(model: onnx.ModelProto) -> dict[str, int]:
    """Node name -> MACs for one image, for each Conv, ConvTranspose, Gemm, MatMul and two-operand Einsum."""
    fixed = surgery.copy_of(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1
    shapes = _shapes(fixed)
    out = {}
    for node in fixed.graph.node:
        count = _count(node, shapes)
        if count:
            out[node.name] = count
    return out


def int8_share(model: onnx.ModelProto, precisions: Mapping[str, str]) -> float:
    """Share of the MACs of `model` in nodes that `precisions` (node name -> "int8", ...) says run in INT8."""
    counts = macs(model)
    total = sum(counts.values())
    return sum(n for name, n in counts.items() if precisions.get(name) == "int8") / total if total else 0.0


def _shapes(model: onnx.ModelProto) -> dict[str, Shape]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    out = {t.name: tuple(t.dims) for t in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            out[value.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return out


def _count(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum") or len(node.input) < 2:
        return 0
    left, right, made = (shapes.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if left is None or right is None or made is None:
        return 0
    if node.op_type == "Conv":
        return math.prod(made) * math.prod(right[1:])  # weight (Cout, Cin/groups, kh, kw)
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])  # weight (Cin, Cout/groups, kh, kw)
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(made) * left[0 if transposed else 1]
    if node.op_type == "MatMul":
        return math.prod(made) * left[-1]
    return _einsum(node, left, right)


def _einsum(node: onnx.NodeProto, left: Shape, right: Shape) -> int:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        return 0
    sizes = dict(zip(terms[0] + terms[1], (*left, *right), strict=False))
    return math.prod(sizes.values())
