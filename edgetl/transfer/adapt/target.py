"""The images of `--unlabelled`: which are of the source's classes, and which are the source's own."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from edgetl.errors import DataError
from edgetl.images import SPLITS, Dataset, Sample
from edgetl.monitor import SILENT, Monitor

FEWEST = 8  # of which moments can be taken; with so few they are rough
_SHOWN = 5


def of_source_classes(
    folder: Path, samples: Sequence[Sample], labels: Sequence[str], adapt_classes: str, monitor: Monitor = SILENT
) -> list[Sample]:
    """`samples` (paths relative to `folder`) that adaptation may take for images of the source's classes.

    Subfolders may be classes: then their names are told to be ignored as labels, but must be the source's. With
    `adapt_classes` "source" they need not: images in folders of other names are left out where some folder has the
    name of a class, and taken where none has (folders by camera or by day). Raises DataError.
    """
    named = dict(zip(samples, _class_folder_of([sample.path for sample in samples]), strict=True))
    there = {name for name in named.values() if name}
    if not there:
        return list(samples)
    foreign, absent = there - set(labels), set(labels) - there
    if not foreign and not absent:
        monitor.say(f"{folder} has class folders: their names are not used as labels")
        return list(samples)
    if adapt_classes != "source":
        parts = [f"only {where}: {_list(names)}" for where, names in (("there", foreign), ("in DATA", absent)) if names]
        raise DataError(
            f"the folders in {folder} are not the classes of DATA",
            "; ".join(parts),
            "give images of the same classes, or --adapt-classes source to learn DATA's classes all the same",
        )
    if not there & set(labels):
        monitor.say(f"no folder in {folder} has the name of a class: all of its images are used")
        return list(samples)
    kept = [sample for sample in samples if named[sample] not in foreign]
    if foreign:
        monitor.warn(f"{len(samples) - len(kept)} unlabelled images of other classes are left out: {_list(foreign)}")
    if absent:
        monitor.warn(f"no unlabelled images of {len(absent)} classes: {_list(absent)}; adaptation expects all of them")
    return kept


def _class_folder_of(paths: Sequence[str]) -> list[str]:
    """Each image's folder that could be its class: the topmost, or the one below train/, val/ or test/; "": none."""
    parts = [PurePosixPath(path).parts for path in paths]
    split = all(len(found) > 1 and found[0] in SPLITS for found in parts)
    folders = [found[1 if split else 0 : -1] for found in parts]
    return [unicodedata.normalize("NFC", found[0]) if found else "" for found in folders]


def _list(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:_SHOWN]) + (f", ... ({len(shown)})" if len(shown) > _SHOWN else "")


def apart_from(samples: Sequence[Sample], data: Dataset, monitor: Monitor = SILENT) -> list[Sample]:
    """`samples` without those held out in val or test; what is in DATA too is told. Raises DataError (too few)."""
    split_of = {s.digest: split for split in reversed(SPLITS) for s in data.split(split)}
    shared = [split_of[s.digest] for s in samples if s.digest in split_of]
    left = [s for s in samples if split_of.get(s.digest, "train") == "train"]
    if shared:
        counts = ", ".join(f"{shared.count(split)} in {split}" for split in SPLITS if split in shared)
        monitor.warn(
            f"{len(shared)} of {len(samples)} unlabelled images are also in DATA ({counts}); those in val and test "
            "are not adapted to"
        )
    check_enough(left)
    return left


def check_enough(samples: Sequence[Sample]) -> None:
    """Raise DataError where there are fewer different images than FEWEST."""
    different = len({s.digest for s in samples})
    if different < FEWEST:
        raise DataError("too few unlabelled images to adapt to", f"{different}", f"give at least {FEWEST}")
