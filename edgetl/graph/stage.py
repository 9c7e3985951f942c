"""`edgetl export`: the order of the work, and what of it is recorded in the bundle."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgetl.bundle import Bundle, NewArtifact, canonical_json, sha256_bytes, writing
from edgetl.errors import ContractUnmet, DataError, GraphError
from edgetl.graph import guard as guards
from edgetl.graph import qdq, surgery
from edgetl.graph.calibrate import Statistics, overflowing
from edgetl.graph.nvidia import int8_coverage
from edgetl.graph.options import ExportOptions
from edgetl.graph.parity import Parity, centred, check_relative, golden, parity, run_graph, tolerance
from edgetl.graph.pixels import Pixels, logits_of
from edgetl.graph.quantise import Calibrated, best_method, calibrated, placed
from edgetl.graph.reference import based_on, origin, reference_backend, source_of
from edgetl.graph.sets import ImageSet, ImageSets, image_sets
from edgetl.graph.worker import Worker, worker
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import run_pixels
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Precision, Profile

_PROOF_IMAGES = 32
_TOOLS = ("torch", "onnx", "onnxruntime", "onnxslim", "nvidia-modelopt")


@dataclass
class _Run:
    """One export under way. `proof`: pixels and reference logits that every graph is checked on."""

    bundle: Bundle
    scratch: Path
    options: ExportOptions
    monitor: Monitor
    sets: ImageSets
    source: onnx.ModelProto
    proof: tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
    child: Worker | None = None
    new: list[NewArtifact] = field(default_factory=list)
    guard: dict[str, Any] | None = None
    pixels: dict[str, Pixels] = field(default_factory=dict)

    @property
    def profile(self) -> Profile:
        return self.options.profile

    def decoded(self, name: str) -> Pixels:
        """The images of one of the sets, decoded on first use."""
        if name not in self.pixels:
            found: ImageSet | None = getattr(self.sets, name)
            assert found is not None  # image_sets drew whatever the options need
            self.pixels[name] = _decode(self.bundle, self.scratch, name, found, self.monitor)
        return self.pixels[name]


def export(path: Path, options: ExportOptions | None = None, monitor: Monitor = SILENT) -> dict[str, Any]:
    """Write the graphs that `options` ask for into the bundle at `path`; returns the JSON object of cli.md.

    All of them are recorded in one step at the end, so a killed export leaves the bundle as it was.
    Raises InputError and its kin before any work; GraphError, ParityError; ContractUnmet (with the full
    object as `result`, graphs kept) where the INT8 graph misses the contract and not `allow_unmet`.
    """
    started = time.monotonic()
    options = options or ExportOptions()
    with writing(path, "export") as (bundle, scratch), ExitStack() as stack:
        sets = image_sets(bundle, options)
        for remark in sets.remarks:
            monitor.warn(remark)
        lowered = options.fp16 or options.int8
        # modelopt takes seconds to import: the child does so while this process exports and decodes.
        child = stack.enter_context(worker(scratch)) if lowered and options.profile is not Profile.TRT8 else None
        child = stack.enter_context(worker(scratch)) if options.int8 and child is None else child
        source = source_of(bundle, scratch, options.profile)
        run = _Run(bundle, scratch, options, monitor, sets, source, _proof(bundle, scratch, sets, options), child)
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


def _make_graphs(run: _Run) -> None:
    base = based_on(run.source, run.profile)
    _finish(run, base, Precision.FP32, {})
    if not run.options.fp16 and not run.options.int8:
        return
    found = _calibrate(run)
    statistics = found.statistics if isinstance(found, Calibrated) else found
    _fp16(run, base, statistics)
    if isinstance(found, Calibrated):
        _int8(run, base, found)


def _calibrate(run: _Run) -> Calibrated | Statistics:
    """Peaks for the FP16 range check; with INT8 also placement and histograms, reused where they are known."""
    source_digest = sha256_bytes(run.source.SerializeToString(deterministic=True))
    assert run.sets.calibration is not None
    digest = sha256_bytes(canonical_json([s.digest for s in run.sets.calibration.samples]))
    for record in reversed(run.bundle.artifacts("calibration", source=source_digest, images=digest)):
        if record.get("settle") == (run.options.calib_size == "auto"):
            return Calibrated.load(run.bundle.file(record))
    pixels = run.decoded("calibration")
    placement = None
    if run.options.int8:
        assert run.child is not None
        placement = placed(run.source, run.child, pixels)
    settle = run.options.calib_size == "auto" and placement is not None
    statistics = calibrated(run.source, placement, pixels, settle, run.options.threads, run.monitor)
    if placement is None:
        return statistics
    found = Calibrated(placement, statistics)
    file = run.scratch / "calibration.json"
    found.save(file, source_digest, digest)
    record = {"kind": "calibration", "source": source_digest, "images": digest, "n": statistics.n, "settle": settle}
    run.new.append(NewArtifact(file, "calibration-{sha12}.json", {**record, **_common(run)}))
    return found


def _fp16(run: _Run, base: onnx.ModelProto, statistics: Statistics) -> None:
    if run.profile is Profile.TRT8:
        # AutoCast needs opset 19, which TensorRT 8 does not read: there FP16 is a flag of the build.
        _finish(run, base, Precision.FP16, {"build_flags": ["FP16"], "arithmetic": "fp32 graph, FP16 by build flag"})
        return
    assert run.child is not None
    kept = list(overflowing(base, statistics.peaks))
    if kept:
        run.monitor.say(f"{len(kept)} nodes stay FP32: values near float16's limit (range-checked, not simulated)")
    _finish(run, run.child.fp16(base, kept), Precision.FP16, {"kept_fp32": kept, "range_check": "calibration peaks"})


def _int8(run: _Run, base: onnx.ModelProto, found: Calibrated) -> None:
    options = run.options
    method, rungs = best_method(
        run.source, found, options.method, run.decoded("search"), run.scratch, options.threads, run.monitor
    )
    run.monitor.say(f"calibration method: {method} ({found.statistics.n} images)")
    amax = found.ranges(method)
    graph = qdq.inserted(base, found.placement, amax)
    extra: dict[str, Any] = {"method": method, "calibration_images": found.statistics.n}
    if run.profile is Profile.TRT8:
        extra["build_flags"] = ["INT8", "FP16"]
    else:
        assert run.child is not None
        peaks = {**found.statistics.peaks, **{f"{name}_dequantised": peak for name, peak in amax.items()}}
        graph = run.child.fp16(graph, list(overflowing(graph, peaks)))
    model, path = _ends(run, graph, Precision.INT8)
    run.guard = _judge(run, path, rungs)
    share, remarks = int8_coverage(model, path, run.monitor)
    extra.update(met=run.guard["met"], guard=run.guard, int8_macs_share=share, coverage=remarks)
    _record(run, model, path, Precision.INT8, extra)


def _judge(run: _Run, path: Path, rungs: list[guards.Rung]) -> dict[str, Any]:
    """The drop of the shipped graph on the guard's images, against the reference."""
    pixels = run.decoded("guard")
    assert run.sets.guard is not None
    reference = reference_backend(run.bundle, run.options.threads)
    candidate = OrtBackend(path, threads=run.options.threads)
    try:
        expected = logits_of(reference, pixels, run.monitor, "guard: reference")
        given = logits_of(candidate, pixels, run.monitor, "guard: int8 graph")
    finally:
        reference.close()
        candidate.close()
    labelled = run.options.guard == "labels"
    targets = pixels.targets if labelled else expected.argmax(axis=1)
    contract = guards.Contract.of(run.options)
    found = guards.paired(expected, given, targets, contract.max_drop)
    return guards.judge(contract, found, run.bundle.labels, rungs, run.sets.guard.name, candidate.evidence)


