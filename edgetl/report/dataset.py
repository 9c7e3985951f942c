"""The images a bundle was made with: how many a class and split, what lies across splits, how far the target is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgetl.bundle import Bundle
from edgetl.errors import BundleError
from edgetl.report.privacy import last_part
from edgetl.report.rows import read_lines

SPLITS = ("train", "val", "test")
NEAR = "runs/near-duplicates.jsonl"
ALIKE = 5  # pairs shown


@dataclass(frozen=True)
class Split:
    """A split: images, and the start of the sha256 over their contents and classes."""

    name: str
    n: int
    digest: str


@dataclass(frozen=True)
class Alike:
    """Two images of different splits that look alike."""

    image: str
    split: str
    like: str
    like_split: str
    how: str


@dataclass(frozen=True)
class Distance:
    """How far the unlabelled target lies from the labelled source, and what was made of it."""

    images: int
    mmd2: float
    p_value: float
    a_distance: float
    kept: str
    why: str


@dataclass(frozen=True)
class Data:
    """What the bundle knows of its images.

    name: of their folder, without where it lies. counts: {split: images of each class, in the order of labels}.
    near: how many of val and test look like an image of an earlier split; None: it was not looked for.
    """

    name: str
    labels: tuple[str, ...]
    splits: tuple[Split, ...]
    counts: Mapping[str, tuple[int, ...]]
    skipped: int
    near: int | None
    alike: tuple[Alike, ...]
    distance: Distance | None

    @property
    def missing(self) -> tuple[str, ...]:
        """Classes of which the test split has no image, where there is one."""
        found = self.counts.get("test")
        return tuple(label for label, n in zip(self.labels, found, strict=True) if not n) if found else ()


def data_of(bundle: Bundle) -> tuple[Data, list[str]]:
    """(what is known of the images, notes). Raises BundleError for a damaged splits file."""
    manifest = bundle.manifest
    pairs, notes = read_lines(bundle, NEAR)
    generation = int(manifest["generation"])
    own = [pair for pair in pairs if pair.get("generation") == generation]
    result = manifest["training"].get("result") or {}
    near = result.get("near_duplicates")
    known = {"train", "val", "test", "calibration", "unlabelled"}
    splits = [Split(name, found["n"], found["digest"][:12]) for name, found in manifest["splits"].items()]
    data = Data(
        name=last_part(str(bundle.local.get("data") or "")),
        labels=tuple(bundle.labels),
        splits=tuple(sorted((s for s in splits if s.name in known), key=lambda s: _order(s.name))),
        counts=_counts(bundle),
        skipped=len(manifest["training"].get("skipped") or ()),
        near=near["n"] if near else (len(own) or None),
        alike=tuple(_alike(pair) for pair in own[:ALIKE]),
        distance=_distance(result.get("adaptation")),
    )
    return data, notes


def _order(name: str) -> int:
    return SPLITS.index(name) if name in SPLITS else len(SPLITS)


def _counts(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    found = bundle.artifacts("splits")
    if not found:
        return {}
    path = bundle.file(found[-1])
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        counts = {name: Counter(int(row[1]) for row in rows[name]) for name in SPLITS if rows.get(name)}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BundleError("the bundle's splits cannot be read", f"{path} ({error})", "make the bundle again") from error
    return {name: tuple(found[i] for i in range(len(bundle.labels))) for name, found in counts.items()}


def _alike(pair: Mapping[str, Any]) -> Alike:
    return Alike(*(str(pair.get(key, "")) for key in ("image", "split", "like", "like_split", "how")))


def _distance(found: Mapping[str, Any] | None) -> Distance | None:
    if not found or "mmd2" not in found:
        return None
    return Distance(
        int(found["n_unlabelled"]),
        float(found["mmd2"]),
        float(found["p_value"]),
        float(found["a_distance"]),
        str(found.get("kept", "")),
        str(found.get("why", "")),
    )
