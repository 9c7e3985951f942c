"""What every drop and parity is measured against: the checkpoint in PyTorch fp32, or the adopted fp32 graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from edgetl.bundle import Bundle
from edgetl.errors import BundleError, GraphError
from edgetl.graph import surgery
from edgetl.graph.export import check_profile, source_graph
from edgetl.runtime import Backend
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Profile
from edgetl.transfer.network import TorchBackend

ADOPTED = "source-graph"


def origin(bundle: Bundle) -> dict[str, Any]:
    """The record of what the bundle's graphs are made from. Raises BundleError."""
    for kind in ("checkpoint", ADOPTED):
        found = bundle.artifacts(kind)
        if found:
            return found[-1]
    raise BundleError("the bundle has neither a checkpoint nor an adopted graph", bundle.path)


def reference_backend(bundle: Bundle, threads: int = 0) -> Backend:
    """TorchBackend on the checkpoint; OrtBackend on the fp32 graph of an adopted bundle."""
    record = origin(bundle)
    if record["kind"] == ADOPTED:
        return OrtBackend(bundle.file(record), threads=threads, simulate=False)
    return TorchBackend(bundle, threads=threads)


def source_of(bundle: Bundle, scratch: Path, profile: Profile) -> onnx.ModelProto:
    """The float32 NCHW 0-255 source graph, whatever the bundle was made from. Raises GraphError, BackboneError."""
    record = origin(bundle)
    if record["kind"] == ADOPTED:
        source = surgery.anonymous(surgery.load(bundle.file(record)))
    else:
        check_profile(bundle, profile)
        source = source_graph(bundle, scratch)
    broken = surgery.broken_weight(source)
    if broken is not None:
        raise GraphError("a weight holds NaN or inf", f"{broken} of {record['file']}", "train or adopt the model again")
    return source


def based_on(source: onnx.ModelProto, profile: Profile) -> onnx.ModelProto:
    """`source` at the opset of `profile`: as it is where that is at most 17 (trt8), else 19 or 20."""
    if profile is Profile.TRT8:
        return surgery.lowered(source, 17)  # what the parsers of TensorRT 8.5 and 8.6 read
    return surgery.lowered(surgery.raised(source, 19), 20)  # TensorRT 10.3 reads up to 20
