"""`--folds K`: stratified, group-aware cross-validation of the whole procedure, from the probe to the choice by val.

Each image is held out once. A fold's network is fitted to the others, of which a part is its val; pixels and frozen
features are those of the run. What comes out is about the procedure, not about the bundle's one network.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgetl.bundle import atomic_json, read_json, sweep
from edgetl.errors import DataError, InputError
from edgetl.images import Dataset, Sample
from edgetl.images.dataset import rank_of
from edgetl.images.split import class_of, stratified, units
from edgetl.measure.score import metrics
from edgetl.stats import student, wilson
from edgetl.transfer import leakage
from edgetl.transfer.division import divided
from edgetl.transfer.fit import Fitted, fit
from edgetl.transfer.prepare import check_splits
from edgetl.transfer.run import Logits, Run

Folds = tuple[tuple[Sample, ...], ...]
Links = Sequence[tuple[str, str]]


def divisions(data: Dataset, k: int, seed: int, links: Links = ()) -> list[Dataset]:
    """`data` divided `k` times: the fold held out is "test", the rest "train" and "val" in the proportions of `data`.

    Where the user gave a test split it is not touched; drawn splits are put together first. `links` between digests
    join images as groups do. Raises InputError naming the smallest class where it has fewer than `k` such units.
    """
    pool = [*data.split("train"), *data.split("val")] if data.given else data.all()
    share = len(data.split("val")) / (len(data.split("train")) + len(data.split("val")))
    folds = _dealt(pool, k, seed, data.labels, links)
    out = []
    for held in folds:
        rest = [sample for fold in folds if fold is not held for sample in fold]
        inner = stratified(rest, {"val": share}, seed, _within(rest, links))
        division = replace(data, splits={**inner, "test": held})
        try:
            check_splits(division)
        except DataError as error:
            raise InputError(f"a fold cannot be fitted: {error.what}", f"--folds {k}", "add images") from error
        out.append(division)
    return out


def _within(samples: Sequence[Sample], links: Links) -> Links:
    there = {sample.digest for sample in samples}
    return [link for link in links if there.issuperset(link)]


def _dealt(pool: Sequence[Sample], k: int, seed: int, labels: Sequence[str], links: Links) -> Folds:
    """`pool` in `k` folds, class by class: each unit (image, or group) goes where its class has fewest images."""
    by_class: dict[int, list[list[Sample]]] = {target: [] for target in range(len(labels))}
    for unit in units(pool, _within(pool, links)):
        by_class[class_of(unit)].append(unit)
    smallest = min(by_class, key=lambda target: len(by_class[target]))
    found = len(by_class[smallest])
    if found < k:
        do = f"use --folds {found}, or add images" if found > 1 else "add images"
        what = f"--folds {k}, and {labels[smallest]} has {found} that differ in content and group"
        raise InputError("more folds than the smallest class has images", what, do)
    folds: list[list[Sample]] = [[] for _ in range(k)]
    for queue in by_class.values():
        here = [0] * k
        # Large groups first: small ones even out what they leave.
        for unit in sorted(queue, key=lambda u: (-len(u), min(rank_of(seed, s.digest) for s in u))):
            fold = min(range(k), key=lambda i: (here[i], len(folds[i]), i))
            folds[fold].extend(unit)
            here[fold] += len(unit)
    return tuple(tuple(sorted(fold, key=lambda s: (s.target, s.path))) for fold in folds)


def cross_validate(run: Run, k: int) -> dict[str, Any]:
    """`folds` of finetune's object; finished folds of a killed run are read, the one under way is continued."""
    folder = run.folder / "folds"
    folder.mkdir(exist_ok=True)
    rows, logits, targets = [], [], []
    parts, alike = run.group.first(lambda: _looked_at(run, k))
    _warn_of_the_teacher(run, parts)
    for number, division in enumerate(parts, start=1):
        row, answers = _fold(divided(run, division, folder / str(number), f"fold {number} of {k}"), number)
        rows.append(row)
        logits.append(answers)
        targets.append(np.array([s.target for s in division.split("test")], np.int64))
    pooled = metrics(np.concatenate(logits), np.concatenate(targets), run.data.labels)
    low, high = interval([row["accuracy"] for row in rows], round(pooled["accuracy"] * pooled["n"]), pooled["n"])
    return {
        "k": k,
        "n": pooled["n"],
        **_spread("accuracy", [row["accuracy"] for row in rows]),
        "accuracy_ci": [low, high],
        **_spread("macro_f1", [row["macro_f1"] for row in rows]),
        "linear_probe": _spread("accuracy", [row["linear_probe"] for row in rows]),
        "near_duplicates": alike,
        "pooled": pooled,
        "per_fold": rows,
    }


