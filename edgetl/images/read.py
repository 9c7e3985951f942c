"""DATA of cli.md: an image folder, a split layout or a CSV becomes a Dataset."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple

from edgetl.bundle import sha256_file
from edgetl.errors import DataError
from edgetl.images.dataset import SPLITS, Dataset, ReadOptions, Sample
from edgetl.images.decode import EXTENSIONS
from edgetl.images.split import drop_train_copies, stratified


class _Found(NamedTuple):
    """One listed file before it was hashed: absolute path, label, split ("" where none was given), group."""

    path: str
    label: str
    split: str
    group: str


def read_data(source: str, options: ReadOptions = ReadOptions()) -> Dataset:
    """Read DATA (an image folder, a split layout or a CSV file); see cli.md for the forms.

    Every file is hashed once (identical images must not lie in two splits) and none is decoded.
    Raises DataError.
    """
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".csv":
        root, found = path.parent, _from_csv(path)
    elif path.is_dir():
        root, found = path, _from_folder(path)
    elif path.exists():
        raise DataError("DATA must be a folder or a .csv file", source)
    else:
        raise DataError("no such folder or CSV file", source, "check the path")
    root = Path(os.path.abspath(str(root)))
    found = _grouped(found, root, options.group_by)
    labels = _labels(found, options.labels, source)
    digests = _hashed([f.path for f in found])
    index = {label: i for i, label in enumerate(labels)}
    samples = [
        (f.split, Sample(Path(os.path.relpath(f.path, str(root))).as_posix(), index[f.label], digest, f.group))
        for f, digest in zip(found, digests)
    ]
    return _split(samples, root, labels, options)


def _from_folder(path: Path) -> List[_Found]:
    folders = _folders(path)
    given = [name for name in folders if name in SPLITS]
    if not given:
        return _class_folders(path, folders, "")
    others = [name for name in folders if name not in SPLITS]
    if others:
        raise DataError(
            "class folders beside train/val/test folders",
            "%s beside %s in %s" % (others[0], given[0], path),
            "use one layout; for classes that are called train, val or test, use a CSV",
        )
    return [f for name in given for f in _class_folders(path / name, _folders(path / name), name)]


def _class_folders(path: Path, names: Sequence[str], split: str) -> List[_Found]:
    if not names:
        raise DataError("no class folders with images", path, "put the images in %s/<class>/" % path)
    out = []
    for name in names:
        files, nested = [], []
        for entry in os.scandir(str(path / name)):
            if entry.is_dir() and not entry.name.startswith("."):
                nested.append(entry.name)
            elif entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith("."):
                files.append(entry.path)
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
        out.extend(_Found(file, label, split, "") for file in sorted(files))
    return out


def _folders(path: Path) -> List[str]:
    return sorted(e.name for e in os.scandir(str(path)) if e.is_dir() and not e.name.startswith((".", "__")))


def _from_csv(path: Path) -> List[_Found]:
    try:
        with open(str(path), encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = [c.strip() for c in reader.fieldnames or []]
            if not {"path", "label"} <= set(columns) or set(columns) - {"path", "label", "split", "group"}:
                raise DataError("a CSV wants the columns path,label[,split][,group]", ",".join(columns) or path)
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("the CSV cannot be read", "%s (%s)" % (path, error), "save it as UTF-8") from error
    if not rows:
        raise DataError("the CSV has no rows", path)
    return [_csv_row(path, line, row, "split" in columns) for line, row in rows]


def _csv_row(path: Path, line: int, row: Dict[str, str], has_split: bool) -> _Found:
    where = "%s line %d" % (path, line)
    values = {key: (row.get(key) or "").strip() for key in ("path", "label", "split", "group")}
    if not values["path"] or not values["label"]:
        raise DataError("a row lacks its path or label", where)
    if has_split and values["split"] not in SPLITS:
        raise DataError("split must be train, val or test", "%r in %s" % (values["split"], where))
    file = os.path.normpath(os.path.join(str(path.parent), values["path"]))
    if not os.path.isfile(file):
        raise DataError("no such image", "%s (%s)" % (file, where), "paths are relative to the CSV file")
    if not file.lower().endswith(EXTENSIONS):
        raise DataError("not an image file name", "%s (%s)" % (file, where), "known: " + " ".join(EXTENSIONS))
    return _Found(file, unicodedata.normalize("NFC", values["label"]), values["split"], values["group"])


def _grouped(found: List[_Found], root: Path, pattern: str) -> List[_Found]:
    if not pattern:
        return found
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise DataError("--group-by is not a regular expression", "%s (%s)" % (pattern, error)) from error
    out, hits = [], 0
    for item in found:
        match = regex.search(Path(os.path.relpath(item.path, str(root))).as_posix())
        hits += match is not None
        key = (match.group(1) if match.groups() else match.group(0)) if match else item.group
        out.append(item._replace(group=key or item.group))
    if not hits:
        raise DataError("--group-by matches no path", pattern, "it is searched in paths such as " + found[0].path)
    return out


def _labels(found: Sequence[_Found], wanted: Tuple[str, ...], source: str) -> Tuple[str, ...]:
    trained = {f.label for f in found if f.split in ("", "train")}
    there = {f.label for f in found}
    if wanted:
        unknown = sorted(there - set(wanted))
        if unknown:
            raise DataError(
                "classes that the bundle does not know", ", ".join(unknown[:5]), "known: " + ", ".join(wanted[:10])
            )
        return wanted
    foreign = sorted(there - trained)
    if trained and foreign:
        raise DataError("val or test holds classes that train lacks", ", ".join(foreign[:5]))
    if len(there) < 2:
        raise DataError(
            "one class only", "%s in %s" % (", ".join(there), source), "a classifier wants at least two class folders"
        )
    return tuple(sorted(there))


def _hashed(paths: Sequence[str]) -> List[str]:
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        try:
            return list(pool.map(sha256_file, paths, chunksize=64))
        except OSError as error:
            raise DataError("an image cannot be read", "%s (%s)" % (error.filename, error.strerror)) from error


def _split(
    samples: Sequence[Tuple[str, Sample]], root: Path, labels: Tuple[str, ...], options: ReadOptions
) -> Dataset:
    warnings = _two_labels([s for _, s in samples], labels, options.strict)
    given = any(split for split, _ in samples)
    if not given:
        fractions = {"val": options.val_fraction, "test": options.test_fraction}
        return Dataset(
            root, labels, stratified([s for _, s in samples], fractions, options.seed), False, tuple(warnings)
        )
    sides: Dict[str, List[Sample]] = {}
    for split, sample in samples:
        sides.setdefault(split, []).append(sample)
    splits, dropped = drop_train_copies(sides)
    if dropped:
        warnings.append("%d training images are also in val or test; the training copies are left out" % dropped)
    if "val" not in sides and splits["train"] and options.val_fraction > 0:
        splits.update(stratified(splits["train"], {"val": options.val_fraction}, options.seed))
    return Dataset(root, labels, {k: v for k, v in splits.items() if v}, True, tuple(warnings))


def _two_labels(samples: Sequence[Sample], labels: Tuple[str, ...], strict: bool) -> List[str]:
    """Warnings for identical images under two labels; DataError instead when `strict`."""
    first: Dict[str, Sample] = {}
    clashes = []
    for sample in samples:
        other = first.setdefault(sample.digest, sample)
        if other.target != sample.target:
            clashes.append("%s (%s) = %s (%s)" % (other.path, labels[other.target], sample.path, labels[sample.target]))
    if clashes and strict:
        raise DataError("one image with two labels", clashes[0], "%d in all; fix the labels" % len(clashes))
    return ["one image with two labels: " + clash for clash in clashes]
