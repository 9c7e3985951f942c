"""Weights rounded so that they make up for each other, where plain rounding takes each one to the nearest step.

GPTQ (Frantar et al. 2022, section 3, after Optimal Brain Quantization): column after column of a layer's weight
matrix is rounded, and what that changes in the layer's output on real inputs is taken back by the columns that
are still to come. One pass of images and a Cholesky factor a layer, no training, and nothing changes on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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

_WIDEST = 2304  # inputs of one output: time and memory grow with the square, and sums this long average noise out
_KEPT = 256 << 20  # bytes of second moments at a time; with more than that the images go through again
_POSITIONS = 32  # of a feature map or a sequence, drawn for each batch: neighbours say the same
_DAMPING = 0.01  # of the mean second moment, as in the paper
_BLOCK = 64  # columns whose effect on the rest is subtracted at once
_TOP = 1 - 1 / (100 * qdq.LEVELS)  # the largest weight ends a hundredth of a step early: no float raises the scale

Floats = npt.NDArray[np.float64]


@dataclass
class _Layer:
    """One product: its weight as matrices (groups, outputs, inputs), and the second moments of its inputs."""

    node: onnx.NodeProto
    weight: npt.NDArray[np.float32]
    attributes: Mapping[str, Any]
    moments: npt.NDArray[np.float32] | None = None
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def transposed(self) -> bool:
        """Whether the weight is (inputs, outputs)."""
        return self.node.op_type == "MatMul" or (self.node.op_type == "Gemm" and not self.attributes.get("transB", 0))

    @property
    def matrices(self) -> npt.NDArray[np.float32]:
        """(groups, outputs of a group, inputs of an output)."""
        flat = self.weight.T if self.transposed else self.weight.reshape(len(self.weight), -1)
        groups = int(self.attributes.get("group", 1))
        return flat.reshape(groups, len(flat) // groups, -1)

    def shaped(self, matrices: Floats) -> npt.NDArray[np.float32]:
        """`matrices` as the graph holds them."""
        flat = matrices.reshape(-1, matrices.shape[2]).astype(np.float32)
        return np.ascontiguousarray(flat.T if self.transposed else flat.reshape(self.weight.shape))

    def see(self, x: npt.NDArray[np.float32]) -> None:
        """Add what the layer reads in `x`, a batch of its input tensor."""
        conv = self.node.op_type == "Conv"
        rows = self._patches(x) if conv else self._drawn(x.reshape(1, -1, x.shape[-1]), _POSITIONS * len(x))
        with np.errstate(over="ignore", invalid="ignore"):  # _moments reports it
            found = rows.transpose(0, 2, 1) @ rows
            self.moments = found if self.moments is None else self.moments + found

    def _drawn(self, rows: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.float32]:
        """(1, <= most, inputs): a transformer's tokens are as many as a feature map's positions."""
        count = rows.shape[1]
        return rows if count <= most else rows[:, self.random.choice(count, most, replace=False)]

    def _patches(self, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(groups, samples, inputs of an output): what the kernel covers at drawn positions of x (B, C, H, W)."""
        a, (high, wide) = self.attributes, self.weight.shape[2:]
        groups = int(a.get("group", 1))
        (down, across), (dy, dx) = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
        top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        rows, columns = (
            (x.shape[2] - dy * (high - 1) - 1) // down + 1,
            (x.shape[3] - dx * (wide - 1) - 1) // across + 1,
        )
        drawn = self.random.choice(rows * columns, min(_POSITIONS, rows * columns), replace=False)
        y = (drawn // columns * down)[:, None, None] + np.arange(high)[None, :, None] * dy
        z = (drawn % columns * across)[:, None, None] + np.arange(wide)[None, None, :] * dx
        seen = x[:, :, y, z]  # (B, C, positions, high, wide)
        batch, channels = x.shape[:2]
        seen = seen.reshape(batch, groups, channels // groups, len(drawn), high * wide)
        return np.ascontiguousarray(seen.transpose(1, 0, 3, 2, 4)).reshape(groups, batch * len(drawn), -1)


def rounded(
    source: onnx.ModelProto,
    placement: Placement,
    pixels: Pixels,
    threads: int = 0,
    monitor: Monitor = SILENT,
    limit: int = 256,
    levels: int = qdq.LEVELS,
) -> onnx.ModelProto:
    """`source` (fp32) with the quantised weights of its products on the steps that Q/DQ pairs will round them to.

    The ranges stay: the largest weight of each output channel does not move. The inputs are those of the float
    network on the first `limit` images. `levels`: steps on either side of zero. Transposed convolutions and layers
    with over _WIDEST inputs an output stay as they are. Raises GraphError on NaN or inf.
    """
    floats, out = surgery.unshared(source), surgery.unshared(source)
    constants = {tensor.name: tensor for tensor in out.graph.initializer}
    done = 0
    layers = list(_layers(out, placement, constants))
    for part in _parts(layers):
        _watch(floats, part, pixels.head(min(limit, pixels.n)), threads)
        for layer in part:
            new = layer.shaped(_on_steps(layer, levels))
            constants[layer.node.input[1]].CopyFrom(numpy_helper.from_array(new, layer.node.input[1]))
            layer.moments = None
            done += 1
            monitor.progress("weight rounding", done, len(layers))
    return out


def _layers(
    model: onnx.ModelProto, placement: Placement, constants: Mapping[str, onnx.TensorProto]
) -> Iterator[_Layer]:
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or (node.name, 1) not in placement.weights:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        layer = _Layer(node, numpy_helper.to_array(constants[node.input[1]]), attributes)
        fits = layer.weight.ndim == (4 if node.op_type == "Conv" else 2)
        named = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and not attributes.get("transA", 0)
        if fits and named and layer.matrices.shape[2] <= _WIDEST:
            yield layer


def _parts(layers: list[_Layer]) -> Iterator[list[_Layer]]:
    """`layers` in turn, as many at a time as _KEPT allows; one at least."""
    part: list[_Layer] = []
    size = 0
    for layer in layers:
        groups, _, inputs = layer.matrices.shape
        more = 4 * groups * inputs**2
        if part and size + more > _KEPT:
            yield part
            part, size = [], 0
        part.append(layer)
        size += more
    if part:
        yield part


def _watch(model: onnx.ModelProto, layers: list[_Layer], pixels: Pixels, threads: int) -> None:
    """Collect the second moments of the inputs of `layers`."""
    names = sorted({layer.node.input[0] for layer in layers} - {surgery.INPUT})
    run = session(model, names or [model.graph.output[0].name], threads)
    for batch in pixels.batches():
        image = to_batch(batch, "float32")
        values = dict(zip(names, run.run(names, {surgery.INPUT: image}), strict=True)) if names else {}
        values[surgery.INPUT] = image
        for layer in layers:
            layer.see(values[layer.node.input[0]])


def _on_steps(layer: _Layer, levels: int) -> Floats:
    """The layer's matrices on their steps; an output whose step would become another one stays as it is."""
    before = layer.matrices.astype(np.float64)
    moments, steps = _moments(layer), _steps(layer.matrices, levels, layer.node.input[1])
    after = compensated(before, moments, steps, levels) * steps[:, :, None]
    after = np.where(np.abs(after) > (levels - 0.5) * steps[:, :, None], after * _TOP, after)
    same = _steps(after.astype(np.float32), levels, layer.node.input[1]) == steps
    return np.where(same[:, :, None], after, before)


def _moments(layer: _Layer) -> Floats:
    assert layer.moments is not None  # every set of images has one
    if not np.isfinite(layer.moments).all():
        raise GraphError(
            "NaN or inf inside the network on a calibration image", layer.node.name, "check the checkpoint"
        )
    return layer.moments.astype(np.float64)


def _steps(matrices: npt.NDArray[np.float32], levels: int, name: str) -> Floats:
    """(groups, outputs): the step of each output of the weight `name`. Raises GraphError for NaN or inf."""
    peaks = qdq.weight_range(matrices.reshape(-1, matrices.shape[2]), 0, name).astype(np.float64)
    return qdq.scale_of(peaks * (qdq.LEVELS / levels)).astype(np.float64).reshape(matrices.shape[:2])


def compensated(weights: Floats, moments: Floats, steps: Floats, levels: int = qdq.LEVELS) -> Floats:
    """Whole numbers (G, R, D) such that, times `steps` (G, R), rows are near `weights` where the inputs vary.

    `moments` (G, D, D): sum of x x^T over inputs. Columns go in the order of their moments, the largest first; the
    largest weight of a row goes to +-levels or where it is nearest to, whatever was added to it.
    """
    diagonal = np.einsum("gii->gi", moments)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    work = np.take_along_axis(weights, order[:, None, :], 2)
    factor = _inverse_factor(
        np.take_along_axis(np.take_along_axis(moments, order[:, :, None], 1), order[:, None, :], 2)
    )
    top = np.abs(work).argmax(axis=2)
    fixed = np.clip(np.rint(np.take_along_axis(work, top[:, :, None], 2)[:, :, 0] / steps), -levels, levels)
    out = np.zeros_like(work)
    count = work.shape[2]
    for first in range(0, count, _BLOCK):
        last = min(first + _BLOCK, count)
        errors = np.zeros((*work.shape[:2], last - first))
        for column in range(first, last):
            nearest = np.clip(np.rint(work[:, :, column] / steps), -levels, levels)
            out[:, :, column] = np.where(top == column, fixed, nearest)
            error = (work[:, :, column] - out[:, :, column] * steps) / factor[:, None, column, column]
            work[:, :, column + 1 : last] -= error[:, :, None] * factor[:, None, column, column + 1 : last]
            errors[:, :, column - first] = error
        work[:, :, last:] -= errors @ factor[:, first:last, last:]
    back = np.empty_like(out)
    np.put_along_axis(back, np.broadcast_to(order[:, None, :], out.shape), out, 2)
    return back


def _inverse_factor(moments: Floats) -> Floats:
    """(G, D, D): the upper Cholesky factor of the inverse of the damped `moments`."""
    size = moments.shape[1]
    mean = np.einsum("gii->g", moments) / size
    mean[mean == 0] = 1.0  # inputs that are always zero: each weight goes to its nearest step
    damped = moments + _DAMPING * mean[:, None, None] * np.eye(size)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1))
