"""The INT8 graph of an export: calibrate, climb the ladder, lower the rest, judge what will ship, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgetl.bundle import NewArtifact, canonical_json, sha256_bytes
from edgetl.graph import guard as guards
from edgetl.graph import layers
from edgetl.graph.calibrate import Statistics, outside_float16
from edgetl.graph.candidate import Candidate
from edgetl.graph.cpu import kernels
from edgetl.graph.cpu_qdq import host_weight_bits
from edgetl.graph.ladder import Found, Tools, climb
from edgetl.graph.nvidia import IN_FLOAT, Settled, built, settled, with_whole_pairs
from edgetl.graph.parity import comparable
from edgetl.graph.pixels import graph_logits, logits_of
from edgetl.graph.qat import QatOptions, trained
from edgetl.graph.quantise import Calibrated, calibrated, placed
from edgetl.graph.reference import based_on, reference_backend
from edgetl.graph.run import Run
from edgetl.graph.search import Search, paired
from edgetl.measure.confidence import temperature_of
from edgetl.measure.score import Paired
from edgetl.spec import Precision, Profile

Logits = npt.NDArray[np.float32]
LAYOUT = 2  # of calibration.json: one written by an older edgetl is not read but made again


def calibrate(run: Run) -> Calibrated | Statistics:
    """Peaks for the FP16 range check; with INT8 also placement and histograms, reused where they are known."""
    source_digest = sha256_bytes(run.source.SerializeToString(deterministic=True))
    assert run.sets.calibration is not None
    digest = sha256_bytes(canonical_json([s.digest for s in run.sets.calibration.samples]))
    settle = run.options.calib_size == "auto"
    for record in reversed(run.bundle.artifacts("calibration", source=source_digest, images=digest)):
        if record.get("settle") == settle and record.get("layout") == LAYOUT:
            return Calibrated.load(run.bundle.file(record))
    pixels = run.decoded("calibration")
    if not run.options.int8:
        return calibrated(run.source, None, pixels, False, run.options.threads, run.monitor)
    assert run.child is not None
    placement = placed(run.source, run.child, pixels)
    statistics = calibrated(run.source, placement, pixels, settle, run.options.threads, run.monitor)
    found = Calibrated(placement, statistics)
    file = run.scratch / "calibration.json"
    found.save(file, source_digest, digest)
    known_by = {"source": source_digest, "images": digest, "settle": settle, "layout": LAYOUT}
    record = {"kind": "calibration", "n": statistics.n, **known_by, **run.facts()}
    run.new.append(NewArtifact(file, "calibration-{sha12}.json", record))
    return found


def int8(run: Run, start: Calibrated) -> None:
    """Search for the INT8 network, write its graph, judge that, and add it to what will be recorded."""
    options = run.options
    found = climb(start, run.source, options.method, options.rescue, options.max_drop, _tools(run, start))
    run.monitor.say(f"chosen: {', '.join(found.candidate.steps)} ({start.statistics.n} calibration images)")
    made = settled(
        lambda left_out: run.shipped(_lowered(run, found.candidate.leaving(left_out)), Precision.INT8),
        run.monitor,
        kernels if run.profile is Profile.CPU else built,
    )
    winner = found.candidate.leaving(made.left_out)
    convergence = winner.found.convergence(winner.method)
    if convergence is not None:
        run.monitor.say(f"calibration: {convergence}")
    run.guard = {
        **_judged(run, made.path, found, winner),
        "calibration": {"n": winner.found.statistics.n, "convergence": convergence and convergence.to_json()},
    }
    extra: dict[str, Any] = {
        "method": winner.method,
        "steps": list(winner.steps),
        "calibration_images": start.statistics.n,
        "met": run.guard["met"],
        "guard": run.guard,
        "trained": run.trained,
        "int8_macs_share": None if made.built is None else made.built.int8_macs_share,
        "coverage": made.record(),
    }
    if run.profile is Profile.TRT8:
        extra["build_flags"] = ["INT8", "FP16"]
    if run.profile is Profile.CPU:
        extra["weight_bits"], extra["weight_bits_why"] = host_weight_bits()
    run.record(made.model, made.path, Precision.INT8, extra)
    run.new.append(_xray(run, found, made))


def _xray(run: Run, found: Found, made: Settled) -> NewArtifact:
    """The layers of the INT8 graph, as they are recorded beside it."""
    winner = found.candidate
    why = IN_FLOAT if made.built is None else made.built.in_float
    left = {**dict.fromkeys(winner.in_float, layers.FOR_ACCURACY), **dict.fromkeys(made.left_out, why)}
    precisions = None if made.built is None else made.built.precisions
    calibration = winner.found
    rows = layers.xray(
        winner.source,
        calibration.placement,
        winner.ranges,
        calibration.statistics,
        found.noises,
        found.effects,
        precisions,
        left,
        made.model,
    )
    proxy = None if made.built is None else made.built.evidence
    facts = {**run.facts(), "profile": run.profile}
    return layers.artifact(rows, made.path, winner.method, calibration.statistics.n, proxy, facts)


def _tools(run: Run, start: Calibrated) -> Tools:
    options, pixels = run.options, run.decoded("calibration")

    def again(source: onnx.ModelProto) -> Calibrated:
        """The same images through another float graph; tensors have the same names in it."""
        first = pixels.head(start.statistics.n)
        seen = calibrated(source, start.placement, first, False, options.threads, run.monitor)
        return Calibrated(start.placement, seen)

    by_agreement = options.guard == "agreement"
    answers = _answers(run, "guard")
    # The reference alone is calibrated on the labels; a probability that nobody checked would price the flips wrongly.
    temperature = 1.0 if by_agreement else temperature_of(answers, run.decoded("guard").targets)
    search = Search(
        run.source,
        run.decoded("search"),
        run.scratch,
        answers,
        by_agreement,
        temperature,
        options.threads,
        run.monitor,
    )
    bits = host_weight_bits()[0] if run.profile is Profile.CPU else None
    return Tools(search, pixels, again, lambda best: _retrained(run, best), options.threads, run.monitor, bits)


def _retrained(run: Run, best: Candidate) -> tuple[onnx.ModelProto, Mapping[str, float]] | None:
    """The float graph of `best` trained to answer as the source graph does when it is quantised, and its ranges.

    None: no better than it was. A graph for onnxruntime's kernels has other ranges than those it is trained with.
    """
    settings = QatOptions(seed=run.options.seed, threads=run.options.threads)
    if best.weight_bits is not None:
        settings = replace(settings, scale_lr=0.0)
    pixels = run.decoded("training")
    found = trained(best.source, best.placement, best.ranges, run.source, pixels, settings, run.monitor)
    run.trained = found.record
    return None if found.source is None else (found.source, found.ranges)


def _lowered(run: Run, winner: Candidate) -> onnx.ModelProto:
    """The winner's pairs in a graph of the profile's opset, its rest in the profile's precision."""
    graph = winner.written(based_on(winner.source, run.profile))
    if run.profile is not Profile.TRT10:
        return graph
    assert run.child is not None
    ranges = {f"{name}_dequantised": peak for name, peak in winner.ranges.items()}
    outside = outside_float16(graph, {**winner.found.statistics.peaks, **ranges})
    return run.child.fp16(graph, sorted(with_whole_pairs(graph, outside)))


