"""What a data set is once it was read: labels, samples, and in which split each sample lies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from edgetl.bundle import canonical_json, sha256_bytes
from edgetl.errors import DataError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One labelled image: path relative to the data set's root, class index, sha256 of its bytes."""

    path: str
    target: int
    digest: str
    group: str = ""


class Draw(NamedTuple):
    """How the splits were drawn: share of each, and the seed. The same draw gives the same splits."""

    fractions: Mapping[str, float]
    seed: int


@dataclass(frozen=True)
class Dataset:
    """Samples by split; `root` is the folder that the paths are relative to."""

    root: Path
    labels: Tuple[str, ...]
    splits: Mapping[str, Tuple[Sample, ...]]
    given: bool = False  # the user gave the splits; nothing was drawn but a missing val
    warnings: Tuple[str, ...] = ()
    skipped: Tuple[str, ...] = ()
    draw: Optional[Draw] = None  # None where the splits were given

    def split(self, name: str) -> Tuple[Sample, ...]:
        """The samples of "train", "val", "test" or "calibration"; empty where there is no such split."""
        return self.splits.get(name, ())

    def all(self) -> List[Sample]:
        """Every sample of every split, in split order."""
        return [s for name in SPLITS for s in self.split(name)]

    def counts(self, name: str) -> Dict[str, int]:
        """Images by label in a split; those without a label are not counted."""
        found = [0] * len(self.labels)
        for sample in self.split(name):
            if sample.target >= 0:
                found[sample.target] += 1
        return dict(zip(self.labels, found))

    def to_json(self) -> Dict[str, Any]:
        """What the bundle's splits file holds; `from_json` takes it back."""
        return {name: [[s.path, s.target, s.digest, s.group] for s in samples] for name, samples in self.splits.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], root: Path, labels: Sequence[str]) -> Dataset:
        """Read what `to_json` wrote; the images are expected under `root`."""
        splits = {name: tuple(Sample(*row) for row in rows) for name, rows in data.items()}
        return cls(root=root, labels=tuple(labels), splits=splits, given=True)


def split_digest(samples: Sequence[Sample]) -> str:
    """sha256 over the images and classes of a split, whatever their names and order."""
    return sha256_bytes(canonical_json(sorted([s.digest, s.target] for s in samples)))


def rank_of(seed: int, key: str) -> bytes:
    """A place in a seeded random order that depends on nothing but (seed, key)."""
    return hashlib.sha256(("%d/%s" % (seed, key)).encode("utf-8")).digest()


def draw_balanced(samples: Sequence[Sample], count: int, seed: int) -> List[Sample]:
    """A seeded, class-balanced draw without identical images; a smaller draw is a prefix of a larger one.

    Classes take turns, so each gets count/classes images or all it has. Used for the calibration set and
    the golden cases.
    """
    queues: Dict[int, List[Sample]] = {}
    seen = set()
    for sample in sorted(samples, key=lambda s: (rank_of(seed, s.digest), s.target, s.path)):
        if sample.digest not in seen:
            seen.add(sample.digest)
            queues.setdefault(sample.target, []).append(sample)
    drawn: List[Sample] = []
    turn = 0
    while len(drawn) < count and any(turn < len(queue) for queue in queues.values()):
        for target in sorted(queues):
            if turn < len(queues[target]) and len(drawn) < count:
                drawn.append(queues[target][turn])
        turn += 1
    return drawn


def with_calibration(data: Dataset, count: int, seed: int) -> Dataset:
    """`data` with its "calibration" split: a draw from train, never from val or test."""
    drawn = tuple(draw_balanced(data.split("train"), count, seed))
    if not drawn:
        raise DataError("there are no training images to calibrate on", data.root, "add a train folder (or rows)")
    return replace(data, splits=dict(data.splits, calibration=drawn))


@dataclass(frozen=True)
class ReadOptions:
    """How DATA is read: cli.md, "DATA"."""

    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.15
    group_by: str = ""
    strict: bool = False
    # Classes that must be used as they are (a bundle's), so that an index means the same everywhere.
    labels: Tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name, value in (("--val-fraction", self.val_fraction), ("--test-fraction", self.test_fraction)):
            if not 0 <= value < 1:
                raise DataError(name + " must be at least 0 and below 1", value, "such as .15")
        if self.val_fraction + self.test_fraction >= 1:
            taken = "val %s + test %s" % (self.val_fraction, self.test_fraction)
            raise DataError("nothing is left to train on", taken, "make --val-fraction or --test-fraction smaller")
