"""The stage behind `edgetl domains`: two sets of images -> how far apart they are, and what that means."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.errors import DataError, InputError
from edgetl.images import SPLITS, Sample, rank_of, read_data
from edgetl.images.dataset import ReadOptions
from edgetl.images.listing import from_csv
from edgetl.images.of_bundle import read_unlabelled
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer.decoded import Decoded
from edgetl.transfer.distance import ESTIMATOR, KERNEL, PERMUTATIONS, coral, discrepancy_of, mmd2, separation_of
from edgetl.transfer.feature_store import FeatureStore
from edgetl.transfer.pretrained import Pretrained, Wish, open_pretrained
from edgetl.transfer.verdict import far_from, verdict

if TYPE_CHECKING:
    from edgetl.transfer.distance import Floats

LEAST = 8  # images a side (and a class, to be compared by itself): with fewer no permutation test can say anything


@dataclass(frozen=True)
class Side:
    """One of the two sets; `labels[i]` is the class of `samples[i]`, where it has classes."""

    name: str
    root: Path
    samples: tuple[Sample, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class DomainOptions:
    """Options of `edgetl domains`."""

    wish: Wish = field(default_factory=Wish)
    images: int = 1000  # a side, at most
    skip_corrupt: bool = False
    picture: Path | None = None
    projection: str = "pca"
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.images < LEAST:
            raise InputError("--images is too small to compare anything", self.images, f"at least {LEAST}")
        if self.projection not in ("pca", "tsne"):
            raise InputError("unknown value of --projection", self.projection, "use pca or tsne")
        if self.picture is not None and self.picture.suffix.lower() not in (".png", ".svg"):
            raise InputError("unknown form of picture", self.picture, "name it FILE.png or FILE.svg")


def read_side(source: str, monitor: Monitor = SILENT) -> Side:
    """DATA of cli.md, or any folder with images below it: class folders give labels, a flat folder has none.

    Splits are pooled, and identical images count once. Raises DataError.
    """
    if Path(source).is_file():
        labels = tuple(sorted({found.label for found in from_csv(Path(source))[0]}))  # one class will do here
        data = read_data(source, ReadOptions(val_fraction=0.0, test_fraction=0.0, labels=labels), monitor)
        samples = {s.digest: s for s in data.all()}
        return Side(source, data.root, tuple(samples.values()), tuple(data.labels[s.target] for s in samples.values()))
    root, found = read_unlabelled(source, monitor)
    different = tuple({s.digest: s for s in found}.values())
    return Side(source, root, different, class_folders([s.path for s in different]))


def class_folders(paths: Sequence[str]) -> tuple[str, ...]:
    """The class of each path, <class>/<image> or <split>/<class>/<image> throughout; else empty: there are none.

    A name with an accent is one name however the file system composes it (NFC), as for DATA.
    """
    parts = [Path(path).parts[:-1] for path in paths]
    if all(len(p) == 2 and p[0] in SPLITS for p in parts):
        parts = [p[1:] for p in parts]
    return tuple(unicodedata.normalize("NFC", p[0]) for p in parts) if all(len(p) == 1 for p in parts) else ()


def domains(source: Side, target: Side, options: DomainOptions, monitor: Monitor = SILENT) -> dict[str, Any]:
    """Compare two sets of images; returns the object of cli.md and more, and writes the picture where one is wanted.

    Raises DataError (too few, corrupt), WeightsError, BackboneError, InputError, DiskError.
    """
    wish = options.wish
    drawn = [_drawn(side, options.images, wish.seed) for side in (source, target)]
    for side in drawn:
        _check_enough(side)
    backbone = open_pretrained(wish)
    store = FeatureStore(options.cache)
    sides, features = [], []
    for side in drawn:
        decoded = Decoded(side.root, backbone.preprocess)
        sound = _sound(side, decoded, monitor) if options.skip_corrupt else side
        sides.append(sound)
        features.append(backbone.features(sound.samples, decoded.inputs, store, monitor))
    result = _compared(sides, features, backbone, wish.seed)
    if options.picture is not None:
        from edgetl.transfer.picture import draw

        draw(options.picture, sides, features, options.projection, backbone.describe(), wish.seed)
        result["picture"] = str(options.picture)
    return result


def _compared(sides: list[Side], features: list[Floats], backbone: Pretrained, seed: int) -> dict[str, Any]:
    source, target = features
    both = discrepancy_of(source, target, seed)
    limit = far_from(backbone.spec.name)
    apart = separation_of(source, target, seed)
    word, why = verdict(both.mmd2, both.p_value, limit, apart.p_value)
    common = {s.digest for s in sides[0].samples} & {s.digest for s in sides[1].samples}
    return {
        "mmd2": both.mmd2,
        "p_value": both.p_value,
        "a_distance": apart.a_distance,
        "a_distance_p": apart.p_value,
        "coral": coral(source, target),
        "verdict": word,
        "why": why,
        "far_from_mmd2": limit,
        "null": {"halves_of_source_p95": both.halves_p95, "n": len(source) // 2, "permutations": PERMUTATIONS},
        "n": {"source": len(source), "target": len(target), "in_both": len(common)},
        "per_class": _per_class(sides, features),
        "features": {
            "backbone": backbone.spec.name,
            "weights": backbone.provenance,
            "preprocess": backbone.preprocess.to_json(),
            "width": int(source.shape[1]),
        },
        "kernel": KERNEL,
        "estimator": ESTIMATOR,
    }


def _per_class(sides: list[Side], features: list[Floats]) -> dict[str, Any] | None:
    """{class: {"mmd2", "n_source", "n_target"}} of the classes that both sides have; null where one has no labels."""
    if not all(side.labels for side in sides):
        return None
    labels = [np.array(side.labels) for side in sides]
    out = {}
    for name in sorted({*sides[0].labels} & {*sides[1].labels}):
        source, target = (found[given == name] for found, given in zip(features, labels, strict=True))
        enough = min(len(source), len(target)) >= LEAST
        out[name] = {
            "mmd2": mmd2(source, target) if enough else None,
            "n_source": len(source),
            "n_target": len(target),
        }
    return out


def _drawn(side: Side, count: int, seed: int) -> Side:
    """At most `count` images, a seeded draw by content."""
    if len(side.samples) <= count:
        return side
    ordered = sorted(side.samples, key=lambda s: rank_of(seed, s.digest))[:count]
    return _kept(side, {s.digest for s in ordered})


def _sound(side: Side, decoded: Decoded, monitor: Monitor) -> Side:
    out = _kept(side, {s.digest for s in decoded.sound(side.samples, monitor)})
    _check_enough(out)
    return out


def _kept(side: Side, digests: set[str]) -> Side:
    keep = [i for i, sample in enumerate(side.samples) if sample.digest in digests]
    labels = tuple(side.labels[i] for i in keep) if side.labels else ()
    return Side(side.name, side.root, tuple(side.samples[i] for i in keep), labels)


def _check_enough(side: Side) -> None:
    if len(side.samples) < LEAST:
        what = f"{len(side.samples)} different images in {side.name}"
        raise DataError(
            "too few images to compare", what, f"each side wants at least {LEAST}; some hundreds are better"
        )
