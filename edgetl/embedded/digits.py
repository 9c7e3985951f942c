"""The demo's data: scikit-learn's load_digits, 1,797 scans of handwritten digits, as an image folder.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, 1998 (CC BY 4.0): 8 x 8 pixels of 17 grey levels, written by 13 people.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from edgetl.bundle import atomic_json
from edgetl.errors import DataError, disk_errors
from edgetl.images import SPLITS, rank_of

TRAIN_PER_CLASS = 10
VAL_PER_CLASS = 50  # 500 images: the guard can tell a drop of one point from none
MARK = "digits.json"  # outside the split folders, so that reading the data ignores it


def write_digits(to: Path, train_per_class: int = TRAIN_PER_CLASS, val_per_class: int = VAL_PER_CLASS) -> Path:
    """Write `to`/{train,val,test}/<digit>/<index>.png, 8 x 8 grey; what is neither train nor val is test.

    The draw is the same everywhere. Files that are there already, whole and unchanged, are left as they
    are. Raises DataError where `to` is something else, DiskError.
    """
    mark = to / MARK
    if mark.is_file():
        wanted = {"train_per_class": train_per_class, "val_per_class": val_per_class, "digest": _digest(to)}
        if json.loads(mark.read_text(encoding="utf-8")) == wanted:
            return to
    elif to.exists() and any(to.iterdir()):
        raise DataError("this folder holds something else than the demo's digits", to, "choose another --to")
    with disk_errors(to):
        for split in SPLITS:
            shutil.rmtree(to / split, ignore_errors=True)
        _write(to, train_per_class, val_per_class)
        # Written last: a folder without it was cut short, and one with it can be checked.
        atomic_json(mark, {"train_per_class": train_per_class, "val_per_class": val_per_class, "digest": _digest(to)})
    return to


def _write(to: Path, train_per_class: int, val_per_class: int) -> None:
    digits = load_digits()
    to.mkdir(parents=True, exist_ok=True)
    # Made first: a run that is killed after this line is recognised, and begins again.
    atomic_json(to / MARK, {})
    for target in range(10):
        indices = [int(i) for i in np.flatnonzero(digits.target == target)]
        for place, index in enumerate(sorted(indices, key=lambda i: rank_of(0, str(i)))):
            split = "train" if place < train_per_class else "val" if place < train_per_class + val_per_class else "test"
            folder = to / split / str(target)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)  # 17 levels, 0 to 16
            Image.fromarray(pixels).save(folder / f"{index:04}.png")


def _digest(to: Path) -> str:
    """sha256 over the names and bytes of all images under `to`."""
    total = hashlib.sha256()
    for path in sorted(to.glob("*/*/*.png")):
        total.update(path.relative_to(to).as_posix().encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
