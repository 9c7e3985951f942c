"""One network at one batch size in every runtime, in this process: opened, compared, timed in turns.

    python -m benchmarks.peers_latency_child JOB.json [SITE-PACKAGES of OpenVINO]

The last line on stdout is JSON: {method: {"status", "p50_ms", ...}}. Every runtime is given the same float32 array
and gives float32 logits back in numpy; all have the same number of threads and take their turns in one rotation.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.memory_child import stdout_to_stderr
from benchmarks.peers_runtimes import METHODS, Batch, Call, Job, NotHere, Opened
from edgetl.bundle import Bundle
from edgetl.images import read_sample, to_batch, to_input
from edgetl.images.of_bundle import open_data
from edgetl.measure import turns
from edgetl.measure.latency import Effort, Timed, Timing, measure
from edgetl.measure.noise import Watch
from edgetl.stats import percentiles

REFERENCE = "torch"
IMAGES = 32  # that each runtime answers, so that one which computes something else is seen
NOTHING = dict.fromkeys(
    (
        *("p50_ms", "p50_low_ms", "p50_high_ms", "p90_ms", "runs", "ratio", "ratio_low", "ratio_high"),
        *("agreement", "apart", "n_images", "way", "other_ways", "versions", "noise"),
    )
)


def main() -> None:
    """Read the job, print the answer."""
    facts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    logging.getLogger("torch").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr), stdout_to_stderr():
        bundle = Bundle.open(Path(facts["bundle"]))
        sys.path += sys.argv[2:]  # behind all that is here already
        job = Job(bundle, facts["batch"], facts["threads"], bundle.preprocess.size)
        answer = measured(job, facts["methods"], facts["seconds"])
    print(json.dumps(answer))


def measured(job: Job, methods: list[str], seconds: float) -> dict[str, Any]:
    """The values of each method; what is not here, or fails, says so in its status."""
    images = pixels(job)
    opened: dict[str, Opened] = {}
    out: dict[str, Any] = {}
    for method in methods:
        try:
            opened[method] = METHODS[method](job)
            for call in opened[method].ways.values():
                call(images[: job.batch])  # what compiles does it now
        except NotHere as error:
            out[method] = {**NOTHING, "status": f"not here: {error}"}
        except Exception as error:  # whatever a runtime raises is a result: it goes into its row
            traceback.print_exc()
            out[method] = _failed(error)
        if method in out:
            opened.pop(method, None)
    calls = {(method, way): call for method, found in opened.items() for way, call in found.ways.items()}
    return {method: out.get(method) for method in methods} | _timed(calls, opened, images, job, seconds)


def pixels(job: Job) -> Batch:
    """float32 (n, 3, S, S), 0-255: test images of the bundle, whole batches of them; a small set comes round again."""
    dataset, samples, _ = open_data(job.bundle, "test", None)
    count = -(-IMAGES // job.batch) * job.batch
    spec = job.bundle.preprocess
    found = [to_input(read_sample(dataset.root, samples[i % len(samples)]), spec) for i in range(count)]
    return np.ascontiguousarray(to_batch(np.stack(found), "float32"))


def _timed(
    calls: dict[tuple[str, str], Call], opened: dict[str, Opened], images: Batch, job: Job, seconds: float
) -> dict[str, Any]:
    given = images[: job.batch].copy()
    watch = Watch()
    effort = Effort(seconds=seconds, warmup_seconds=min(seconds, 2.0))
    names = {"/".join(key): key for key in calls}
    timings = measure({name: Timed(_bound(calls[key], given)) for name, key in names.items()}, effort, between=watch)
    why = "; ".join(watch.found()["why"])
    by_key = {key: timings[name] for name, key in names.items()}
    fastest = {method: _fastest(by_key, method) for method in opened}
    first = fastest.get(REFERENCE)
    base = None if first is None else by_key[(REFERENCE, first)]
    reference = None if first is None else answers(calls[(REFERENCE, first)], images, job.batch)
    out = {}
    for method, found in opened.items():
        way = fastest[method]
        if way is None:
            out[method] = _failed(next(t.error for (name, _), t in by_key.items() if name == method))
            continue
        others = [f"{w} {_median(by_key[(method, w)])} ms" for w in found.ways if w != way]
        out[method] = {
            **NOTHING,
            **_figures(by_key[(method, way)], base),
            **compared(answers(calls[(method, way)], images, job.batch), reference),
            **{"way": way, "other_ways": ", ".join(others), "versions": found.versions, "noise": why, "status": "ok"},
        }
    return out


def _failed(error: Exception | None) -> dict[str, Any]:
    return {**NOTHING, "status": " ".join(f"failed: {type(error).__name__}: {error}".split())[:300]}


def _bound(call: Call, given: Batch) -> Any:
    return lambda: call(given)


def _fastest(timings: dict[tuple[str, str], Timing], method: str) -> str | None:
    """The way with the lowest median; None where every way failed while it was timed."""
    ways = {way: t.wall_ms for (name, way), t in timings.items() if name == method and t.error is None}
    return min(ways, key=lambda way: median(ways[way])) if ways else None


def _median(timing: Timing) -> str:
    return "failed" if timing.error is not None else f"{median(timing.wall_ms):.2f}"


def _figures(timing: Timing, base: Timing | None) -> dict[str, Any]:
    """Percentiles with their intervals, and the ratio of medians to the reference's: below 1 is faster."""
    of_each = turns.split(timing.wall_ms, timing.turns)
    found = percentiles(timing.wall_ms)
    low, high = turns.intervals(of_each)["p50"] or (None, None)
    ratio: tuple[float | None, ...] = (None, None, None)
    if base is not None:  # too few turns for an interval: the ratio of the medians alone
        alone = (median(timing.wall_ms) / median(base.wall_ms), None, None)
        ratio = turns.ratio(of_each, turns.split(base.wall_ms, base.turns)) or alone
    figures = {"p50_ms": found["p50"], "p50_low_ms": low, "p50_high_ms": high, "p90_ms": found["p90"]}
    figures |= dict(zip(("ratio", "ratio_low", "ratio_high"), ratio, strict=True))
    return {**{name: None if v is None else round(v, 4) for name, v in figures.items()}, "runs": found["n"]}


def answers(call: Call, images: Batch, batch: int) -> Batch:
    """float32 (n, C) logits."""
    return np.concatenate([call(images[i : i + batch].copy()) for i in range(0, len(images), batch)])


def compared(logits: Batch, reference: Batch | None) -> dict[str, Any]:
    """Share of equal top-1 answers, and the largest difference of a logit in standard deviations of the reference's."""
    if reference is None:
        return {}
    apart = float(np.abs(logits - reference).max() / reference.std())
    same = float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())
    return {"agreement": same, "apart": round(apart, 6), "n_images": len(reference)}


if __name__ == "__main__":
    main()
