"""ONNX operators as differentiable PyTorch functions: what the source graphs of classifiers are made of.

Semantics of opsets 13 to 20, inference mode. Anything outside the table is refused by name, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

from edgetl.errors import GraphError

Tensor = torch.Tensor
Attributes = dict[str, Any]
Operator = Callable[..., Any]  # (attributes, *inputs; None where an optional one is left out) -> a tensor or several


def operator(node: onnx.NodeProto) -> Operator:
    """The function of a node. Raises GraphError naming the node where there is none."""
    found = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if found is None:
        raise GraphError(
            "quantisation-aware training does not know an operator",
            f"{node.op_type} ({node.name})",
            "use --rescue exclude",
        )
    return found


def attributes(node: onnx.NodeProto) -> Attributes:
    """A node's attributes as plain values (strings decoded, tensors as arrays), and its number of `outputs`."""
    out: Attributes = {"outputs": len(node.output)}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        out[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return out


def _pads(a: Attributes, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """ONNX pads (all begins, then all ends) of a window over `size`, also where auto_pad says SAME."""
    rank = len(size)
    given = list(a.get("pads", [0] * 2 * rank))
    mode = a.get("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return given
    begins, ends = [], []
    strides, dilations = a.get("strides", [1] * rank), a.get("dilations", [1] * rank)
    for length, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-length // stride) - 1) * stride + (k - 1) * dilation + 1 - length, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def _padded(x: Tensor, pads: Sequence[int], value: float) -> tuple[Tensor, list[int]]:
    """`x` padded where begin and end differ (PyTorch's windows pad evenly), and the padding left to do."""
    rank = len(pads) // 2
    begins, ends = pads[:rank], pads[rank:]
    if list(begins) == list(ends):
        return x, list(begins)
    uneven = [p for pair in zip(reversed(begins), reversed(ends), strict=True) for p in pair]
    return functional.pad(x, uneven, value=value), [0] * rank


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.ndim - 2
    x, padding = _padded(x, _pads(a, x.shape[2:], weight.shape[2:]), 0.0)
    call = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    ones = [1] * rank
    return call(x, weight, bias, a.get("strides", ones), padding, a.get("dilations", ones), a.get("group", 1))


def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.ndim - 2
    pads = list(a.get("pads", [0] * 2 * rank))
    if "output_shape" in a or a.get("auto_pad", "NOTSET") != "NOTSET" or pads[:rank] != pads[rank:]:
        raise GraphError("a ConvTranspose whose padding is uneven cannot be trained", pads, "use --rescue exclude")
    call = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    ones = [1] * rank
    extra, dilations = a.get("output_padding", [0] * rank), a.get("dilations", ones)
    return call(x, weight, bias, a.get("strides", ones), pads[:rank], extra, a.get("group", 1), dilations)


def _gemm(a: Attributes, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    left = left.T if a.get("transA", 0) else left
    right = right.T if a.get("transB", 0) else right
    out: Tensor = a.get("alpha", 1.0) * (left @ right)
    return out if bias is None else out + float(a.get("beta", 1.0)) * bias


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    pads = _pads(a, x.shape[2:], kernel)
    x, padding = _padded(x, pads, float("-inf"))
    call = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    ones = [1] * len(kernel)
    return call(x, kernel, a.get("strides", ones), padding, a.get("dilations", ones), bool(a.get("ceil_mode", 0)))


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = a["kernel_shape"]
    pads = _pads(a, x.shape[2:], kernel)
    counted = bool(a.get("count_include_pad", 0))
    if pads[: len(kernel)] != pads[len(kernel) :] and not counted:
        raise GraphError("an AveragePool whose padding is uneven cannot be trained", pads, "use --rescue exclude")
    x, padding = _padded(x, pads, 0.0)
    call = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    strides = a.get("strides", [1] * len(kernel))
    return call(x, kernel, strides, padding, bool(a.get("ceil_mode", 0)), counted)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _batch_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, var, scale, bias, eps=a.get("epsilon", 1e-5))


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = a.get("axis", -1) % x.ndim
    out = functional.layer_norm(x, x.shape[axis:], eps=a.get("epsilon", 1e-5)) * scale
    return out if bias is None else out + bias


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    # With numbers for bounds clamp's backward pass is several times faster than with tensors.
    return torch.clamp(x, -math.inf if low is None else float(low), math.inf if high is None else float(high))


def _axes(a: Attributes, given: Tensor | None) -> list[int] | None:
    if given is not None:
        return [int(i) for i in given.tolist()]
    return list(a["axes"]) if "axes" in a else None


def _reduction(call: Callable[..., Tensor]) -> Operator:
    def reduce(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = _axes(a, axes)
        if not chosen and a.get("noop_with_empty_axes", 0):
            return x
        return call(x, dim=chosen or list(range(x.ndim)), keepdim=bool(a.get("keepdims", 1)))

    return reduce


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    wanted = [int(n) for n in shape.tolist()]
    if not a.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(tuple(wanted))  # a list that is empty, for a scalar, is refused


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1)
    rows = int(np.prod(x.shape[: axis % x.ndim if axis < 0 else axis]))
    return x.reshape(rows, -1)


def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(a.get("perm", tuple(reversed(range(x.ndim)))))


def _slice(
    a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    begin, end = starts.tolist(), ends.tolist()
    for i, axis in enumerate(range(len(begin)) if axes is None else axes.tolist()):
        step = 1 if steps is None else int(steps[i])
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(begin[i], end[i], step),)]
        else:
            chosen = list(range(x.shape[axis]))[slice(begin[i], end[i], step)]
            x = x.index_select(axis, torch.tensor(chosen, dtype=torch.int64))
    return x


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if sizes is not None:
        return torch.split(x, [int(n) for n in sizes.tolist()], axis)
    return torch.split(x, -(-x.shape[axis] // a["outputs"]), axis)


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    positive = torch.where(indices < 0, indices + x.shape[axis], indices)
    found = x.index_select(axis, positive.reshape(-1))
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_nd(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    if a.get("batch_dims", 0):
        raise GraphError("a GatherND with batch_dims cannot be trained", a["batch_dims"], "use --rescue exclude")
    return x[tuple(indices.unbind(-1))]


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(a, axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    chosen = _axes(a, axes) or []
    for axis in sorted(i % (x.ndim + len(chosen)) for i in chosen):
        x = x.unsqueeze(axis)
    return x


def _expand(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    wanted = np.broadcast_shapes(tuple(x.shape), tuple(int(n) for n in shape.tolist()))
    return x.broadcast_to(wanted)


def _pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    mode = a.get("mode", "constant")
    if mode != "constant" or axes is not None:
        raise GraphError("a Pad of this kind cannot be trained", mode, "use --rescue exclude")
    amounts = pads.tolist()
    begins, ends = amounts[: x.ndim], amounts[x.ndim :]
    pairs = [int(p) for pair in zip(reversed(begins), reversed(ends), strict=True) for p in pair]
    return functional.pad(x, pairs, value=0.0 if value is None else float(value))


def _cast(a: Attributes, x: Tensor) -> Tensor:
    return x.to(torch.from_numpy(np.empty(0, helper.tensor_dtype_to_np_dtype(a["to"]))).dtype)


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end", x.ndim)], dtype=torch.int64)


def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    value = torch.from_numpy(np.array(a.get("value", np.zeros(1, np.float32))).reshape(()))
    return value.expand([int(n) for n in shape.tolist()]).clone()


def _div(a: Attributes, left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=a.get("approximate", "none"))


def _hard_sigmoid(a: Attributes, x: Tensor) -> Tensor:
    return torch.clamp(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0.0, 1.0)


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _plain(call: Callable[..., Any]) -> Operator:
    """An operator without attributes."""
    return lambda a, *inputs: call(*inputs)


def _chained(call: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Sum, Min, Max: any number of inputs."""

    def chain(a: Attributes, first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = call(first, other)
        return first

    return chain


OPERATORS: dict[str, Operator] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _div,
    "Dropout": lambda a, x, *_: x,
    "Einsum": lambda a, *xs: torch.einsum(a["equation"], *xs),
    "Elu": lambda a, x: functional.elu(x, a.get("alpha", 1.0)),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda a, x: x.mean(_spatial(x), keepdim=True),
    "GlobalMaxPool": lambda a, x: x.amax(_spatial(x), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "LogSoftmax": lambda a, x: functional.log_softmax(x, a.get("axis", -1)),
    "MatMul": _plain(torch.matmul),
    "Max": _chained(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _chained(torch.minimum),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _plain(torch.pow),
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceL2": _reduction(torch.linalg.vector_norm),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "Relu": _plain(functional.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "Softplus": _plain(functional.softplus),
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Sum": _chained(torch.add),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
