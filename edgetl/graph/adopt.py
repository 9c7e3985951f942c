"""`edgetl adopt`: an ONNX classifier from elsewhere becomes a bundle whose reference is that FP32 graph."""

from __future__ import annotations

import json
import platform
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from edgetl.bundle import NewArtifact, atomic_write, canonical_json, create, files, locked, sha256_file
from edgetl.errors import BackendError, GraphError, InputError, ParityError
from edgetl.graph import surgery
from edgetl.graph.calibrate import is_constant
from edgetl.graph.parity import parity
from edgetl.graph.reference import ADOPTED
from edgetl.images import Dataset, ReadOptions, Sample, read_data, split_digest, stream, to_batch
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import run_pixels
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Preprocess
from edgetl.transfer.record import TOLERANCES, drawn

_OLDEST_OPSET = 13  # below it Q/DQ have no channel axis; ONNX's converter lifts older graphs
_SAME = 1e-3  # of the spread of the logits: folding the normalisation in may move them by rounding only


@dataclass(frozen=True)
class AdoptOptions:
    """The options of `edgetl adopt`. `data`: DATA for splits, calibration set and golden images."""

    model: Path
    labels: Path
    preprocess: Path
    data: str | None = None
    overwrite: bool = False
    seed: int = 0


def adopt(to: Path, options: AdoptOptions, monitor: Monitor = SILENT) -> dict[str, Any]:
    """Check the graph, the labels and the Preprocess, and make the bundle `to`; returns a plain dict.

    Raises InputError and its kin for whatever does not fit, GraphError for a graph that does not run.
    """
    labels = read_labels(options.labels)
    spec = read_preprocess(options.preprocess)
    original = surgery.load(options.model)
    wanted = checked(original, labels, spec, options.model)
    data = _read(options.data, labels, options.seed)
    with locked(to) as work:
        scratch = work / "adopt"
        files.sweep(scratch)
        scratch.mkdir()
        try:
            ready = surgery.with_normalisation(wanted, spec)
            path = surgery.save(surgery.anonymous(ready), scratch / "source.onnx")
            _prove(wanted, path, spec, len(labels), scratch)
            new = [_graph(path), *(_golden(data, path, spec, scratch, monitor) if data else [])]
            manifest = _manifest(options, labels, spec, data[0] if data else None, ready)
            local = {"data": str(data[0].root)} if data else {}
            create(
                to, manifest, new, {**local, "model": str(options.model), "host": platform.node()}, options.overwrite
            )
        finally:
            files.sweep(scratch)
    counts = {name: len(data[0].split(name)) if data else 0 for name in ("train", "val", "test", "calibration")}
    return {"bundle": str(to), "labels": labels, "opset": surgery.opset_of(ready), "n": counts}


def read_labels(path: Path) -> list[str]:
    """Labels in class order: a .json list, or text with one a line. Raises InputError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the labels cannot be read", f"{path} ({error})", "one label a line, UTF-8") from error
    found: Any = text.splitlines()
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InputError(
                "the labels are not JSON", f"{path} ({error})", "a list of names, or a text file of one a line"
            ) from error
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise InputError("the labels are not a list of names", path, 'write ["cat", "dog"], or one a line')
    labels = [unicodedata.normalize("NFC", item.strip()) for item in found]
    while labels and not labels[-1]:
        labels.pop()  # the newline at the end of a text file
    for index, label in enumerate(labels):
        if not label or label in labels[:index]:
            raise InputError(
                "an empty or repeated label",
                f"{label!r}, line {index + 1} of {path}",
                "one label a line, each of its own",
            )
    if len(labels) < 2:
        raise InputError(
            "a classifier wants at least two labels", path, "one label a line, in the order of the outputs"
        )
    return labels


def read_preprocess(path: Path) -> Preprocess:
    """A Preprocess from a JSON file. Raises InputError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("the Preprocess cannot be read", f"{path} ({error})", "it is a JSON object") from error
    if not isinstance(data, dict):
        raise InputError("the Preprocess is not a JSON object", path, 'for example {"size": 224, "resize": 256}')
    return Preprocess.from_json(data)