def _warn_of_the_teacher(run: Run, parts: Sequence[Dataset]) -> None:
    """A fold holds out what was training data of the run, and so perhaps of its teacher, who tells what it learnt."""
    held_out = {sample.digest for division in parts for sample in division.split("test")}
    seen = len(held_out & run.start.teacher.trained_on) if run.start.teacher else 0
    if seen:
        run.monitor.warn(
            f"the teacher was trained on {seen} of the {len(held_out)} images that the folds hold out: the figures on "
            "folds are too good; cross-validate without --teacher"
        )


def _looked_at(run: Run, k: int) -> tuple[list[Dataset], int | None]:
    """The divisions as --near-duplicates wants them, and how many images held out look like one that was fitted on.

    "together" joins what looks alike and deals again, until nothing lies across; None: not looked at.
    """
    wish = run.options.near_duplicates
    links: list[tuple[str, str]] = []
    rows: list[leakage.Row] = []
    prints = leakage.Prints(run.store.image)
    for _ in range(leakage.ROUNDS):
        found = divisions(run.data, k, run.options.seed, links)
        if wish == "ignore":
            return found, None
        rows = [row for division in found for row in leakage.near_duplicates(division, prints)]
        if wish == "warn" or not rows:
            break
        digest = {sample.path: sample.digest for sample in run.data.all()}
        links += [(digest[row["image"]], digest[row["like"]]) for row in rows]
    alike = len({row["image"] for row in rows if row["split"] == "test"})
    if alike:
        run.monitor.warn(
            f"{alike} images are held out while a near-duplicate is fitted on, so the figures on folds are too good; "
            "--near-duplicates together keeps such in one fold"
        )
    return found, alike


def _fold(run: Run, number: int) -> tuple[dict[str, Any], Logits]:
    """One fold's row, and the logits (N, C) of the images held out."""
    done, kept = run.folder.with_suffix(".json"), run.folder.with_suffix(".npy")
    if done.is_file():
        sweep(run.folder)
        return read_json(done, "result of a fold"), np.load(kept)
    started = time.perf_counter()
    found = fit(run)
    logits, probed = held_out(run, found)
    seen = run.metrics(logits, "test")
    row = {
        "fold": number,
        "n": {name: len(run.data.split(split)) for name, split in _NAMES.items()},
        "chosen": found.chosen,
        "best_epoch": found.best_epoch,
        "accuracy": seen["accuracy"],
        "accuracy_ci": seen["accuracy_ci"],
        "macro_f1": seen["macro_f1"],
        "linear_probe": float((probed.argmax(1) == run.targets("test")).mean()),
        "seconds": round(time.perf_counter() - started, 3),
    }
    run.monitor.say(f"accuracy {row['accuracy']:.3f} on {len(logits)} images held out ({found.chosen})")
    np.save(kept, logits)
    atomic_json(done, row)  # last: a fold with its row is whole
    sweep(run.folder)
    return row, logits


_NAMES = {"train": "train", "val": "val", "held_out": "test"}


def held_out(run: Run, found: Fitted) -> tuple[Logits, Logits]:
    """Logits (N, C) of the kept network and the probe on the test split; by known features where the body is frozen."""
    features = run.features(run.data.split("test"))
    head = found.choice.kept.head
    return run.logits("test") if head is None else head.logits(features), found.probe.logits(features)


def interval(accuracies: Sequence[float], hits: int, n: int) -> tuple[float, float]:
    """95 % interval of the mean accuracy of K folds, `hits` of the `n` images being right in all.

    The t interval with Nadeau and Bengio's correction (2003, section 3: the folds' training sets overlap, so the
    variance is s^2 (1/K + 1/(K-1)) and not s^2/K), or Wilson's of the pooled images where that is wider: K equal
    folds have no spread, and still they are few images.
    """
    k, mean = len(accuracies), float(np.mean(accuracies))
    half = student(k - 1) * float(np.std(accuracies, ddof=1)) * (1 / k + 1 / (k - 1)) ** 0.5
    low, high = wilson(hits, n)
    return max(0.0, min(mean - half, low)), min(1.0, max(mean + half, high))


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {name: float(np.mean(values)), f"{name}_sd": float(np.std(values, ddof=1))}
