"""The stage behind `edgetl rank`: training images and pretrained networks -> rows, the best first."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetl.errors import DataError, InputError
from edgetl.images import Dataset, Sample, draw_balanced
from edgetl.monitor import SILENT, Monitor
from edgetl.stats import wilson
from edgetl.transfer import backbones
from edgetl.transfer.decoded import Decoded
from edgetl.transfer.feature_store import FeatureStore
from edgetl.transfer.pretrained import Floats, Pretrained, Wish, device_of, open_pretrained
from edgetl.transfer.rank import scores
from edgetl.transfer.rank.candidates import Search, candidates, imagenet_accuracy
from edgetl.transfer.rank.cost import Size, blank, latencies_ms, size_of
from edgetl.transfer.rank.front import BY, best_first, on_front
from edgetl.transfer.rank.stages import features_of

LEAST, MOST = 10, 10_000  # training images; of so many all features are in memory, and the interval is below a point
IMAGES, PER_CLASS = 1000, 5  # training images looked at, and of each class where there are many
TOGETHER_MB = 2000  # of networks that are in memory to be timed in turns
Row = dict[str, Any]


@dataclass(frozen=True)
class RankOptions:
    """Options of `edgetl rank`. Sizes are of the file in `precision`, fp32 or int8, in units of 10^6 bytes."""

    search: Search = field(default_factory=Search)
    images: int | None = None  # at most; None: IMAGES, or PER_CLASS of each class
    budget_ms: float | None = None
    budget_mb: float | None = None
    precision: str = "fp32"
    skip_corrupt: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.images < LEAST:
            raise InputError("--images is too small to rank by", self.images, f"at least {LEAST}")
        if self.images is not None and self.images > MOST:
            do = f"at most {MOST}: the 95 % interval of a probe is then below one point"
            raise InputError("--images is more than rank holds in memory", self.images, do)
        if self.precision not in ("fp32", "int8"):
            raise InputError("unknown value of --precision", self.precision, "use fp32 or int8")
        for name, value in (("--budget-ms", self.budget_ms), ("--budget-mb", self.budget_mb)):
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be above 0", value, "leave it out for no limit")


@dataclass(frozen=True)
class _Images:
    """The training images that are scored on, drawn once for all networks."""

    root: Path
    samples: Sequence[Sample]
    classes: int  # of the data set

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        return np.array([s.target for s in self.samples], np.int64)

    @property
    def groups(self) -> npt.NDArray[np.str_] | None:
        """Which images belong together; None where no image has a group."""
        if not any(s.group for s in self.samples):
            return None
        return np.array([s.group or s.digest for s in self.samples])


def rank(data: Dataset, options: RankOptions, monitor: Monitor = SILENT) -> dict[str, Any]:
    """Score every candidate on the train split and order them; returns the object of cli.md and more.

    Each network passes over the images once; features are kept by content (feature_store). Val and test are not
    looked at. Raises DataError, WeightsError, BackboneError, InputError, DiskError.
    """
    started = time.perf_counter()
    for line in data.warnings:
        monitor.warn(line)
    images = _drawn(data, options)
    wishes, needs_download = candidates(options.search)
    fitting, over = _within_budget(wishes, images.classes, options, monitor)
    images, rows = _scored(fitting, images, options, monitor)
    front = on_front([(-r["stage_accuracy"], r["latency_ms"], r["size_fp32_mb"]) for r in rows])
    for row, optimal in zip(rows, front, strict=True):
        row["pareto"] = optimal
    return {
        "rows": best_first(rows, len(images.samples)),
        "by": BY,
        "over_budget": over,
        "needs_download": needs_download,
        "n": {"images": len(images.samples), "train": len(data.split("train")), "classes": images.classes},
        "latency_evidence": "host-gpu" if device_of(options.search.device).type == "cuda" else "host-cpu",
        "seconds": round(time.perf_counter() - started, 3),
    }


def _drawn(data: Dataset, options: RankOptions) -> _Images:
    """A seeded, class-balanced draw from train without identical images. Raises DataError where it is too small."""
    classes = len(data.labels)
    count = options.images or min(MOST, max(IMAGES, PER_CLASS * classes))
    samples = draw_balanced(data.split("train"), count, options.search.seed)
    if options.images and len(samples) == count < 2 * classes:
        do = f"--images {min(MOST, PER_CLASS * classes)}"
        raise InputError("--images is too small for so many classes", f"{count} for {classes}", do)
    return _checked(_Images(data.root, samples, classes))


def _checked(images: _Images) -> _Images:
    """Raises DataError where there are too few images to be fitted without some of them and asked about these."""
    groups = images.groups
    apart = [s.digest for s in images.samples] if groups is None else groups.tolist()
    parts = Counter(target for target, _ in set(zip(images.targets.tolist(), apart, strict=True)))
    several = sum(count >= 2 for count in parts.values())
    if len(images.samples) < LEAST or several < 2:
        of = "images" if groups is None else "groups of images"
        what = f"{len(images.samples)} different images, {several} classes with two {of} or more"
        do = f"at least {LEAST}, and two classes with two {of} each"
        raise DataError("too few training images to rank by", what, do)
    return images


def _within_budget(
    wishes: Sequence[Wish], classes: int, options: RankOptions, monitor: Monitor
) -> tuple[list[tuple[Wish, Row]], list[Row]]:
    """(what is within the budgets, with its costs; rows of what is not): sizes first, then clocks.

    Each architecture is counted and timed once: weights make no difference.
    """
    kept: list[tuple[Wish, Row]] = []
    over: list[Row] = []
    counted: dict[str, Row] = {}
    for wish in wishes:
        if _shape(wish) not in counted:
            counted[_shape(wish)] = _costs(wish, classes)
        cost = dict(counted[_shape(wish)])
        size = cost[f"size_{options.precision}_mb"]
        within = options.budget_mb is None or size <= options.budget_mb
        (kept if within else over).append((wish, cost) if within else _over(wish, cost))  # type: ignore[arg-type]
    timed = {_shape(wish): replace(wish, weights="none") for wish, _ in kept}
    clock: dict[str, float] = {}
    for names in _together({name: counted[name]["size_fp32_mb"] for name in timed}):
        clock |= latencies_ms({name: open_pretrained(timed[name]) for name in names})
    for wish, cost in kept:
        cost["latency_ms"] = round(clock[_shape(wish)], 4)
    slow = [(w, c) for w, c in kept if options.budget_ms is not None and c["latency_ms"] > options.budget_ms]
    return [pair for pair in kept if pair not in slow], over + [_over(*pair) for pair in slow]


def _together(megabytes: Mapping[str, float]) -> Iterator[list[str]]:
    """Names in order, as many at a time as TOGETHER_MB hold, and one at least."""
    part: list[str] = []
    for name, size in megabytes.items():
        if part and sum(megabytes[n] for n in part) + size > TOGETHER_MB:
            yield part
            part = []
        part.append(name)
    if part:
        yield part


def _over(wish: Wish, cost: Row) -> Row:
    return {"backbone": wish.backbone, "weights": wish.weights, **cost}


def _shape(wish: Wish) -> str:
    return f"{wish.backbone} {wish.image_size} {wish.arguments}"


def _costs(wish: Wish, classes: int) -> Row:
    spec = backbones.row(str(wish.backbone))
    size = wish.image_size or spec.size
    spec.check_size(size)
    found: Size = size_of(blank(spec.name, classes, size, backbones.parse_arguments(wish.arguments)), size)
    return {
        "params": found.params,
        "macs": found.macs,
        "size_fp32_mb": round(found.fp32_bytes / 1e6, 3),
        "size_int8_mb": round(found.int8_bytes / 1e6, 3),
        "latency_ms": None,
    }


def _scored(
    fitting: Sequence[tuple[Wish, Row]], images: _Images, options: RankOptions, monitor: Monitor
) -> tuple[_Images, list[Row]]:
    """(the images that were looked at: with --skip-corrupt the sound ones; a row for each network)."""
    store = FeatureStore(options.cache)
    decoded: dict[Any, Decoded] = {}
    rows = []
    for number, (wish, cost) in enumerate(fitting):
        network = open_pretrained(wish)
        pixels = decoded.setdefault(network.preprocess, Decoded(images.root, network.preprocess))
        if options.skip_corrupt and not number:
            images = _checked(replace(images, samples=pixels.sound(images.samples, monitor)))
        began = time.perf_counter()
        features, stages = features_of(network, images.samples, pixels.inputs, store, monitor)
        passed = time.perf_counter()
        found = _scores(network, features, stages, images, options.search.seed)
        seconds = {"features_s": round(passed - began, 3), "scores_s": round(time.perf_counter() - passed, 3)}
        facts = {
            "backbone_args": network.arguments,
            "image_size": network.preprocess.size,
            "provenance": network.provenance,
        }
        rows.append({"backbone": network.spec.name, "weights": wish.weights, **found, **cost, **facts, **seconds})
        monitor.progress("networks", number + 1, len(fitting))
    return images, rows


def _scores(network: Pretrained, features: Floats, stages: Sequence[Floats], images: _Images, seed: int) -> Row:
    targets = images.targets
    hits, *earlier = scores.probe_hits([features, *stages], targets, images.groups, seed)
    low, high = wilson(int(hits.sum()), len(hits))
    by_stage = [float(right.mean()) for right in earlier]
    head = network.source_head
    said = head.probabilities(features) if head else None
    return {
        "logme": round(scores.logme(features, targets), 5),
        "h_score": round(scores.h_score(features, targets), 5),
        "probe_accuracy": round(float(hits.mean()), 5),
        "probe_ci": [round(low, 5), round(high, 5)],
        "stage_accuracy": round(max(float(hits.mean()), *by_stage), 5),
        "stage_accuracies": [round(accuracy, 5) for accuracy in by_stage],
        "imagenet_accuracy": imagenet_accuracy(network.spec.name, network.provenance),
        "knn_accuracy": round(scores.knn_accuracy(features, targets), 5),
        "leep": round(scores.leep(said, targets), 5) if said is not None else None,
        "nce": round(scores.nce(said, targets), 5) if said is not None else None,
        "features": int(features.shape[1]),
    }
