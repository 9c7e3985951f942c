"""Small, exact operations on ONNX graphs: tidy, change the opset, put ends on, write. No arithmetic changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxslim
from onnx import TensorProto, defs, helper, numpy_helper, version_converter

from edgetl.errors import DiskError, GraphError, disk_errors
from edgetl.spec import InputKind, Precision, Preprocess, Profile

INPUT, LOGITS, PROBABILITIES = "image", "logits", "probabilities"
_BATCH = "batch"
_IR_VERSION = {Profile.TRT8: 8, Profile.TRT10: 9, Profile.CPU: 9}  # ONNX 1.12 and 1.14: what each side's parser knows


def load(path: Path) -> onnx.ModelProto:
    """The model in `path`, weights inside. Raises GraphError when it is not an ONNX file."""
    try:
        return onnx.load(str(path))
    except FileNotFoundError:
        raise GraphError("no such ONNX file", path) from None
    except Exception as error:  # onnx reports a broken file as DecodeError, ValidationError, UnicodeError, ...
        raise GraphError("not an ONNX file", f"{path} ({error})") from error


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Check `model` and write it: the same model gives the same bytes. Raises GraphError, DiskError."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphError("onnx.checker refuses the graph", f"{path.name} ({error})") from error
    data = model.SerializeToString(deterministic=True)
    if len(data) >= 2**31:
        raise GraphError("the graph is over 2 GiB", path.name, "use a smaller backbone")
    with disk_errors(path):
        try:
            path.write_bytes(data)
        except FileNotFoundError as error:
            raise DiskError("the folder for the graph is gone", path.parent) from error
    return path


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A deep copy."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    return out


def unshared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no two uses read the same initialiser, so that one layer's weights can change alone.

    Exporters and onnxslim join initialisers of equal content, such as biases that are all zero.
    """
    out = copy_of(model)
    constants = {tensor.name: tensor for tensor in out.graph.initializer}
    taken = {name for node in out.graph.node for name in (*node.input, *node.output)}
    seen: set[str] = set()
    for node in out.graph.node:
        for index, name in enumerate(node.input):
            if name in constants and name in seen:
                twin = out.graph.initializer.add()
                twin.CopyFrom(constants[name])
                twin.name = node.input[index] = _free(f"{name}_of_{node.name}", taken)
            seen.add(name)
    return out


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default operator set."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` folded by onnxslim, every node named, and nothing in it that tells who made it, where or when."""
    try:
        slim = onnxslim.slim(model)
    except Exception as error:  # onnxslim raises whatever a malformed or exotic graph trips it into
        raise GraphError("the graph cannot be simplified", f"{type(error).__name__}: {error}") from error
    return anonymous(slim)


def anonymous(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without producer, paths, doc strings and stale shapes; constants as initialisers, nodes named."""
    out = copy_of(model)
    out.producer_name, out.producer_version, out.doc_string, out.domain = "edgetl", "", "", ""
    out.model_version = 0
    out.ClearField("metadata_props")
    out.graph.name, out.graph.doc_string = "classifier", ""
    del out.graph.value_info[:]
    _constants_to_initialisers(out.graph)
    taken: set[str] = set()
    for node in out.graph.node:
        node.doc_string = ""
        node.ClearField("metadata_props")
        node.name = _free(node.name or f"{node.op_type}_{node.output[0]}", taken)
    for tensor in out.graph.initializer:
        tensor.doc_string = ""
    for value in (*out.graph.input, *out.graph.output):
        value.doc_string = ""
        value.ClearField("metadata_props")
    _sort_initialisers(out.graph)
    return out


def _constants_to_initialisers(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is None:
            kept.append(node)
        else:
            value.t.name = node.output[0]
            graph.initializer.append(value.t)
    del graph.node[:]
    graph.node.extend(kept)


def _sort_initialisers(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    tensors = sorted((t for t in graph.initializer if t.name in used), key=lambda t: t.name)
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _free(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate)
    return candidate


_WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"))


def broken_weight(model: onnx.ModelProto) -> str | None:
    """The first constant that holds NaN, or the first weight of a product that holds inf; None where all is well.

    An inf elsewhere may be meant: attention masks hold it.
    """
    weights = {name for node in model.graph.node if node.op_type in _WEIGHTED for name in node.input}
    held = [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    for tensor in (*model.graph.initializer, *held):
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and (np.isnan(values).any() or (tensor.name in weights and np.isinf(values).any())):
            return tensor.name or "a constant"
    return None


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """`model` at `opset` or above, through ONNX's own converter (which is sound upwards). Raises GraphError."""
    if opset_of(model) >= opset:
        return copy_of(model)
    try:
        return anonymous(version_converter.convert_version(model, opset))
    except (RuntimeError, ValueError) as error:
        raise GraphError(f"ONNX cannot raise the graph to opset {opset}", error) from error


def lowered(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """`model` relabelled to a lower opset, allowed only where every operator means the same in both.

    ONNX's converter yields broken models downwards, so nothing is converted. Raises GraphError naming
    the first operator whose definition changed in between.
    """
    out = copy_of(model)
    current = opset_of(out)
    if current <= opset:
        return out
    for node in out.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise GraphError("an operator outside ONNX", f"{node.domain}.{node.op_type} ({node.name})")
        versions = [_since(node.op_type, version) for version in (opset, current)]
        if versions[0] != versions[1]:
            raise GraphError(
                f"the graph cannot be written at opset {opset}: an operator changed since",
                f"{node.op_type} ({node.name}), last changed in opset {versions[1]}",
                "export the model with a lower opset, or use --target jetpack6",
            )
    for entry in out.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return out


def _since(op_type: str, opset: int) -> int:
    try:
        return int(defs.get_schema(op_type, opset, "").since_version)
    except defs.SchemaError:
        return 0


def with_ends(
    model: onnx.ModelProto, kind: InputKind, probabilities: bool, temperature: float | None = None
) -> onnx.ModelProto:
    """`model` (float32 NCHW in, logits out) with another input or a Softmax at its end, of logits / `temperature`.

    uint8 NHWC is cast first and transposed then: TensorRT refuses to transpose uint8.
    """
    out = copy_of(model)
    graph = out.graph
    if kind is InputKind.UINT8:
        _, channels, height, width = (d.dim_value for d in graph.input[0].type.tensor_type.shape.dim)
        inner = "image_nchw"
        for node in graph.node:
            node.input[:] = [inner if name == INPUT else name for name in node.input]
        front = [
            helper.make_node("Cast", [INPUT], ["image_float"], name="image_cast", to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["image_float"], [inner], name="image_transpose", perm=[0, 3, 1, 2]),
        ]
        nodes = front + list(graph.node)
        del graph.node[:], graph.input[:]
        graph.node.extend(nodes)
        graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [_BATCH, height, width, channels]))
    if probabilities:
        shape = [_BATCH, graph.output[0].type.tensor_type.shape.dim[1].dim_value]
        last = LOGITS
        if temperature is not None:
            graph.initializer.append(numpy_helper.from_array(np.float32(1 / temperature).reshape(1, 1), "inverse_t"))
            graph.node.append(helper.make_node("Mul", [LOGITS, "inverse_t"], ["logits_calibrated"], name="calibrate"))
            last = "logits_calibrated"
        graph.node.append(helper.make_node("Softmax", [last], [PROBABILITIES], name="softmax", axis=1))
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, shape))
    return out


