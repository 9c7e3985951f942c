"""Which files DATA names, and with which labels, before any of them is opened."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import ContextManager, Dict, Iterator, List, NamedTuple, Sequence, Tuple

from edgetl.errors import DataError
from edgetl.images.dataset import SPLITS
from edgetl.images.decode import EXTENSIONS

JUNK_FOLDERS = ("__MACOSX", "__pycache__")  # left by archive programs and interpreters, no one's class
_OTHER_WORDS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
_COLUMNS = ("path", "label", "split", "group")


class Found(NamedTuple):
    """One listed file before it was hashed: path, label, split ("" where none was given), group."""

    path: str
    label: str
    split: str
    group: str


def from_folder(path: Path) -> Tuple[List[Found], List[str]]:
    """(files, warnings) of an image folder or a split layout. Raises DataError."""
    folders = _folders(path)
    given = [name for name in SPLITS if name in folders]
    others = [name for name in folders if name not in SPLITS]
    ignored: Counter[str] = Counter()
    if not given:
        found = _class_folders(path, folders, "", ignored)
    elif others:
        meant = _OTHER_WORDS.get(others[0].lower())
        raise DataError(
            "class folders beside train/val/test folders",
            "%s beside %s in %s" % (others[0], given[0], path),
            "rename it to %s" % meant
            if meant
            else "use one layout; for classes that are called train, val or test, use a CSV",
        )
    else:
        found = [f for name in given for f in _class_folders(path / name, _folders(path / name), name, ignored)]
    return found, _not_images(ignored)


def _folders(path: Path) -> List[str]:
    with _listing(path) as entries:
        return sorted(
            e.name for e in entries if e.is_dir() and not e.name.startswith(".") and e.name not in JUNK_FOLDERS
        )


def _listing(path: Path) -> ContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(str(path))
    except OSError as error:
        raise DataError("a folder cannot be read", "%s (%s)" % (path, error.strerror), "make it readable") from error


def _class_folders(path: Path, names: Sequence[str], split: str, ignored: Counter[str]) -> List[Found]:
    if not names:
        raise DataError("no class folders with images", path, "put the images in %s/<class>/" % path)
    return [found for name in names for found in _class_folder(path, name, split, ignored)]


def _class_folder(path: Path, name: str, split: str, ignored: Counter[str]) -> List[Found]:
    files, nested = [], []
    with _listing(path / name) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                nested.append(entry.name)
            elif entry.name.lower().endswith(EXTENSIONS):
                files.append(entry.path)
            else:
                ignored[os.path.splitext(entry.name)[1].lower() or "no extension"] += 1
    if nested:
        raise DataError(
            "folders inside a class folder",
            "%s holds %s" % (path / name, ", ".join(sorted(nested)[:3])),
            "the levels must be %s/<class>/<image>" % path,
        )
    if not files:
        raise DataError(
            "a class without images", path / name, "add images (%s) or remove the folder" % " ".join(EXTENSIONS)
        )
    label = unicodedata.normalize("NFC", name)
    return [Found(file, label, split, "") for file in sorted(files)]


def _not_images(ignored: Counter[str]) -> List[str]:
    if not ignored:
        return []
    kinds = ", ".join("%d %s" % (count, kind) for kind, count in ignored.most_common(5))
    return ["%d files in class folders are left out by their names (%s)" % (sum(ignored.values()), kinds)]


def from_csv(path: Path) -> Tuple[List[Found], List[str]]:
    """(files, warnings) of a CSV `path,label[,split][,group]`, paths relative to it. Raises DataError."""
    try:
        with open(str(path), encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
            columns = [c.strip() for c in reader.fieldnames or []]
            if not {"path", "label"} <= set(columns) <= set(_COLUMNS) or len(set(columns)) < len(columns):
                raise DataError(
                    "a CSV wants the columns path,label[,split][,group]",
                    "%s in %s" % (",".join(columns) or "no first line", path),
                    "name them in its first line, with commas between them",
                )
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError as error:
        raise DataError("the CSV cannot be read", "%s (%s)" % (path, error), "save it as UTF-8") from error
    except csv.Error as error:
        do = 'quote a whole value, "like, this", and double the quotes in it'
        raise DataError("the CSV cannot be read", "%s (%s)" % (path, error), do) from error
    except OSError as error:
        raise DataError("the CSV cannot be read", "%s (%s)" % (path, error.strerror), "make it readable") from error
    if not rows:
        raise DataError("the CSV has no rows", path, "give it a line for each image")
    found = [_csv_row(path, line, row, "split" in columns) for line, row in rows]
    paths = Counter(f.path for f in found)
    twice = [f.path for f in found if paths[f.path] > 1]
    if twice:
        raise DataError("the CSV names a file twice", twice[0], "keep one of its rows")
    return found, []


def _csv_row(path: Path, line: int, row: Dict[str, str], has_split: bool) -> Found:
    where = "%s line %d" % (path, line)
    if None in row:  # csv's key for what is beyond the last column
        raise DataError("a row has more columns than the first line", where, "quote values that hold commas")
    values = {key: (row.get(key) or "").strip() for key in _COLUMNS}
    if not values["path"] or not values["label"]:
        raise DataError("a row lacks its path or label", where, "fill it in, or remove the row")
    if has_split and values["split"] not in SPLITS:
        do = "correct it, or leave the column out to have the splits drawn"
        raise DataError("split must be train, val or test", "%r in %s" % (values["split"], where), do)
    file = os.path.normpath(os.path.join(str(path.parent), values["path"]))
    if not os.path.isfile(file):
        raise DataError("no such image", "%s (%s)" % (file, where), "paths are relative to the CSV file")
    if not file.lower().endswith(EXTENSIONS):
        raise DataError("not an image file name", "%s (%s)" % (file, where), "known: " + " ".join(EXTENSIONS))
    return Found(file, unicodedata.normalize("NFC", values["label"]), values["split"], values["group"])
