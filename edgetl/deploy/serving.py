"""The stage behind `edgetl deploy --emit`: which graph is served, what DeepStream's resize costs it, and the files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetl.bench import BenchData
from edgetl.bench.resize import ResizeCost, resize_cost
from edgetl.bundle import Bundle
from edgetl.deploy.emit import emit, parse_kinds, served, texts_of
from edgetl.deploy.emit.served import check_name
from edgetl.errors import DataError
from edgetl.graph.reference import reference_backend
from edgetl.images.of_bundle import open_data
from edgetl.measure import task_of
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import InputKind, Precision, Profile

_UNMEASURED = "what DeepStream's resize costs was not measured: "


@dataclass(frozen=True)
class ServingOptions:
    """`kinds` as `--emit` takes them. `prove`: the split that DeepStream's resize is measured on, or "none"."""

    kinds: str
    to: Path
    precision: Precision = Precision.FP16
    backend: str = "tensorrt"
    name: str | None = None
    prove: str = "test"
    data: str | None = None


def write_serving(path: Path, options: ServingOptions, monitor: Monitor = SILENT) -> dict[str, Any]:
    """{"files"}, and with deepstream {"rows", "resize"}: the row of its resize, which the bundle keeps too.

    Raises InputError (an unknown kind; a target that cannot express the bundle), BundleError, DiskError.
    """
    kinds = parse_kinds(options.kinds)
    bundle = Bundle.open(path)
    record = _record(bundle, options)
    model = served(bundle, options.precision, Profile(record["profile"]), InputKind(record["input"]))
    model = replace(model, name=check_name(options.name) or model.name)
    texts_of(kinds, model)  # what cannot be said is told before anything is measured
    found: dict[str, Any] = {}
    if "deepstream" in kinds:
        cost = _cost(bundle, record, options, monitor)
        found = {"rows": [cost.row.to_json()] if cost else [], "resize": cost.alone if cost else None}
        model = replace(model, remark=_said(cost) if cost else _UNMEASURED + "no test images here")
    return {"files": [str(file) for file in emit(kinds, model, options.to)], **found}


def _record(bundle: Bundle, options: ServingOptions) -> Mapping[str, Any]:
    """The newest graph of this precision for the runtime that is asked for; of a bundle without one: what it has."""
    kept = [r for r in bundle.artifacts("graph", precision=options.precision) if not r.get("stale")]
    cpu = options.backend == "onnxruntime"
    fitting = [r for r in kept if (r["profile"] == Profile.CPU) == cpu] or kept
    return fitting[-1] if fitting else {"profile": Profile.TRT10, "input": InputKind.FLOAT32}  # `served` says it


def _cost(bundle: Bundle, record: Mapping[str, Any], options: ServingOptions, monitor: Monitor) -> ResizeCost | None:
    if options.prove not in ("test", "val"):
        return None
    try:
        dataset, samples, split = open_data(bundle, options.prove, options.data)
    except DataError as error:
        if options.data is not None:
            raise
        monitor.warn(_UNMEASURED + str(error))
        return None
    images = BenchData(dataset.root, samples, split, bundle.preprocess, bundle.labels)
    return behind_deepstream(bundle, record, images, monitor)


def behind_deepstream(
    bundle: Bundle, record: Mapping[str, Any], images: BenchData, monitor: Monitor = SILENT
) -> ResizeCost:
    """What DeepStream's resize costs a recorded graph on `images`; the row is kept in the bundle.

    Raises InputError where the bundle's Preprocess is not a stretch, DataError.
    """
    graph, reference = OrtBackend(bundle.file(record)), reference_backend(bundle)
    try:
        cost = resize_cost(graph, record, reference, images, task_of(bundle.manifest), monitor=monitor)
    finally:
        graph.close()
        reference.close()
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    bundle.append_rows("bench", [json.dumps({"at": at, "resize": cost.alone, **cost.row.to_json()})])
    bundle.append_rows("environments", [json.dumps({"at": at, **cost.environment})])
    return cost


def _said(cost: ResizeCost) -> str:
    low, high = cost.alone["drop_ci_pp"]
    return (
        f"DeepStream's resize, emulated: accuracy {cost.alone['own_accuracy']:.4f} -> {cost.row.accuracy:.4f} on "
        f"{cost.row.n_images} {cost.row.split} images, "
        f"drop {cost.alone['drop_pp']:+.2f} points [{low:+.2f}, {high:+.2f}]"
    )