def with_normalisation(model: onnx.ModelProto, spec: Preprocess) -> onnx.ModelProto:
    """`model`, which takes normalised float32 NCHW, as one that takes 0-255: (x - 255 mean) / (255 std) in front."""
    out = copy_of(model)
    graph, inner = out.graph, "image_normalised"
    for node in graph.node:
        node.input[:] = [inner if name == INPUT else name for name in node.input]
    for name, values in (("image_mean", spec.mean), ("image_std", spec.std)):
        array = np.asarray(values, dtype=np.float64).reshape(1, 3, 1, 1) * 255.0
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    front = [
        helper.make_node("Sub", [INPUT, "image_mean"], ["image_centred"], name="image_sub"),
        helper.make_node("Div", ["image_centred", "image_std"], [inner], name="image_div"),
    ]
    nodes = front + list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    _sort_initialisers(graph)
    return out


def finished(
    model: onnx.ModelProto,
    profile: Profile,
    precision: Precision,
    labels: list[str],
    spec: Preprocess,
    temperature: float | None = None,
) -> onnx.ModelProto:
    """`model` as it ships: IR version of its profile, metadata_props with labels, Preprocess and precision."""
    out = anonymous(model)
    out.ir_version = _IR_VERSION[profile]
    used = {node.domain for node in out.graph.node}
    imports = [o for o in out.opset_import if o.domain in used or o.domain in ("", "ai.onnx")]
    out.ClearField("opset_import")
    out.opset_import.extend(imports)
    values = {
        "labels": json.dumps(labels, ensure_ascii=False),
        "precision": str(precision),
        "preprocess": json.dumps(spec.to_json(), sort_keys=True),
        "profile": str(profile),
        **({} if temperature is None else {"temperature": repr(temperature)}),
    }
    for key, value in values.items():
        out.metadata_props.add(key=key, value=value)
    return out


def io_named(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` (one input, one output) with both called what a bundle's graphs call them and a free batch axis."""
    out = copy_of(model)
    graph = out.graph
    weights = {t.name for t in graph.initializer}
    data_inputs = [value for value in graph.input if value.name not in weights]
    old_in, old_out = data_inputs[0].name, graph.output[0].name
    del graph.input[:]
    graph.input.extend(data_inputs)
    swap = {old_in: INPUT, old_out: LOGITS}
    clash = {INPUT, LOGITS} - {old_in, old_out}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [swap.get(n, n + "_inner" if n in clash else n) for n in names]
    for tensor in graph.initializer:
        tensor.name = tensor.name + "_inner" if tensor.name in clash else tensor.name
    graph.input[0].name, graph.output[0].name = INPUT, LOGITS
    for value in (graph.input[0], graph.output[0]):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        dim.dim_param = _BATCH
    return out