def _answers(run: Run, name: str) -> Logits:
    """The reference's logits on the images of a set."""
    if name not in run.answers:
        backend = reference_backend(run.bundle, run.options.threads)
        try:
            run.answers[name] = logits_of(backend, run.decoded(name), run.monitor, f"{name}: reference")
        finally:
            backend.close()
    return run.answers[name]


def _judged(run: Run, shipped: Path, found: Found, winner: Candidate) -> dict[str, Any]:
    """The verdict on the shipped graph: the guard's images decide, the test images stand beside them."""
    contract = guards.Contract.of(run.options)
    assert run.sets.guard is not None
    seen, evidence = _compared(run, shipped, "guard", contract.max_drop)
    test = None
    if run.sets.test is not None:
        on_test, _ = _compared(run, shipped, "test", contract.max_drop)
        test = guards.measured(on_test, run.bundle.labels, run.sets.test.name, evidence)
    shown = guards.measured(seen, run.bundle.labels, run.sets.guard.name, evidence)
    return guards.judge(contract, seen, shown, test, (found.rungs, winner.in_float, found.effects))


def _compared(run: Run, shipped: Path, name: str, max_drop: float) -> tuple[Paired, str]:
    """What the shipped graph loses on a set of images, and how that was come by."""
    pixels, expected = run.decoded(name), _answers(run, name)
    given, evidence = graph_logits(shipped, pixels, run.options.threads, run.monitor, f"{name}: int8 graph")
    given = comparable(expected, given, run.options.output, run.temperature)[1]
    labelled = run.options.guard == "labels"
    return paired(expected, given, pixels.targets if labelled else expected.argmax(axis=1), max_drop), evidence