def _finish(run: _Run, graph: onnx.ModelProto, precision: Precision, extra: dict[str, Any]) -> None:
    model, path = _ends(run, graph, precision)
    _record(run, model, path, precision, extra)


def _ends(run: _Run, graph: onnx.ModelProto, precision: Precision) -> tuple[onnx.ModelProto, Path]:
    """`graph` with the wanted input, output and metadata, written into the scratch folder."""
    whole = surgery.with_ends(graph, run.options.input, run.options.output == "probabilities")
    model = surgery.finished(whole, run.profile, precision, run.bundle.labels, run.bundle.preprocess)
    return model, surgery.save(model, run.scratch / f"{precision}.onnx")


def _record(run: _Run, model: onnx.ModelProto, path: Path, precision: Precision, extra: dict[str, Any]) -> None:
    """Check a finished graph against the reference on the proof images and add it to what will be recorded."""
    found, logits = _check(run, path, precision)
    record = {
        "kind": "graph",
        "profile": run.profile,
        "precision": precision,
        "input": run.options.input,
        "output": run.options.output,
        "opset": surgery.opset_of(model),
        "parity": found.to_json(),
        "met": None,
        "guard": None,
        "int8_macs_share": None,
        **extra,
        **_common(run),
    }
    own = run.scratch / f"{precision}.npy"
    np.save(own, logits)
    digest = sha256_bytes(path.read_bytes())
    run.new.append(NewArtifact(path, f"graphs/{run.profile}/{precision}-{{sha12}}.onnx", record))
    proof = {"kind": "graph-logits", "made_by": "export", "made_from": digest, "precision": precision}
    # Named by the graph too: two graphs may well give the same logits.
    run.new.append(NewArtifact(own, f"golden/graph-{digest[:12]}-{{sha12}}.npy", proof))


def _check(run: _Run, path: Path, precision: Precision) -> tuple[Parity, npt.NDArray[np.float32]]:
    pixels, reference = run.proof
    logits = run_graph(path, pixels, run.options.threads)
    given = logits
    if run.options.output == "probabilities":
        reference, given = centred(reference), centred(logits)
    found = parity(reference, given)
    if precision is not Precision.INT8:
        check_relative(found, tolerance(run.bundle, precision, "relative"), f"{run.profile}/{precision}")
    if precision is Precision.FP32:
        single = run_graph(path, pixels[:1], run.options.threads)
        if not np.allclose(single, logits[:1], atol=1e-3 * max(1.0, float(np.abs(logits[:1]).max()))):
            raise GraphError("the graph answers otherwise for another batch size", run.profile)
    return found, logits


def _common(run: _Run) -> dict[str, Any]:
    return {
        "made_by": "export",
        "made_from": origin(run.bundle)["sha256"],
        "options": run.options.to_json(),
        "versions": {name: version(name) for name in _TOOLS if _installed(name)},
    }


def _installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False  # onnxruntime goes by onnxruntime-gpu on x86-64
    return True


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
    pixels = _decode(bundle, scratch, "proof", images, SILENT).first(len(images.samples))
    backend = reference_backend(bundle, options.threads)
    try:
        return pixels, run_pixels(backend, pixels, 8)
    finally:
        backend.close()


def _decode(bundle: Bundle, scratch: Path, name: str, found: ImageSet, monitor: Monitor) -> Pixels:
    file = scratch / f"{name}.pixels"
    return Pixels.decoded(file, found.root, found.samples, bundle.preprocess, monitor, f"decode: {name}")


_SHOWN = ("kind", "profile", "precision", "input", "file", "sha256", "bytes", "opset", "parity", "int8_macs_share")


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in _SHOWN}
