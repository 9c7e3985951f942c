"""What INT8 does to each layer by itself: fed with the float network's tensors, how far is its output off.

One pass answers for all layers at once: beside every quantised product the graph gets a twin that reads the
same float tensors through the Q/DQ pairs, and the difference is reduced before it leaves the session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import qdq, surgery
from edgetl.graph.calibrate import session
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.images import to_batch
from edgetl.monitor import SILENT, Monitor

PRODUCTS = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul"])
_BATCH = 2  # images a run: the differences of all layers may be alive at once (750 MB at 8, mobilenet_v2 at 224 px)
_TWIN = "_in_int8"
_REDUCED = ("_shift", "_noise", "_signal")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerNoise:
    """How far one product `node` is off in INT8, over `n` images.

    `shift`: float64 (C_out,), E[y - y_q] of each output channel in the units of y; empty for a product of two
    activations. `sqnr_db`: 10 log10(sum y^2 / sum (y - y_q)^2), inf where INT8 changes nothing.
    """

    node: str
    shift: Floats
    sqnr_db: float
    n: int


def noise(
    source: onnx.ModelProto,
    placement: Placement,
    amax: Mapping[str, float],
    pixels: Pixels,
    threads: int = 0,
    monitor: Monitor = SILENT,
    limit: int = 32,
    weights: onnx.ModelProto | None = None,
) -> dict[str, LayerNoise]:
    """LayerNoise of every product of `placement`, by node name, over the first `limit` images of `pixels`.

    `source`: fp32; `amax`: range of each quantised activation; `weights`: whose weights are quantised, where they
    were rounded (default: the source's); the ranges are the source's. Raises GraphError on NaN or inf.
    """
    source = surgery.unshared(source) if weights is not None else source
    products = _products(source, placement)
    model = _beside(source, placement, amax, products)
    if weights is not None:
        _swap(model, placement, source, weights)
    wanted = [name + end for name in products for end in _REDUCED]
    run = session(model, wanted, threads, simulate=True)
    sums = {name: _Sums() for name in products}
    total, done = min(limit, pixels.n), 0
    for batch in pixels.batches(0, total, _BATCH):
        values = dict(zip(wanted, run.run(wanted, {surgery.INPUT: to_batch(batch, "float32")}), strict=True))
        for name, found in sums.items():
            found.add(*(values[name + end] for end in _REDUCED))
        done += len(batch)
        monitor.progress("noise of each layer", done, total)
    weighted = {name for name, _ in placement.weights}
    return {name: found.result(name, name in weighted, total) for name, found in sums.items()}


@dataclass
class _Sums:
    """Running sums over the images; float64, an image at a time, so that no batch size shows in them."""

    shift: Floats | float = 0.0
    noise: float = 0.0
    signal: float = 0.0
    rows: int = 0

    def add(
        self, shift: npt.NDArray[np.float32], off: npt.NDArray[np.float32], signal: npt.NDArray[np.float32]
    ) -> None:
        """`shift` (rows, C): means over everything but rows and channels; `off`, `signal` (rows,): mean squares."""
        self.shift = self.shift + shift.sum(axis=0, dtype=np.float64)
        self.noise += float(off.sum(dtype=np.float64))
        self.signal += float(signal.sum(dtype=np.float64))
        self.rows += len(shift)

    def result(self, node: str, weighted: bool, n: int) -> LayerNoise:
        """Raises GraphError where something was not finite."""
        shift = np.asarray(self.shift) / self.rows
        if not (np.isfinite(shift).all() and np.isfinite(self.noise) and np.isfinite(self.signal)):
            raise GraphError("NaN or inf inside the network on a calibration image", node, "check the checkpoint")
        with np.errstate(divide="ignore"):  # a layer that is zero everywhere: -inf
            sqnr = 10.0 * np.log10(self.signal / self.noise) if self.noise > 0 else np.inf
        return LayerNoise(node, shift if weighted else np.zeros(0), float(sqnr), n)


def _products(source: onnx.ModelProto, placement: Placement) -> dict[str, onnx.NodeProto]:
    quantised = {node for node, _ in placement.weights}
    quantised |= {node for uses in placement.activations.values() for node, _ in uses}
    return {n.name: n for n in source.graph.node if n.name in quantised and n.op_type in PRODUCTS}


def _beside(
    source: onnx.ModelProto, placement: Placement, amax: Mapping[str, float], products: Iterable[str]
) -> onnx.ModelProto:
    """`source` with a quantised twin of each product beside it, and their difference reduced."""
    out = surgery.copy_of(source)
    quantised = qdq.inserted(source, placement, amax)
    own = {node.name: node for node in source.graph.node}
    weights = {tensor.name: tuple(tensor.dims) for tensor in source.graph.initializer}
    chosen = frozenset(products)
    del out.graph.node[:], out.graph.initializer[:]
    out.graph.initializer.extend(quantised.graph.initializer)
    for node in quantised.graph.node:
        out.graph.node.append(own.get(node.name, node))
        if node.name in chosen:
            twin = out.graph.node.add()
            twin.CopyFrom(node)
            twin.name = twin.output[0] = node.name + _TWIN
            _reduce(out, own[node.name], weights.get(own[node.name].input[1]))
    return out


def _swap(model: onnx.ModelProto, placement: Placement, source: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """Let the pairs in `model` read the weights of `other`, while the float products keep those of `source`."""
    theirs = {tensor.name: tensor for tensor in other.graph.initializer}
    nodes = {node.name: node for node in source.graph.node}
    names = {nodes[node].input[index] for node, index in placement.weights}
    for name in sorted(names):
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(theirs[name])
        tensor.name = name + _TWIN
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in names:
            node.input[0] += _TWIN


def _reduce(model: onnx.ModelProto, node: onnx.NodeProto, weight: tuple[int, ...] | None) -> None:
    """The three tensors of `node` that noise() reads: `_shift` (rows, C), `_noise` and `_signal` (rows,)."""
    y, name = node.output[0], node.name
    off = f"{name}_off"
    model.graph.node.append(helper.make_node("Sub", [y, name + _TWIN], [off], name=off))
    if node.op_type in ("Conv", "ConvTranspose"):
        append_mean(model, off, [0, 0, -1], [2], name + "_shift")
    else:
        append_mean(model, off, [0, -1, _columns(node, weight) if weight else 1], [1], name + "_shift")
    for tensor, to in ((off, "_noise"), (y, "_signal")):
        square = f"{name}{to}_square"
        model.graph.node.append(helper.make_node("Mul", [tensor, tensor], [square], name=square))
        append_mean(model, square, [0, -1], [1], name + to)


def _columns(node: onnx.NodeProto, weight: tuple[int, ...]) -> int:
    """Output channels of a Gemm or MatMul with a weight of this shape."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return weight[0] if transposed else weight[-1]


def append_mean(model: onnx.ModelProto, tensor: str, shape: list[int], axes: list[int], to: str) -> None:
    """Append `to`: the mean of `tensor` over `axes`, once it has been reshaped to `shape`."""
    flat, graph = f"{to}_flat", model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(shape, dtype=np.int64), f"{to}_shape"))
    graph.node.append(helper.make_node("Reshape", [tensor, f"{to}_shape"], [flat], name=flat))
    if surgery.opset_of(model) < 18:
        graph.node.append(helper.make_node("ReduceMean", [flat], [to], name=to, axes=axes, keepdims=0))
        return
    graph.initializer.append(numpy_helper.from_array(np.array(axes, dtype=np.int64), f"{to}_axes"))
    graph.node.append(helper.make_node("ReduceMean", [flat, f"{to}_axes"], [to], name=to, keepdims=0))
