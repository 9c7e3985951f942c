"""Cross-layer equalisation: the same fp32 function, with the channels of each tensor brought to like ranges.

An int8 activation has one scale for all its channels, so a wide channel drowns the narrow ones. Where only
positively homogeneous operators (f(s x) = s f(x), s > 0) lie between the layers that write a channel and
those that read it, the writers' rows may be multiplied by s and the readers' columns divided by it (Nagel et
al. 2019, section 4.1). Weights have a scale for each output channel, so the range that matters on the writing
side is the activation's, and s balances it against the reading columns as SmoothQuant does (Xiao et al. 2023, eq. 4).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.graph.calibrate import session
from edgetl.graph.channels import Channels, Layer, traced
from edgetl.graph.pixels import Pixels
from edgetl.images import to_batch
from edgetl.monitor import SILENT, Monitor

# How much of the difficulty moves into the weights: more than SmoothQuant's 0.5, since each row has its own scale.
ALPHA = 0.75
_NARROWEST = 1e-5  # of the widest channel: narrower ones are not widened further

Floats = npt.NDArray[np.float64]


def equalised(
    source: onnx.ModelProto, pixels: Pixels, threads: int = 0, monitor: Monitor = SILENT, limit: int = 128
) -> onnx.ModelProto | None:
    """`source` (fp32) with balanced channels, the same function up to float32's rounding; None where nothing can be.

    The ranges are those of the first `limit` images of `pixels`. Raises GraphError on NaN or inf.
    """
    model = surgery.unshared(source)
    channels = traced(model)
    if not channels.free.any():
        return None
    read = sorted(
        {layer.node.input[0] for layer in channels.layers if channels.free[channels.classes[layer.columns]].any()}
    )
    peaks = _peaks(model, read, pixels, threads, monitor, limit)
    return rescaled(model, channels, _factors(channels, peaks, model))


def _peaks(
    source: onnx.ModelProto, tensors: list[str], pixels: Pixels, threads: int, monitor: Monitor, limit: int
) -> dict[str, Floats]:
    """Largest |x| (C,) of each channel of `tensors`, which have their channels on axis 1."""
    model = surgery.copy_of(source)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, -1], dtype=np.int64), "channels_first"))
    wanted = [f"{name}_peaks" for name in tensors]
    for name, peaks in zip(tensors, wanted, strict=True):
        size, flat = f"{peaks}_abs", f"{peaks}_flat"
        model.graph.node.append(helper.make_node("Abs", [name], [size], name=size))
        model.graph.node.append(helper.make_node("Reshape", [size, "channels_first"], [flat], name=flat))
        model.graph.node.append(helper.make_node("GlobalMaxPool", [flat], [peaks], name=peaks))
    run = session(model, wanted, threads)
    total, done = min(limit, pixels.n), 0
    out: dict[str, Floats] = {}
    for batch in pixels.batches(0, total):
        values = run.run(wanted, {surgery.INPUT: to_batch(batch, "float32")})
        for name, value in zip(tensors, values, strict=True):
            out[name] = np.maximum(value[:, :, 0].max(axis=0), out.get(name, 0.0))
        done += len(batch)
        monitor.progress("channel ranges", done, total)
    for name, peak in out.items():
        if not np.isfinite(peak).all():
            raise GraphError("NaN or inf inside the network on a calibration image", name, "check the checkpoint")
    return out


def _factors(channels: Channels, peaks: Mapping[str, Floats], model: onnx.ModelProto) -> Floats:
    """The factor of each class.

    s_j = w_j^(1 - alpha) / x_j^alpha, with x_j the channel's range relative to the widest of its tensor and w_j
    the largest share that one of its weights has of its row's range: rows have scales of their own. Both are
    at most 1, so no tensor's range grows.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    x = np.zeros(len(channels.free))
    w = np.zeros(len(channels.free))
    for tensor, peak in peaks.items():
        if peak.max() > 0:
            np.maximum.at(x, channels.of(tensor), peak / peak.max())
    for layer in channels.layers:
        if layer.node.op_type != "BatchNormalization":
            size = layer.magnitudes(numpy_helper.to_array(weights[layer.node.input[1]]))
            rows = np.maximum(size.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
            np.maximum.at(w, channels.classes[layer.columns], size / rows)
    x[x == 0] = 1.0  # never seen to move: do not widen what other images may bring
    w[w == 0] = 1.0
    out: Floats = w ** (1 - ALPHA) / np.maximum(x, _NARROWEST) ** ALPHA
    return out


def rescaled(model: onnx.ModelProto, channels: Channels, factors: Floats) -> onnx.ModelProto:
    """`model` (each initialiser read once) with its free classes multiplied by `factors`, positive, one a class."""
    out = surgery.copy_of(model)
    weights = {tensor.name: tensor for tensor in out.graph.initializer}
    of_slot = np.where(channels.free, factors, 1.0)[channels.classes]
    for layer in channels.layers:
        _scale(layer, of_slot, weights)
    return out


def _scale(layer: Layer, factors: Floats, weights: Mapping[str, onnx.TensorProto]) -> None:
    """Put the factors (S,) of the slots into a layer's constants."""
    node = layer.node
    made, read = factors[layer.rows], factors[layer.columns]
    matrix = made[:, np.newaxis] / read
    if node.op_type == "BatchNormalization":  # scale, bias, mean, variance
        _multiply(weights[node.input[1]], matrix[:, 0])
        _multiply(weights[node.input[3]], read[:, 0])
    else:
        weight = weights[node.input[1]]
        _multiply(weight, layer.spread(matrix, len(weight.dims)))
    if len(node.input) > 2 and node.input[2]:
        _multiply(weights[node.input[2]], made)


def _multiply(tensor: onnx.TensorProto, factors: Floats) -> None:
    values = numpy_helper.to_array(tensor).astype(np.float64) * factors
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
