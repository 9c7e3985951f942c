"""Writing an INT8 graph for onnxruntime's CPU kernels: uint8 activations, int8 weights a channel each, int32 biases."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.graph.placement import Placement
from edgetl.graph.qdq import weight_range
from edgetl.graph.ranges import Histogram, ranges
from edgetl.spec import Profile

_LEVELS = 255
_BIAS_LIMIT = 2.0**30  # half of int32's range; the other half is left to the sum of products
_PRODUCTS = ("Conv", "Gemm", "MatMul")

Range = tuple[float, float]


def cpu_ranges(
    histograms: Mapping[str, Histogram], method: str, groups: tuple[tuple[str, ...], ...] = ()
) -> dict[str, Range]:
    """tensor -> (low, high) by `method`; zero lies in each, and the tensors of a group share the widest.

    The method's range of |x| ends where values end: swish goes no lower than -0.28, and half of the 255 steps
    would be spent on nothing.
    """
    amax = ranges(histograms, method)
    out = {name: (max(h.low, -amax[name]), min(h.high, amax[name])) for name, h in histograms.items()}
    for group in groups:
        lows, highs = zip(*(out[name] for name in group), strict=True)
        out.update(dict.fromkeys(group, (min(lows), max(highs))))
    return out


@dataclass(frozen=True)
class Step:
    """A quantised tensor's scale, float32 () or (C,), and its zero point, uint8 (), int8 (C,) or int32 (C,)."""

    scale: np.ndarray
    zero: np.ndarray

    def quantised(self, values: np.ndarray, axis: int | None, limit: int | None = None) -> np.ndarray:
        """`values` in steps, of the zero point's type; `limit`: the largest magnitude, where it is not the type's."""
        shape = [-1 if i == axis else 1 for i in range(values.ndim)] if axis is not None else []
        steps = np.rint(values.astype(np.float64) / self.scale.reshape(shape)) + self.zero.reshape(shape)
        ends = np.iinfo(self.zero.dtype)
        low, high = (ends.min, ends.max) if limit is None else (-limit, limit)
        return np.asarray(np.clip(steps, low, high).astype(self.zero.dtype))


def unsigned(low: float, high: float) -> Step:
    """The uint8 step for [low, high], low <= 0 <= high; scale 1 and zero point 0 where both are zero.

    255 steps never pass `high` when `low` is 0: onnxruntime drops a Clip that ends there only when the range of
    the QuantizeLinear after it lies within; else the Clip keeps the convolution before it in float.
    Raises GraphError for a range that is not finite.
    """
    width = np.float32(high - low)
    if not np.isfinite(width):
        raise GraphError("a range that has no scale", f"{low} to {high}", "check the weights for NaN or inf")
    scale = np.float32(width / _LEVELS)
    if scale < np.finfo(np.float32).tiny:
        return Step(np.array(1, np.float32), np.array(0, np.uint8))
    while np.float32(_LEVELS) * scale > width:
        scale = np.nextafter(scale, np.float32(0))
    zero = np.clip(np.rint(-low / float(scale)), 0, _LEVELS)
    return Step(np.array(scale, np.float32), np.array(zero, np.uint8))


def cpu_inserted(
    source: onnx.ModelProto, placement: Placement, limits: Mapping[str, Range], bits: int = 8
) -> onnx.ModelProto:
    """`source` (fp32, opset >= 13) in INT8 for onnxruntime's CPU kernels.

    `placement` is cpu_placement's, `limits` cpu_ranges'. Weights are stored as int8 of `bits`, biases as int32 in
    steps of input scale x weight scale. With 7 bits (-63 ... 63) the sum of two products fits int16, in which a
    CPU without VNNI adds them. Raises GraphError for NaN or inf in a weight.
    """
    out = surgery.copy_of(source)
    graph = out.graph
    steps = {tensor: unsigned(*limits[tensor]) for tensor in placement.activations}
    reads = {use: f"{tensor}_dequantised" for tensor, uses in placement.activations.items() for use in uses}
    writer = _Constants({t.name: t for t in graph.initializer}, steps, 2 ** (bits - 1) - 1, graph.initializer)
    nodes: list[onnx.NodeProto] = []
    for value in graph.input:
        nodes.extend(_pair(value.name, steps, graph))
    for node in graph.node:
        axes = {index: axis for (name, index), axis in placement.weights.items() if name == node.name}
        nodes.extend(writer.stored(node, axes))
        node.input[:] = [reads.get((node.name, i), name) for i, name in enumerate(node.input)]
        nodes.append(node)
        for name in node.output:
            nodes.extend(_pair(name, steps, graph))
    del graph.node[:]
    graph.node.extend(nodes)
    out.metadata_props.add(key="profile", value=str(Profile.CPU))  # runtime/ort runs it accordingly
    return out


