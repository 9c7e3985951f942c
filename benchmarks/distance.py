"""Whether `edgetl domains`' MMD^2 foretells what transfer keeps: where the limits of its verdict come from.

The pairs within pacs_mini and within digits, 420 images a domain, on two kinds of frozen features: mobilenet_v2 from
ImageNet at 96 px and the embedded backbone. `kept` is what a linear probe from one domain is right by on the other, as
a share of what a probe within that other one reaches (5-fold), chance taken off both: 1 is a probe that loses nothing.

    python -m benchmarks distance
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from benchmarks.data import SAMPLES
from benchmarks.networks import cache, weights_of
from benchmarks.rows import Case, Row, row
from edgetl.images import ReadOptions, draw_balanced, read_data
from edgetl.transfer.decoded import Decoded
from edgetl.transfer.distance import a_distance, coral, discrepancy_of
from edgetl.transfer.feature_store import FeatureStore
from edgetl.transfer.pretrained import Pretrained, Wish, open_pretrained
from edgetl.transfer.probe import DEFAULT as PROBE_C
from edgetl.transfer.rank.scores import probe_hits

SETS = {"pacs_mini": ("photo", "art_painting", "cartoon", "sketch"), "digits": ("mnist", "usps", "sklearn_digits")}
IMAGES = 420  # a domain, all that pacs_mini has
SIZE = 96  # px, of the photographs' network
THREADS = 1
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Domain:
    """One domain on one kind of features: (N, D), the classes (N,), and what a probe within it is right by."""

    features: Floats
    targets: Ints
    within: float

    @property
    def chance(self) -> float:
        """What guessing the most frequent class would get."""
        return float(np.bincount(self.targets).max() / len(self.targets))


def run(quick: bool) -> Iterator[Row]:
    """A row for each pair of domains and each kind of features. Raises FileNotFoundError without the sample images."""
    torch.set_num_threads(THREADS)
    imagenet = Wish("mobilenet_v2", str(weights_of("mobilenet_v2")), SIZE)
    for wish in [Wish()] if quick else [imagenet, Wish()]:
        backbone = open_pretrained(wish)
        for name, members in SETS.items():
            folders = [SAMPLES / "data" / name / member for member in members[: 2 if quick else None]]
            found = {folder.name: domain(folder, backbone, 70 if quick else IMAGES) for folder in folders}
            for one, other in combinations(found, 2):
                case = f"{one}, {other}: {backbone.spec.name}"
                known: dict[str, Any] = {
                    "features": backbone.spec.name,
                    "source": one,
                    "target": other,
                    "n": len(found[one].targets),
                }
                yield row(Case("distance", case, quick), THREADS, {**known, **compared(found[one], found[other])})


def domain(folder: Path, backbone: Pretrained, count: int) -> Domain:
    """`count` images of a folder, drawn evenly over its classes."""
    data = read_data(str(folder), ReadOptions(val_fraction=0, test_fraction=0))
    samples = draw_balanced(data.split("train"), count, 0)
    store = FeatureStore(cache() / "distance")
    features = backbone.features(samples, Decoded(data.root, backbone.preprocess).inputs, store)
    targets = np.array([s.target for s in samples], np.int64)
    return Domain(features, targets, float(probe_hits([features], targets, None, 0)[0].mean()))


def compared(source: Domain, target: Domain) -> dict[str, Any]:
    """The row's distances, and what is kept there (source to target) and back."""
    both = discrepancy_of(source.features, target.features, 0)
    return {
        "mmd2": round(both.mmd2, 4),
        "p_value": both.p_value,
        "halves_p95": round(both.halves_p95, 4),
        "a_distance": round(a_distance(source.features, target.features, 0), 3),
        "coral": coral(source.features, target.features),
        "within": [round(side.within, 4) for side in (source, target)],
        "kept_there": round(kept(source, target), 3),
        "kept_back": round(kept(target, source), 3),
    }


def kept(source: Domain, target: Domain) -> float:
    """What a probe fitted to `source` keeps on `target`; see the top of this file."""
    scaler = StandardScaler().fit(source.features)
    model = LogisticRegression(C=PROBE_C, max_iter=100, tol=1e-3)
    model.fit(scaler.transform(source.features), source.targets)
    right = float((model.predict(scaler.transform(target.features)) == target.targets).mean())
    return (right - target.chance) / (target.within - target.chance)
