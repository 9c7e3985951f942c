"""DATA of cli.md: an image folder, a split layout or a CSV becomes a Dataset."""

from __future__ import annotations

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Set, Tuple

from edgetl.bundle import sha256_file
from edgetl.errors import DataError
from edgetl.images.dataset import SPLITS, Dataset, Draw, ReadOptions, Sample
from edgetl.images.listing import Found, from_csv, from_folder
from edgetl.images.split import drop_train_copies, stratified
from edgetl.monitor import SILENT, Monitor


def read_data(source: str, options: Optional[ReadOptions] = None, monitor: Monitor = SILENT) -> Dataset:
    """Read DATA (an image folder, a split layout or a CSV file); see cli.md for the forms.

    Every file is hashed once (identical images must not lie in two splits) and none is decoded.
    Raises DataError.
    """
    options = options or ReadOptions()
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".csv":
        root, (found, warnings) = path.parent, from_csv(path)
    elif path.is_dir():
        root, (found, warnings) = path, from_folder(path)
    elif path.exists():
        raise DataError("DATA must be a folder or a .csv file", source, "give the folder that holds the class folders")
    else:
        raise DataError("no such folder or CSV file", source, "check the path")
    root = Path(os.path.abspath(str(root)))
    relative = _relative([f.path for f in found], root)
    found, unmatched = _grouped(found, relative, options.group_by)
    warnings += unmatched
    labels = _labels(found, options.labels, source)
    index = {label: i for i, label in enumerate(labels)}
    samples = [
        (f.split, Sample(path, index[f.label], digest, f.group))
        for f, path, digest in zip(found, relative, hashed([f.path for f in found], monitor))
    ]
    warnings += _two_labels([s for _, s in samples], labels, options.strict)
    for line in _groups_told([s for _, s in samples], labels):
        monitor.say(line)
    return _split(samples, root, labels, options, warnings)