def _pair(tensor: str, steps: Mapping[str, Step], graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The QuantizeLinear and DequantizeLinear of an activation, if it has a step."""
    if tensor not in steps:
        return
    names = _named(tensor, steps[tensor], graph.initializer)
    yield helper.make_node("QuantizeLinear", [tensor, *names], [f"{tensor}_quantised"], name=f"{tensor}_QuantizeLinear")
    yield _dequantise(tensor, names, None)


def _named(name: str, step: Step, into: list[onnx.TensorProto]) -> list[str]:
    names = [f"{name}_scale", f"{name}_zero_point"]
    into.extend(numpy_helper.from_array(part, n) for part, n in zip((step.scale, step.zero), names, strict=True))
    return names


def _dequantise(name: str, constants: list[str], axis: int | None) -> onnx.NodeProto:
    read, made = [f"{name}_quantised", *constants], [f"{name}_dequantised"]
    node = helper.make_node("DequantizeLinear", read, made, name=f"{name}_DequantizeLinear")
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return node


@dataclass(frozen=True)
class _Constants:
    """Stores weights, biases and constant operands as integers. `limit`: of a weight; `into`: the initialisers."""

    tensors: Mapping[str, onnx.TensorProto]
    steps: Mapping[str, Step]
    limit: int
    into: list[onnx.TensorProto]

    def stored(self, node: onnx.NodeProto, axes: Mapping[int, int | None]) -> Iterator[onnx.NodeProto]:
        """The DequantizeLinear of each constant of `node` that `axes` (input -> channel axis) names."""
        for index, axis in axes.items():
            values = self._values(node.input[index])
            if node.op_type not in _PRODUCTS:
                step = unsigned(min(float(values.min()), 0.0), max(float(values.max()), 0.0))
                yield self._one(node, index, step.quantised(values, None), step, None)
                continue
            bias = self._bias(node, values.shape[axis] if axis is not None else 0)
            step = self._weight_step(node, values, axis, bias)
            yield self._one(node, index, step.quantised(values, axis, self.limit), step, axis)
            if bias is not None:
                scale = self._input_scale(node) * step.scale
                added = Step(scale.astype(np.float32), np.zeros(scale.shape, np.int32))
                yield self._one(node, 2, added.quantised(bias, 0), added, 0)

    def _values(self, tensor: str) -> np.ndarray:
        values = numpy_helper.to_array(self.tensors[tensor])
        if not np.isfinite(values).all():
            raise GraphError("a weight holds NaN or inf", tensor, "train the model again; this one cannot be quantised")
        return values

    def _input_scale(self, node: onnx.NodeProto) -> np.ndarray:
        return self.steps[node.input[0].removesuffix("_dequantised")].scale

    def _bias(self, node: onnx.NodeProto, channels: int) -> np.ndarray | None:
        """A bias with a value a channel; any other shape (Gemm allows them) is left to onnxruntime."""
        if node.op_type == "MatMul" or len(node.input) < 3 or node.input[2] not in self.tensors:
            return None
        values = self._values(node.input[2])
        return values if values.shape == (channels,) else None

    def _weight_step(self, node: onnx.NodeProto, values: np.ndarray, axis: int | None, bias: np.ndarray | None) -> Step:
        """A step a channel, wide enough that the bias of a channel with tiny weights fits int32."""
        scale = weight_range(values, axis, node.input[1]) / np.float64(self.limit)
        if bias is not None:
            scale = np.maximum(scale, np.abs(bias) / (self._input_scale(node) * _BIAS_LIMIT))
        scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
        return Step(scale, np.zeros(scale.shape, np.int8))

    def _one(
        self, node: onnx.NodeProto, index: int, values: np.ndarray, step: Step, axis: int | None
    ) -> onnx.NodeProto:
        name = f"{node.name}_input{index}"
        self.into.append(numpy_helper.from_array(values, f"{name}_quantised"))
        node.input[index] = f"{name}_dequantised"
        return _dequantise(name, _named(name, step, self.into), axis)


def weight_bits(machine: str, flags: str) -> tuple[int, str]:
    """(bits of a weight, why) for a CPU: `machine` as platform.machine() says, `flags` of /proc/cpuinfo.

    Without VNNI onnxruntime multiplies uint8 by int8 with VPMADDUBSW, which adds two products in int16: weights of
    8 bits would saturate there (its documentation, "Quantize ONNX models", on reduce_range).
    """
    there = set(flags.split())
    if machine.lower() in ("x86_64", "amd64"):
        found = [name for name in ("avx512_vnni", "avx_vnni") if name in there]
        return (8, found[0]) if found else (7, "no VNNI: 8 bits would saturate")
    if machine.lower() in ("aarch64", "arm64"):
        return (8, "asimddp") if "asimddp" in there else (7, "no dot product instructions")
    return 7, f"unknown kind of CPU: {machine or 'no name'}"


def host_weight_bits(root: Path = Path("/")) -> tuple[int, str]:
    """weight_bits of this machine; `root` is where /proc is looked up. Without /proc: 7, the safe side."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 7, "this system does not list the CPU's instructions"
    flags = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return weight_bits(platform.machine(), flags)
