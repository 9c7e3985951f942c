"""The stage behind `edgetl pretrain`: a backbone of one's own, from random weights, as a file for `--weights`.

It is a fine-tuning run from scratch up to the trained network (the same loop, the same state to resume from); what is
recorded is the network's weights with a card, and no bundle.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl import bundle as bundles
from edgetl.errors import BundleError, InputError
from edgetl.images import Dataset
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.stage import begin, follow, other_options

if TYPE_CHECKING:
    from edgetl.transfer.prepare import Start
    from edgetl.transfer.processes import Group
    from edgetl.transfer.step import MakesViews

WORK = "pretrain"
TIMES = ("seconds", "images_per_second")  # of pretrain's object; null where the file was there already


def pretrain(
    data: Dataset,
    to: Path,
    options: FinetuneOptions,
    monitor: Monitor = SILENT,
    views: Callable[[Start], MakesViews] | None = None,
    group: Group | None = None,
) -> dict[str, Any]:
    """Train a backbone on `data` from random weights and write the file `to`; returns pretrain's object.

    `options` must be those of the strategy "scratch". `views` makes the random views of training images where the
    usual ones do not do. Every process of `group` calls this and gets the result; the first one alone writes the file
    and speaks. Raises InputError and its kinds, BundleError (a file is there, or another writer), StageError.
    """
    from edgetl.transfer import weights_file
    from edgetl.transfer.prepare import prepare
    from edgetl.transfer.processes import ALONE

    group = group or ALONE

    def phases(start: Start, folder: Path, monitor: Monitor) -> dict[str, Any]:
        return _carry_out(data, to, start, options, folder, monitor, views, group)

    if group.rank:
        return follow(data, options, group, phases)
    weights_file.check_name(to)
    if to.exists() and not options.overwrite and not options.resume:
        raise BundleError("there is something at this place already", to, "use --overwrite, or another --to")
    if to.is_dir():
        raise InputError("--to wants a file, and this is a folder", to, f"such as --to {to / 'backbone.safetensors'}")
    start = prepare(data, options, monitor)
    with bundles.locked(to) as work:
        folder = work / WORK
        finished = _finished(to, start, options) if options.resume else None
        if finished is None:
            begin(folder, start, options)
        group.first(lambda: (folder, finished))
        if finished is None:
            group.wait()  # until the others have copied what is there
            try:
                finished = phases(start, folder, monitor)
            except InputError:
                bundles.sweep(folder)
                raise
        bundles.sweep(folder)
    return finished


def _finished(to: Path, start: Start, options: FinetuneOptions) -> dict[str, Any] | None:
    """What the run that made the file `to` returned, if it had the same options and data."""
    from edgetl.transfer import weights_file

    if not to.is_file():
        return None
    card = weights_file.card_of(to)
    identity = card.training.get("identity") if card else None
    if card is not None and identity == start.identity:
        return _described(to, card.training["result"], dict.fromkeys(TIMES))
    if options.overwrite:
        return None
    raise other_options("the file that is there was made with other options", identity or {}, start)


def _described(to: Path, result: dict[str, Any], times: dict[str, float | None]) -> dict[str, Any]:
    return {"file": str(to), "sha256": bundles.sha256_file(to), "bytes": to.stat().st_size, **result, **times}


def _carry_out(
    data: Dataset,
    to: Path,
    start: Start,
    options: FinetuneOptions,
    folder: Path,
    monitor: Monitor,
    views: Callable[[Start], MakesViews] | None,
    group: Group,
) -> dict[str, Any]:
    import torch

    from edgetl.transfer import large, leakage
    from edgetl.transfer.fit import fit
    from edgetl.transfer.pixels import PixelStore
    from edgetl.transfer.run import Run
    from edgetl.transfer.sound import sound

    began = time.perf_counter()
    shared = folder if group.rank == 0 else folder.parent
    store = PixelStore(shared, data.root, start.preprocess, process=group.rank, processes=group.size)
    try:
        later = large.put_off(data, options)
        data, alike = sound(data, store, options, monitor, group, later)
        start.network.to(start.device).to(memory_format=torch.channels_last)
        run = Run(data, start, options, folder, store, monitor, views=views(start) if views else None, group=group)
        found = fit(run)
        if later:
            alike = large.near_duplicates(run)
        test = run.logits("test") if data.split("test") else None
    finally:
        store.close()
    result = {
        "backbone": start.spec.name,
        "backbone_args": start.arguments,
        "labels": list(data.labels),
        "image_size": start.preprocess.size,
        "n": {split: len(data.split(split)) for split in ("train", "val", "test")},
        "best_epoch": found.best_epoch,
        "epochs_run": len(found.tuned.history),
        "val": run.metrics(found.val, "val"),
        "test": None if test is None else run.metrics(test, "test"),
        "near_duplicates": None if alike is None else leakage.summary(alike),
    }
    group.first(lambda: _write(to, start, data.labels, found.tuned.history, result))
    times = (round(time.perf_counter() - began, 3), round(run.images_per_second, 2))
    return group.first(lambda: _described(to, result, dict(zip(TIMES, times, strict=True))))


def _write(
    to: Path, start: Start, labels: Sequence[str], history: list[dict[str, Any]], result: dict[str, Any]
) -> None:
    from edgetl.transfer import weights_file

    # No times: the same run gives the same bytes.
    kept = [{k: v for k, v in line.items() if k not in TIMES} for line in history]
    training = {"identity": start.identity, "history": kept, "result": result}
    card = weights_file.Card(start.spec.name, start.arguments, tuple(labels), start.preprocess, training)
    weights_file.write(to, start.network.backbone.state_dict(), card)
