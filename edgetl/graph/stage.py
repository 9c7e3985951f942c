"""`edgetl export`: the order of the work, and what of it is recorded in the bundle."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgetl import engine
from edgetl.bundle import Bundle, writing
from edgetl.errors import BundleError, ContractUnmet, DataError
from edgetl.graph import guard as guards
from edgetl.graph.calibrate import Statistics, outside_float16
from edgetl.graph.int8 import calibrate, int8
from edgetl.graph.options import ExportOptions
from edgetl.graph.parity import golden
from edgetl.graph.quantise import Calibrated
from edgetl.graph.reference import based_on, reference_backend, source_of
from edgetl.graph.run import Run, decode
from edgetl.graph.sets import ImageSet, ImageSets, image_sets
from edgetl.graph.worker import worker
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import run_pixels
from edgetl.spec import Precision, Profile

_PROOF_IMAGES = 32


def export(path: Path, options: ExportOptions | None = None, monitor: Monitor = SILENT) -> dict[str, Any]:
    """Write the graphs that `options` ask for into the bundle at `path`; returns the JSON object of cli.md.

    All of them are recorded in one step at the end, so a killed export leaves the bundle as it was.
    Raises InputError and its kin before any work; GraphError, ParityError; ContractUnmet (with the full
    object as `result`, graphs kept) where the INT8 graph misses the contract and not `allow_unmet`.
    """
    started = time.monotonic()
    options = options or ExportOptions()
    with writing(path, "export") as (bundle, scratch), ExitStack() as stack:
        if options.calibrated and not bundle.manifest.get("confidence"):
            do = "make it again with this edgetl's finetune, or leave --calibrated out"
            raise BundleError("the bundle knows no temperature", bundle.path, do)
        sets = image_sets(bundle, options)
        for remark in sets.remarks:
            monitor.warn(remark)
        lowered = options.fp16 or options.int8
        # modelopt takes seconds to import: the child does so while this process exports and decodes.
        child = stack.enter_context(worker(scratch)) if lowered and options.profile is not Profile.TRT8 else None
        child = stack.enter_context(worker(scratch)) if options.int8 and child is None else child
        source = source_of(bundle, scratch, options.profile)
        run = Run(bundle, scratch, options, monitor, sets, source, _proof(bundle, scratch, sets, options), child)
        _make_graphs(run)
        records = bundle.add(run.new)
    result = {
        "artifacts": [_shown(r) for r in records if r["kind"] == "graph"],
        "guard": run.guard,
        "seconds": round(time.monotonic() - started, 3),
    }
    if run.guard is not None and not run.guard["met"] and not options.allow_unmet:
        raise ContractUnmet(*guards.refusal(run.guard), result=result)
    return result


def _make_graphs(run: Run) -> None:
    base = based_on(run.source, run.profile)
    _finish(run, base, Precision.FP32, {})
    if not run.options.fp16 and not run.options.int8:
        return
    found = calibrate(run)
    _fp16(run, base, found.statistics if isinstance(found, Calibrated) else found)
    if isinstance(found, Calibrated) and run.options.int8:
        int8(run, found)


def _fp16(run: Run, base: onnx.ModelProto, statistics: Statistics) -> None:
    if run.profile is Profile.TRT8:
        # AutoCast needs opset 19, which TensorRT 8 does not read: there FP16 is a flag of the build.
        _finish(run, base, Precision.FP16, {"build_flags": ["FP16"], "arithmetic": "fp32 graph, FP16 by build flag"})
        return
    assert run.child is not None
    kept = list(outside_float16(base, statistics.peaks))
    if kept:
        run.monitor.say(f"{len(kept)} nodes stay FP32: values outside float16's range (range-checked, not simulated)")
    _finish(run, run.child.fp16(base, kept), Precision.FP16, {"kept_fp32": kept, "range_check": "calibration peaks"})


def _finish(run: Run, graph: onnx.ModelProto, precision: Precision, extra: dict[str, Any]) -> None:
    model, path = run.shipped(graph, precision)
    if run.profile is not Profile.CPU and not engine.missing():
        engine.check_parses(path)  # an operator that TensorRT lacks is told before any calibration
    run.record(model, path, precision, extra)


def _proof(
    bundle: Bundle, scratch: Path, sets: ImageSets, options: ExportOptions
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """The golden images and logits; an adopted bundle without any is proved on images of `--calib`."""
    found = golden(bundle)
    if found is not None:
        return found
    if sets.calibration is None:
        raise DataError("the bundle has no golden images to check a graph with", bundle.path, "give --calib DATA")
    images = ImageSet(sets.calibration.root, sets.calibration.samples[:_PROOF_IMAGES], "proof")
    pixels = decode(bundle, scratch, "proof", images, SILENT).first(len(images.samples))
    backend = reference_backend(bundle, options.threads)
    try:
        return pixels, run_pixels(backend, pixels, 8)
    finally:
        backend.close()


_SHOWN = ("kind", "profile", "precision", "input", "file", "sha256", "bytes", "opset", "parity", "int8_macs_share")


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in _SHOWN}
