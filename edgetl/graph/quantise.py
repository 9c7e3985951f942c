"""From a source graph to an INT8 graph: placement, one calibration, the method that agrees best, Q/DQ."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgetl.bundle import atomic_write, canonical_json
from edgetl.graph import qdq, surgery
from edgetl.graph.calibrate import Calibration, Statistics
from edgetl.graph.guard import Rung, paired
from edgetl.graph.pixels import Pixels, logits_of
from edgetl.graph.placement import Placement, Use, read_placement
from edgetl.graph.ranges import METHODS, Histogram, ranges
from edgetl.graph.worker import Worker
from edgetl.images import to_batch
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.ort import OrtBackend

_SETTLED = 0.02  # --calib-size auto: stop when doubling the images moves no range by more than this
_FIRST_LOOK = 64


@dataclass(frozen=True)
class Calibrated:
    """What one calibration leaves: where Q/DQ go, and what flowed through the network."""

    placement: Placement
    statistics: Statistics

    def ranges(self, method: str) -> dict[str, float]:
        """tensor -> amax of the quantised activations by `method`."""
        return ranges(self.statistics.histograms, method, self.placement.groups)

    def save(self, path: Path, made_from: str, images: str) -> None:
        """Write calibration.json; the same calibration gives the same bytes."""
        body = {
            "made_from": made_from,
            "images": images,
            "n": self.statistics.n,
            "placement": self.placement.to_json(),
            "peaks": self.statistics.peaks,
            "histograms": {name: h.to_json() for name, h in self.statistics.histograms.items()},
            "ranges": {method: self.ranges(method) for method in METHODS},
        }
        atomic_write(path, canonical_json(body))

    @classmethod
    def load(cls, path: Path) -> Calibrated:
        """Read what `save` wrote."""
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        placement = Placement(
            {name: tuple(_use(u) for u in uses) for name, uses in body["placement"]["activations"].items()},
            {(node, index): axis for node, index, axis in body["placement"]["weights"]},
            tuple(tuple(group) for group in body["placement"]["groups"]),
        )
        histograms = {name: Histogram.from_json(h) for name, h in body["histograms"].items()}
        return cls(placement, Statistics(histograms, dict(body["peaks"]), int(body["n"])))


def _use(pair: Sequence[Any]) -> Use:
    return str(pair[0]), int(pair[1])


def placed(source: onnx.ModelProto, child: Worker, pixels: Pixels) -> Placement:
    """Where modelopt puts Q/DQ in `source`; it sees two real images, for shapes only."""
    return read_placement(source, child.place(source, to_batch(pixels.first(2), "float32")))


def calibrated(
    source: onnx.ModelProto,
    placement: Placement | None,
    pixels: Pixels,
    settle: bool = False,
    threads: int = 0,
    monitor: Monitor = SILENT,
) -> Statistics:
    """One pass of `pixels` through `source`. Without a placement only peaks are kept (the FP16 range check).

    `settle`: look after 64, 128, 256, ... images and stop when no range moved by more than 2 %.
    """
    run = Calibration(source, list(placement.activations) if placement else [], threads)
    start, stop = 0, _FIRST_LOOK if settle else pixels.n
    before: dict[str, float] = {}
    while start < pixels.n:
        images = (image for batch in pixels.batches(start, stop) for image in batch)
        run.feed(images, lambda done: monitor.progress("calibrate", done, pixels.n))
        now = {name: METHODS["percentile"](h) for name, h in run.statistics.histograms.items() if h.peak > 0}
        if settle and before and _moved(before, now) <= _SETTLED:
            monitor.progress("calibrate", pixels.n, pixels.n)
            break
        start, stop, before = stop, stop * 2, now
    return run.statistics


def _moved(before: dict[str, float], now: dict[str, float]) -> float:
    return max((abs(now[name] - before.get(name, 0.0)) / now[name] for name in now), default=0.0)


def best_method(
    source: onnx.ModelProto,
    found: Calibrated,
    method: str,
    search: Pixels,
    scratch: Path,
    threads: int = 0,
    monitor: Monitor = SILENT,
) -> tuple[str, list[Rung]]:
    """The method whose FP32-rest twin is nearest to the fp32 graph on `search` images (mean KL), and what each did.

    The twin, because the FP16-rest graph is four times slower to simulate. A single method is measured too.
    """
    reference = _logits(surgery.save(source, scratch / "search.onnx"), search, threads, monitor, "search: fp32")
    tried: dict[str, Rung] = {}
    seen: dict[tuple[float, ...], str] = {}
    for name in METHODS if method == "auto" else (method,):
        started = time.monotonic()
        amax = found.ranges(name)
        key = tuple(amax[tensor] for tensor in sorted(amax))
        if key in seen:
            continue  # the same ranges as a method before it: the same graph
        seen[key] = name
        path = surgery.save(qdq.inserted(source, found.placement, amax), scratch / f"twin-{name}.onnx")
        logits = _logits(path, search, threads, monitor, f"search: {name}")
        result = paired(reference, logits, _targets(search, reference), 0.5)
        seconds = time.monotonic() - started
        tried[name] = Rung(name, result.drop_pp, seconds, result.kl, result.agreement, result.n)
        path.unlink()
    best = min(tried, key=lambda name: (tried[name].kl, name))
    return best, list(tried.values())


def _logits(path: Path, pixels: Pixels, threads: int, monitor: Monitor, what: str) -> np.ndarray:
    backend = OrtBackend(path, threads=threads)
    try:
        return logits_of(backend, pixels, monitor, what)
    finally:
        backend.close()


def _targets(pixels: Pixels, reference: np.ndarray) -> np.ndarray:
    return pixels.targets if (pixels.targets >= 0).all() else reference.argmax(axis=1)
