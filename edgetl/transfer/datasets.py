"""torchvision:NAME as DATA: the data set written out once as an image folder with train/, val/ and test/.

So everything after it (splits, digests, calibration, bench) sees files, as with anyone's own photos.
"""

from __future__ import annotations

import contextlib
import difflib
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

from PIL import Image
from torchvision import datasets

from edgetl.errors import DataError, disk_errors
from edgetl.monitor import SILENT, Monitor

PREFIX = "torchvision:"
DEFAULT_ROOT = Path("~/.cache/edgetl/data")


@dataclass(frozen=True)
class Source:
    """Builder arguments for each split the data set has; "all" where it has none (edgetl then draws them)."""

    splits: Mapping[str, Mapping[str, Any]]
    more: Mapping[str, Any] = field(default_factory=dict)


_FLAG = Source({"train": {"train": True}, "test": {"train": False}})
_TWO = Source({"train": {"split": "train"}, "test": {"split": "test"}})
_THREE = Source({"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}})
_WHOLE = Source({"all": {}})
SOURCES: dict[str, Source] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "Country211": Source({"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}),
    "DTD": _THREE,
    "EMNIST": Source(_FLAG.splits, {"split": "balanced"}),
    "EuroSAT": _WHOLE,
    "FGVCAircraft": _THREE,
    "FashionMNIST": _FLAG,
    "Flowers102": _THREE,
    "Food101": _TWO,
    "GTSRB": _TWO,
    "Imagenette": Source({"train": {"split": "train"}, "test": {"split": "val"}}, {"size": "160px"}),
    "KMNIST": _FLAG,
    "MNIST": _FLAG,
    "OxfordIIITPet": Source({"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "PCAM": _THREE,
    "QMNIST": _FLAG,
    "RenderedSST2": _THREE,
    "SEMEION": _WHOLE,
    "STL10": _TWO,
    "SUN397": _WHOLE,
    "SVHN": _TWO,
    "StanfordCars": _TWO,
    "USPS": _FLAG,
}


def materialise(source: str, data_root: Path | None = None, monitor: Monitor = SILENT) -> Path:
    """The image folder of "torchvision:NAME" under `data_root`, downloaded and written on first use.

    Images are written losslessly (PNG). The folder appears whole or not at all. Raises DataError.
    """
    name = source.removeprefix(PREFIX)
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.4)
        known = "did you mean " + PREFIX + near[0] + "?" if near else "known: " + ", ".join(SOURCES)
        raise DataError("unknown torchvision data set", name, known)
    root = (data_root or DEFAULT_ROOT).expanduser()
    target = root / "folders" / name
    if target.is_dir():
        return target
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="." + name + ".", dir=target.parent))
        try:
            for split, arguments in SOURCES[name].splits.items():
                found = _open(name, root, {**SOURCES[name].more, **arguments})
                _write(found, temporary if split == "all" else temporary / split, f"{name} {split}", monitor)
            temporary.chmod(0o755)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _open(name: str, root: Path, arguments: Mapping[str, Any]) -> Any:
    with _quiet_stdout():
        try:
            return getattr(datasets, name)(str(root / "downloads"), download=True, **arguments)
        except (URLError, OSError, RuntimeError, ModuleNotFoundError) as error:
            # RuntimeError: bytes without the published hash; ModuleNotFoundError: SVHN and STL10 may want scipy.
            raise DataError(
                "the torchvision data set could not be downloaded",
                f"{name} ({error})",
                "check the connection, or put its files under --data-root",
            ) from error


def _write(found: Any, folder: Path, what: str, monitor: Monitor) -> None:
    """Each image as folder/<class>/<index>.png."""
    names = class_names(found)
    for index, (image, target) in enumerate(_items(found)):
        label = names[int(target)] if names else str(int(target))
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:06}.png", compress_level=1)
        monitor.progress(what, index + 1, len(found))


def _items(found: Any) -> Iterator[tuple[Image.Image, int]]:
    for index in range(len(found)):
        try:
            image, target = found[index]
            image.load()
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow reports a broken file as
            raise DataError(
                "an image of the data set cannot be read",
                f"{type(found).__name__} {index} ({error})",
                "remove what was downloaded (--data-root) and run this again",
            ) from error
        yield image, int(target)


def class_names(found: Any) -> list[str]:
    """Folder names of a torchvision data set's classes by index; empty where it has no names."""
    names = getattr(found, "classes", None) or getattr(found, "categories", None)
    if not names:
        return []
    # MNIST's are "0 - zero" and SUN397's hold slashes; a class is one folder, and "." or "" is none.
    safe = [unicodedata.normalize("NFC", str(n)).replace("/", "_").strip(" .") or "_" for n in names]
    return safe if len(set(safe)) == len(safe) else [f"{i:03} {n}" for i, n in enumerate(safe)]


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """torchvision prints its downloads on stdout, which belongs to our JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
