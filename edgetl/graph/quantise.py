"""What a source graph is quantised by: the placement of Q/DQ pairs and one calibration, saved as calibration.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from edgetl.bundle import atomic_write, canonical_json
from edgetl.graph.calibrate import Calibration, Statistics
from edgetl.graph.convergence import Convergence, convergence
from edgetl.graph.cpu import counted
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement, Use, read_placement
from edgetl.graph.ranges import METHODS, Histogram, ranges
from edgetl.graph.worker import Worker
from edgetl.images import to_batch
from edgetl.monitor import SILENT, Monitor

_SETTLED = 0.02  # --calib-size auto: stop when doubling the images moves no range (by percentile) by more than this
_FIRST_LOOK = 64


@dataclass(frozen=True)
class Calibrated:
    """What one calibration leaves: where Q/DQ go, and what flowed through the network."""

    placement: Placement
    statistics: Statistics
    _known: dict[str, Convergence] = field(default_factory=dict)  # what calibration.json said

    def ranges(self, method: str) -> dict[str, float]:
        """tensor -> amax of the quantised activations by `method`."""
        return ranges(self.statistics.histograms, method, self.placement.groups)

    def convergence(self, method: str) -> Convergence | None:
        """How far the ranges of `method` moved from half the images to all; None where nobody looked at half."""
        seen = self.statistics
        if method in self._known or not seen.n_half:
            return self._known.get(method)
        before = ranges(seen.half, method, self.placement.groups)
        return convergence(before, self.ranges(method), seen.n_half, seen.n)

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
            "convergence": {m: found.to_json() for m in METHODS if (found := self.convergence(m)) is not None},
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
        known = {method: Convergence(**found) for method, found in body.get("convergence", {}).items()}
        return cls(placement, Statistics(histograms, dict(body["peaks"]), int(body["n"])), known)


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

    `settle`: look after 64, 128, 256, ... images and stop when doubling them moved no range by more than 2 %.
    Raises DataError where no image shows anything, GraphError for NaN, inf, or a network whose answer never changes.
    """
    run = Calibration(source, counted(source, placement) if placement else [], threads)
    looks: dict[int, dict[str, Histogram]] = {}
    start = 0
    for stop in _stops(pixels.n, settle):
        images = (image for batch in pixels.batches(start, stop) for image in batch)
        run.feed(images, lambda done: monitor.progress("calibrate", done, pixels.n))
        looks[stop], start = run.look(), stop
        looks = {n: seen for n, seen in looks.items() if n >= stop // 2}  # no later look compares with the others
        if settle and _doubled(stop) and stop < pixels.n and _moved(looks[stop // 2], looks[stop]) <= _SETTLED:
            monitor.progress("calibrate", pixels.n, pixels.n)
            break
    run.check()
    if run.blank:
        monitor.warn(f"{run.blank} of {start} calibration images are one plain colour")
    return replace(run.statistics, half=looks.get(start // 2, {}), n_half=start // 2)


def _stops(n: int, settle: bool) -> list[int]:
    """Where to look on the way through `n` images: halfway and at the end; to settle, each time they doubled too."""
    first = _FIRST_LOOK // 2  # what the first doubling is compared with
    doubled = {first << k for k in range(n.bit_length()) if first << k < n} if settle else set()
    return sorted(({n // 2, n} | doubled) - {0})


def _doubled(stop: int) -> bool:
    return stop >= 2 * _FIRST_LOOK and stop & (stop - 1) == 0


def _moved(before: Mapping[str, Histogram], now: Mapping[str, Histogram]) -> float:
    found = convergence(ranges(before, "percentile"), ranges(now, "percentile"), 0, 0)
    return found.largest
