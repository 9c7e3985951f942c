"""The images a bundle speaks of: its own splits where they still lie, or DATA given in their place.

Python 3.8, numpy and Pillow.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

from edgetl.bundle import Bundle
from edgetl.errors import BundleError, DataError
from edgetl.images.dataset import Dataset, ReadOptions, Sample
from edgetl.images.decode import EXTENSIONS
from edgetl.images.listing import JUNK_FOLDERS
from edgetl.images.read import hashed, read_data
from edgetl.monitor import SILENT, Monitor

UNLABELLED = -1  # the target of an image whose class nobody told


def open_data(
    bundle: Bundle, split: str, override: Optional[str] = None, option: str = "--data"
) -> Tuple[Dataset, List[Sample], str]:
    """(data set, samples, name of the split they are) for `split` ("train", "val", "test", "calibration").

    Without `override`: the bundle's recorded split, from the folder that local.json names. With it: DATA
    (cli.md) in the bundle's class order; where DATA holds given splits the split of that name is used
    (train for "calibration"), else all of its images, and the name is "all".
    Raises DataError / BundleError that name `option` as the way out.
    """
    if override:
        return _given(bundle, split, override)
    data = _recorded(bundle, option)
    samples = list(data.split(split))
    if not samples:
        raise DataError("the bundle has no %s images" % split, bundle.path, "give some with %s DATA" % option)
    return data, samples, split


def _recorded(bundle: Bundle, option: str) -> Dataset:
    found = bundle.artifacts("splits")
    if not found:
        raise DataError("the bundle holds no splits of its own", bundle.path, "give images with %s DATA" % option)
    root = bundle.local.get("data")
    if not root:
        raise DataError(
            "the bundle does not know where its images are (it has travelled)",
            bundle.path,
            "give them with %s DATA" % option,
        )
    folder = Path(str(root))
    if folder.is_file():
        folder = folder.parent  # a CSV: its paths are relative to it
    if not folder.is_dir():
        raise DataError("the bundle's images are gone or were moved", folder, "give them with %s DATA" % option)
    try:
        rows = json.loads(bundle.file(found[-1]).read_text(encoding="utf-8"))
        return Dataset.from_json(rows, folder, bundle.labels)
    except (ValueError, TypeError, AttributeError) as error:
        do = "restore the file, or make the bundle anew with `edgetl finetune`"
        raise BundleError("the bundle's splits cannot be read", "%s (%s)" % (bundle.path, error), do) from error


def _given(bundle: Bundle, split: str, override: str) -> Tuple[Dataset, List[Sample], str]:
    options = ReadOptions(val_fraction=0.0, test_fraction=0.0, labels=tuple(bundle.labels))
    data = read_data(override, options)
    if not data.given:
        return data, data.all(), "all"
    wanted = "train" if split == "calibration" else split
    samples = list(data.split(wanted))
    if not samples:
        there = ", ".join(name for name, found in data.splits.items() if found)
        raise DataError("DATA has no %s split" % wanted, override, "it has: " + there)
    return data, samples, wanted


def read_unlabelled(folder: str, monitor: Monitor = SILENT) -> Tuple[Path, List[Sample]]:
    """(root, samples with target UNLABELLED) of every image below `folder`, in path order. Raises DataError."""
    root = Path(os.path.abspath(folder))
    if not root.is_dir():
        raise DataError("no such folder", folder, "check the path")
    paths = sorted(_images_below(root))
    if not paths:
        raise DataError("no images in this folder", folder, "put some there (%s)" % " ".join(EXTENSIONS))
    digests = hashed([str(p) for p in paths], monitor)
    return root, [Sample(p.relative_to(root).as_posix(), UNLABELLED, d) for p, d in zip(paths, digests)]


def _images_below(root: Path) -> Iterator[Path]:
    """Through links to folders too, as class folders are read, each folder once; nothing hidden, and no junk."""
    seen = set()
    for folder, names, files in os.walk(str(root), onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above
            names[:] = []
            continue
        seen.add(real)
        names[:] = [name for name in names if not name.startswith(".") and name not in JUNK_FOLDERS]
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.suffix.lower() in EXTENSIONS and path.is_file():
                yield path


def _unreadable(error: OSError) -> None:
    do = "make it readable"
    raise DataError("a folder cannot be read", "%s (%s)" % (error.filename, error.strerror), do) from error


def without(samples: Sequence[Sample], others: Sequence[Sample]) -> List[Sample]:
    """`samples` whose bytes are not among `others`."""
    held = {sample.digest for sample in others}
    return [sample for sample in samples if sample.digest not in held]