def checked(model: onnx.ModelProto, labels: Sequence[str], spec: Preprocess, name: Path) -> onnx.ModelProto:
    """`model` as a source graph without its normalisation: named ends, free batch, opset 13 or above, logits out.

    Raises InputError for a graph that is not a float32 NCHW classifier with len(labels) outputs.
    """
    _check_nodes(model, name)
    _check_ends(model, name)
    batch = _fixed_batch(model)
    out = surgery.io_named(surgery.raised(model, _OLDEST_OPSET))
    _set_size(out, spec.size, name)
    if batch is not None:
        _free_reshapes(out, batch)
    out = surgery.tidied(_without_softmax(out))
    _check_classes(out, labels, name)
    return out


def _check_nodes(model: onnx.ModelProto, name: Path) -> None:
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear") or (
            node.op_type.startswith("QLinear") or node.op_type.endswith("Integer")
        ):
            raise InputError(
                "the graph is quantised already",
                f"{node.op_type} {node.name or node.output[0]} in {name}",
                "adopt the fp32 model instead",
            )
        if node.domain not in ("", "ai.onnx"):
            raise InputError(
                "an operator outside ONNX",
                f"{node.domain}.{node.op_type} in {name}",
                "use ONNX's own",
            )
    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    lowered = next((t.name for t in model.graph.initializer if t.data_type in half), None)
    if lowered is not None:
        raise InputError("the graph is not fp32", f"{lowered} in {name}", "adopt the fp32 model instead")
    broken = surgery.broken_weight(model)
    if broken is not None:
        raise InputError("a weight holds NaN or inf", f"{broken} in {name}", "train or export the model again")


