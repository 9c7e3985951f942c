"""The stage behind `edgetl finetune`: images -> probe -> fine-tuning -> checkpoint in a bundle.

Unfinished work lies in `<bundle>.work/finetune` (pixels, features, probe, training state), each phase written
so that a killed run is continued where it stopped. torch and scikit-learn load when the stage starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import bundle as bundles
from edgetl.errors import BundleError, InputError, StageError, disk_errors
from edgetl.images import Dataset
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer.options import FinetuneOptions

if TYPE_CHECKING:
    from edgetl.transfer.prepare import Start
    from edgetl.transfer.processes import Group

# Of the work folder, for other processes. Pixels and features are read where the first process writes them.
NOT_COPIED = ("pixels*", "*.f32", "process-*", "tensorboard", "new")
WORK = "finetune"
# Of finetune's object, in cli.md's order (the manifest sorts its keys).
FIELDS = (
    *("bundle", "backbone", "strategy", "chosen", "selection", "labels", "n", "best_epoch", "val", "test"),
    *("linear_probe", "adaptation", "near_duplicates", "confidence", "folds", "label_budget"),
    *("seconds", "images_per_second"),
)


def finetune(
    data: Dataset, to: Path, options: FinetuneOptions, monitor: Monitor = SILENT, group: Group | None = None
) -> dict[str, Any]:
    """Fine-tune a backbone on `data` and make the bundle `to`; returns finetune's object of cli.md.

    Every process of `group` calls this and gets the result; the first one alone writes the bundle and speaks.
    Bad input leaves nothing behind; a killed or interrupted run leaves what --resume continues from.
    Raises InputError and its kinds, BundleError (a bundle is there, or locked), StageError.
    """
    from edgetl.transfer.processes import ALONE

    group = group or ALONE

    def phases(start: Start, folder: Path, monitor: Monitor) -> dict[str, Any]:
        from edgetl.transfer.phases import carry_out

        return carry_out(data, to, start, options, folder, monitor, group)

    if group.rank:
        return follow(data, options, group, phases)
    there = to.exists() and not (to.is_dir() and not any(to.iterdir()))
    if there and not options.overwrite and not options.resume:
        raise BundleError("there is something at this place already", to, "use --overwrite, or another --to")
    if there:
        bundles.Bundle.open(to)  # what is no bundle is not written into: said now, not after the training
    from edgetl.transfer.prepare import prepare

    start = prepare(data, options, monitor)
    _check_evaluation(data, options)
    with bundles.locked(to) as work:
        folder = work / WORK
        if there and options.resume:
            result = _finished(to, start, options)
            if result is not None:
                bundles.sweep(folder)
                group.first(lambda: (folder, result))
                return result
        begin(folder, start, options)
        group.first(lambda: (folder, None))
        group.wait()  # until the others have copied what is there
        try:
            result = phases(start, folder, monitor)
        except InputError:
            bundles.sweep(folder)
            raise
        bundles.sweep(folder)
    return result


def follow(
    data: Dataset, options: FinetuneOptions, group: Group, phases: Callable[[Start, Path, Monitor], dict[str, Any]]
) -> dict[str, Any]:
    """What every process but the first does: the same phases, on a copy of what a killed run left in its folder.

    So all come to the same decisions, whatever they are read from, and none reads what another is writing.
    The first process calls `group.first` with (work folder, result or None), then `group.wait`. Raises StageError where
    the work folder is not the same one here.
    """
    found: tuple[Path, dict[str, Any] | None] = group.first(_nothing)
    folder, result = found
    if result is not None:
        return result
    from edgetl.transfer.prepare import prepare

    start = prepare(data, options)
    if not folder.is_dir():
        raise StageError("a process does not see the work folder", folder, "put --to where all machines see it")
    own = folder / f"process-{group.rank}"
    bundles.sweep(own)
    with disk_errors(own):
        shutil.copytree(folder, own, ignore=shutil.ignore_patterns(*NOT_COPIED))
    group.wait()
    return phases(start, own, SILENT)


def _nothing() -> Any:
    raise AssertionError("called in the first process only")


def _check_evaluation(data: Dataset, options: FinetuneOptions) -> None:
    """Raise InputError for more folds, or a larger label budget, than the smallest class allows."""
    from edgetl.transfer import budget, folds

    if options.folds is not None:
        folds.divisions(data, options.folds, options.seed)
    if options.label_budget:
        budget.check(data, options.label_budget)


def _finished(to: Path, start: Start, options: FinetuneOptions) -> dict[str, Any] | None:
    """The stored result of the bundle that is there, if it came from the same options and data.

    None where it did not but --overwrite allows another generation. Raises InputError where it does not.
    """
    training = bundles.Bundle.open(to).manifest["training"]
    if training.get("identity") == start.identity:
        stored = dict(training["result"], bundle=str(to))
        return {key: stored[key] for key in FIELDS if key in stored}  # folds and budgets where they were asked for
    if options.overwrite:
        return None
    raise other_options("the bundle was made with other options", training.get("identity") or {}, start)


def begin(folder: Path, start: Start, options: FinetuneOptions) -> None:
    """Begin the work folder, or take over what a killed run of the same options left."""
    path = folder / "identity.json"
    if options.resume and path.is_file():
        old = bundles.read_json(path, "training state")
        if old != start.identity:
            raise other_options("the unfinished run there has other options", old, start)
        return
    bundles.sweep(folder)
    folder.mkdir()
    bundles.atomic_json(path, start.identity)


def other_options(what: str, old: dict[str, Any], start: Start) -> InputError:
    """The error for a run that is not the one that lies there: which options differ."""
    flat_old, flat_new = _flat(old), _flat(start.identity)
    differ = sorted(key for key in {*flat_old, *flat_new} if flat_old.get(key) != flat_new.get(key))
    return InputError(
        what,
        ", ".join(f"{k} {flat_old.get(k)}, now {flat_new.get(k)}" for k in differ[:3]),
        "give the same options, or leave --resume out to start anew (with --overwrite where a bundle is there)",
    )


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    out = {k: v for k, v in identity.items() if k != "options"}
    out.update(identity.get("options", {}))
    return out