def _relative(paths: Sequence[str], root: Path) -> List[str]:
    """POSIX paths from `root`. Raises DataError for a name that is not Unicode: no manifest could hold it."""
    out = []
    folders: Dict[str, str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = Path(os.path.relpath(folder or ".", str(root))).as_posix()
        prefix = folders[folder]
        out.append(name if prefix == "." else prefix + "/" + name)
        try:
            out[-1].encode("utf-8")
        except UnicodeEncodeError:
            raise DataError("a file name is not UTF-8", path, "rename it") from None
    return out


def _grouped(found: List[Found], relative: Sequence[str], pattern: str) -> Tuple[List[Found], List[str]]:
    """(files with their groups, warnings)."""
    if not pattern:
        return found, []
    try:
        regex = re.compile(pattern)
    except re.error as error:
        do = r"such as 'clip(\d+)'"
        raise DataError("--group-by is not a regular expression", "%s (%s)" % (pattern, error), do) from error
    out, hits = [], 0
    for item, path in zip(found, relative):
        match = regex.search(path)
        hits += match is not None
        key = ("/".join(g or "" for g in match.groups()) or match.group(0)) if match else ""
        out.append(item._replace(group=key or item.group))
    if not hits:
        raise DataError("--group-by matches no path", pattern, "it is searched in paths such as " + relative[0])
    other = next((path for item, path in zip(out, relative) if not item.group), None)
    if other is None:
        return out, []
    count = sum(not item.group for item in out)
    return out, ["--group-by leaves %d of %d images in no group, such as %s" % (count, len(out), other)]


def _groups_told(samples: Sequence[Sample], labels: Sequence[str]) -> List[str]:
    """A line on the groups, where there are any: a pattern that catches too little or too much is seen at once."""
    classes: Dict[str, Set[int]] = {}
    for sample in samples:
        if sample.group:
            classes.setdefault(sample.group, set()).add(sample.target)
    if not classes:
        return []
    grouped = sum(bool(sample.group) for sample in samples)
    line = "%d images in %d groups" % (grouped, len(classes))
    if grouped == len(classes):
        line += ": no two share one, so nothing is kept together"
    several = [group for group, targets in classes.items() if len(targets) > 1]
    if several:
        names = ", ".join(labels[target] for target in sorted(classes[several[0]])[:3])
        line += "; %d hold several classes, such as %s (%s), and stay in one split too" % (
            len(several),
            several[0],
            names,
        )
    return [line]


def _labels(found: Sequence[Found], wanted: Tuple[str, ...], source: str) -> Tuple[str, ...]:
    there = {f.label for f in found}
    if wanted:
        unknown = sorted(there - set(wanted))
        if unknown:
            raise DataError(
                "classes that the bundle does not know", ", ".join(unknown[:5]), "known: " + ", ".join(wanted[:10])
            )
        return wanted
    trained = {f.label for f in found if f.split in ("", "train")}
    foreign = sorted(there - trained)
    if not trained:
        raise DataError("there is nothing to train on: no train split", source, "add a train folder (or rows)")
    if foreign:
        raise DataError(
            "val or test holds classes that train lacks", ", ".join(foreign[:5]), "add them to train, or remove them"
        )
    if len(there) < 2:
        raise DataError(
            "one class only", "%s in %s" % (", ".join(there), source), "a classifier wants at least two class folders"
        )
    return tuple(sorted(there))


def hashed(paths: Sequence[str], monitor: Monitor = SILENT) -> List[str]:
    """The sha256 of each file, in order. Raises DataError naming one that cannot be read."""
    # Threads, because sha256 and reading run outside the interpreter's lock; in slices, because one future
    # for each small file would cost as much as its hash.
    slices = [paths[i : i + 256] for i in range(0, len(paths), 256)]
    out: List[str] = []
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        try:
            for found in pool.map(_hash_all, slices):
                out += found
                monitor.progress("listing", len(out), len(paths))
        except OSError as error:
            what = "a link to an image that is gone" if os.path.islink(error.filename) else "an image cannot be read"
            do = "remove it, or make it readable"
            raise DataError(what, "%s (%s)" % (error.filename, error.strerror), do) from error
    return out


def _hash_all(paths: Sequence[str]) -> List[str]:
    return [sha256_file(path) for path in paths]


def _split(
    samples: Sequence[Tuple[str, Sample]],
    root: Path,
    labels: Tuple[str, ...],
    options: ReadOptions,
    warnings: List[str],
) -> Dataset:
    draw = None
    if any(split for split, _ in samples):
        splits = _given(samples, options, warnings)
    else:
        draw = Draw({"val": options.val_fraction, "test": options.test_fraction}, options.seed)
        splits = stratified([s for _, s in samples], draw.fractions, draw.seed)
    splits = {name: splits[name] for name in SPLITS if splits.get(name)}
    if not options.labels:
        _check_trainable(splits, labels, root)
        if options.val_fraction > 0 and "val" not in splits:
            raise DataError("too few different images for a val split", root, "each class wants at least two")
        warnings += _unjudged(splits, labels)
    return Dataset(root, labels, splits, draw is None, tuple(warnings), draw=draw)


def _unjudged(splits: Dict[str, Tuple[Sample, ...]], labels: Tuple[str, ...]) -> List[str]:
    """A line for each of val and test that lacks classes: their accuracy says nothing about these."""
    out = []
    for split in ("val", "test"):
        there = {sample.target for sample in splits.get(split, ())}
        absent = [label for target, label in enumerate(labels) if target not in there]
        if there and absent:
            named = ", ".join(absent[:5]) + (", ... (%d)" % len(absent) if len(absent) > 5 else "")
            out.append(
                "%s has no image of some classes, so it says nothing about them: %s; add images" % (split, named)
            )
    return out


def _given(
    samples: Sequence[Tuple[str, Sample]], options: ReadOptions, warnings: List[str]
) -> Dict[str, Tuple[Sample, ...]]:
    sides: Dict[str, List[Sample]] = {}
    for split, sample in samples:
        sides.setdefault(split, []).append(sample)
    splits, dropped = drop_train_copies(sides)
    if dropped:
        warnings.append("%d training images are also in val or test; the training copies are left out" % dropped)
    both = {s.digest for s in sides.get("val", [])} & {s.digest for s in sides.get("test", [])}
    if both:
        warnings.append("%d images are in both val and test" % len(both))
    spread = _groups_of(sides.get("train", [])) & _groups_of(sides.get("val", []) + sides.get("test", []))
    if spread:
        warnings.append("%d groups are in train and in val or test, such as %s" % (len(spread), min(spread)))
    if "val" not in sides and splits["train"] and options.val_fraction > 0:
        splits.update(stratified(splits["train"], {"val": options.val_fraction}, options.seed))
    return splits


def _groups_of(samples: Sequence[Sample]) -> Set[str]:
    return {s.group for s in samples if s.group}


def _check_trainable(splits: Dict[str, Tuple[Sample, ...]], labels: Tuple[str, ...], root: Path) -> None:
    trained = Counter(sample.target for sample in splits.get("train", ()))
    missing = [label for i, label in enumerate(labels) if not trained[i]]
    if missing:
        raise DataError(
            "a class has no training images of its own (its copies are in val or test, or its groups span classes)",
            "%s in %s" % (", ".join(missing[:5]), root),
            "add images, or use finer groups",
        )


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