def _check_ends(model: onnx.ModelProto, name: Path) -> None:
    inputs, outputs = _inputs(model), list(model.graph.output)
    if len(inputs) != 1 or len(outputs) != 1:
        raise InputError(
            "a classifier has one input and one output",
            f"{len(inputs)} and {len(outputs)} in {name}",
            "export the graph with its logits alone",
        )
    tensor = inputs[0].type.tensor_type
    dims = [d.dim_value for d in tensor.shape.dim]
    if tensor.elem_type != TensorProto.FLOAT or len(dims) != 4 or dims[1] not in (0, 3):
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise InputError(
            "the input is not float32 (N, 3, H, W)",
            f"{inputs[0].name}: {kind} {dims} in {name}",
            "export the model with channels first (NCHW), RGB",
        )


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {t.name for t in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _fixed_batch(model: onnx.ModelProto) -> int | None:
    dim = _inputs(model)[0].type.tensor_type.shape.dim[0]
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None


def _set_size(model: onnx.ModelProto, size: int, name: Path) -> None:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, want in ((dims[1], 3), (dims[2], size), (dims[3], size)):
        if dim.dim_value not in (0, want):
            raise InputError(
                "the graph takes another image size than the Preprocess says",
                f"{[d.dim_value for d in dims[1:]]} and {size} in {name}",
                "give the graph's size in the Preprocess",
            )
        dim.Clear()
        dim.dim_value = want


def _free_reshapes(model: onnx.ModelProto, batch: int) -> None:
    """A Reshape to a constant (batch, ...) becomes one to (the input's own batch, ...): ONNX's 0."""
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape"}
    constants = [t for t in model.graph.initializer if t.name in shapes]
    constants += [
        a.t
        for node in model.graph.node
        if node.op_type == "Constant" and node.output[0] in shapes
        for a in node.attribute
    ]
    for tensor in constants:
        values = numpy_helper.to_array(tensor).copy()
        if values.ndim == 1 and len(values) > 1 and values[0] == batch:
            values[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _without_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """A Softmax at the very end goes: the contract is about logits (`export --output probabilities` puts it back)."""
    graph = model.graph
    last = next((node for node in graph.node if surgery.LOGITS in node.output), None)
    if last is None or last.op_type != "Softmax":
        return model
    inner = last.input[0]
    graph.node.remove(last)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [surgery.LOGITS if n == inner else n for n in names]
    return model


def _check_classes(model: onnx.ModelProto, labels: Sequence[str], name: Path) -> None:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    dims = [d.dim_value for d in inferred.graph.output[0].type.tensor_type.shape.dim]
    if len(dims) != 2 or dims[1] not in (0, len(labels)):
        raise InputError(
            "the graph's output is not one logit a label",
            f"{dims} and {len(labels)} labels in {name}",
            "check --labels",
        )
    shape = model.graph.output[0].type.tensor_type.shape
    shape.Clear()
    shape.dim.add(dim_param="batch")
    shape.dim.add(dim_value=len(labels))


def _prove(original: onnx.ModelProto, path: Path, spec: Preprocess, classes: int, scratch: Path) -> None:
    """Folding the normalisation in changed nothing, the batch axis is free, and the answer depends on the image.

    On seeded noise, black and white, in batches of 1 and 5: this compares two graphs and measures no accuracy.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (5, spec.size, spec.size, 3), dtype=np.uint8)
    pixels[3], pixels[4] = 0, 255
    images = to_batch(pixels, "float32")
    mean, std = (np.array(v, dtype=np.float32).reshape(1, 3, 1, 1) for v in (spec.mean, spec.std))
    plain = OrtBackend(surgery.save(original, scratch / "plain.onnx"), simulate=False)
    ours = OrtBackend(path, simulate=False)
    try:
        given = ours.run(images)
        single = np.concatenate([plain.run((image[None] / 255 - mean) / std) for image in images])
    except BackendError as error:
        raise GraphError(
            "the graph does not run with any batch size", error, "export it with a dynamic batch"
        ) from error
    if given.shape[1:] != (classes,):
        raise InputError(
            "the graph's output is not one logit a label",
            f"{given.shape[1:]} and {classes} labels",
            "give as many labels as the graph has outputs",
        )
    if not np.isfinite(given).all():
        raise GraphError("the graph gives NaN or inf", "on noise, black or white", "check the model and --preprocess")
    moved = parity(single, given).relative if single.shape == given.shape else float("inf")
    if not moved <= _SAME:
        raise ParityError(
            "the graph answers otherwise in another batch size, or with its normalisation folded in",
            f"by {moved:.2%} of the logits' spread",
            "export it with a dynamic batch",
        )
    if is_constant(given):
        raise GraphError(
            "the graph gives the same answer whatever it sees",
            "noise, black and white",
            "it was not trained, or its weights or --preprocess are broken",
        )


Held = tuple[Dataset, list[Sample]]


def _read(source: str | None, labels: Sequence[str], seed: int) -> Held | None:
    if source is None:
        return None
    return drawn(read_data(source, ReadOptions(seed=seed, labels=tuple(labels))), seed)


def _graph(path: Path) -> NewArtifact:
    return NewArtifact(path, "graphs/source-{sha12}.onnx", {"kind": ADOPTED, "made_by": "adopt", "precision": "fp32"})


def _golden(held: Held, graph: Path, spec: Preprocess, scratch: Path, monitor: Monitor) -> list[NewArtifact]:
    data, golden = held
    pixels = np.concatenate([b.pixels for b in stream(data.root, golden, spec, 8)])
    backend = OrtBackend(graph, simulate=False)
    new = [
        _array(scratch, "pixels", pixels),
        _array(scratch, "logits", run_pixels(backend, pixels, 1)),
        _json(scratch, data),
    ]
    for index, sample in enumerate(golden):
        path = data.root / sample.path
        record = {"kind": "golden-image", "made_by": "adopt", "index": index, "label": sample.target}
        new.append(NewArtifact(path, f"golden/images/{index:02}-{{sha12}}{path.suffix.lower()}", record))
    monitor.progress("golden images", len(golden), len(golden))
    return new


def _array(scratch: Path, what: str, array: npt.NDArray[Any]) -> NewArtifact:
    path = scratch / f"{what}.npy"
    np.save(path, array)
    return NewArtifact(path, f"golden/{what}-{{sha12}}.npy", {"kind": "golden-" + what, "made_by": "adopt"})


def _json(scratch: Path, data: Dataset) -> NewArtifact:
    path = scratch / "splits.json"
    atomic_write(path, canonical_json(data.to_json()))
    return NewArtifact(path, "splits-{sha12}.json", {"kind": "splits", "made_by": "adopt"})


def _manifest(
    options: AdoptOptions, labels: list[str], spec: Preprocess, data: Dataset | None, ready: onnx.ModelProto
) -> dict[str, Any]:
    splits = data.splits if data else {}
    return {
        "task": "classification",
        "made_by": "adopt",
        "labels": labels,
        "preprocess": spec.to_json(),
        "model": {
            "backbone": "adopted",
            "file": options.model.name,
            "sha256": sha256_file(options.model),
            "opset": surgery.opset_of(ready),
            "num_classes": len(labels),
        },
        "splits": {name: {"n": len(found), "digest": split_digest(found)} for name, found in splits.items()},
        "tolerances": TOLERANCES,
        "training": {},
    }
