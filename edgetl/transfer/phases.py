"""The phases of a fine-tuning run, in order: decode, fit (features, probe, train, choose), record."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from edgetl.bundle import Bundle
from edgetl.images import Dataset, Sample
from edgetl.monitor import Monitor
from edgetl.transfer import large, leakage, logs, record
from edgetl.transfer.adapt.phase import Adaptation, adapt, images
from edgetl.transfer.budget import learning_curve
from edgetl.transfer.choose import FROZEN
from edgetl.transfer.confidence import confidence
from edgetl.transfer.division import known
from edgetl.transfer.fit import fit
from edgetl.transfer.folds import cross_validate
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.prepare import Start
from edgetl.transfer.processes import ALONE, Group
from edgetl.transfer.run import Logits, Run
from edgetl.transfer.sound import sound
from edgetl.transfer.train import Progress


def carry_out(
    data: Dataset,
    to: Path,
    start: Start,
    options: FinetuneOptions,
    folder: Path,
    monitor: Monitor,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Run every phase and record the bundle; returns the object of cli.md.

    Of several processes the first works in `folder` and records, the others in a folder of their own within it.
    """
    started = time.perf_counter()
    shared = folder if group.rank == 0 else folder.parent
    store = PixelStore(shared, data.root, start.preprocess, process=group.rank, processes=group.size)
    try:
        data, alike = sound(data, store, options, monitor, group, large.put_off(data, options))
        run = Run(data, start, options, folder, store, monitor, group=group)
        start.network.to(start.device).to(memory_format=torch.channels_last)
        large_set = large.put_off(data, options)
        unlabelled = [] if large_set else images(run)
        evaluated = _evaluated(run)
        found = fit(run)
        if large_set:
            alike = large.near_duplicates(run)
        adaptation = adapt(run, found.chosen in FROZEN, unlabelled)
        val_logits = run.logits("val") if adaptation and adaptation.adapted else found.val
        # Looked at once, when everything has been decided.
        test_logits = run.logits("test") if run.data.split("test") else None
        held, golden = record.drawn(run.data, options.seed, adaptation.samples if adaptation else ())
        result = {
            "bundle": str(to),
            "backbone": start.spec.name,
            "strategy": options.plan.name,
            "chosen": adaptation.kept if adaptation and adaptation.adapted else found.chosen,
            "labels": list(data.labels),
            "n": {split: len(held.split(split)) for split in ("train", "val", "test", "calibration")},
            "selection": found.choice.selection(),
            "best_epoch": found.best_epoch,
            "val": run.metrics(val_logits, "val"),
            "test": None if test_logits is None else run.metrics(test_logits, "test"),
            "linear_probe": run.metrics(found.probe_val, "val"),
            "adaptation": None if adaptation is None else adaptation.told,
            "near_duplicates": None if alike is None else leakage.summary(alike),
            "confidence": confidence(run, *_believed(adaptation, val_logits, test_logits)),
            **evaluated,
            "seconds": round(time.perf_counter() - started, 3),
            "images_per_second": round(run.images_per_second, 2),
        }
        run.data = held
        group.first(lambda: leakage.keep(_record(run, to, golden, result, found.tuned), alike))
        return group.first(lambda: result)
    finally:
        store.close()


def _believed(adaptation: Adaptation | None, val: Logits, test: Logits | None) -> tuple[Logits, Logits | None]:
    """What confidence is fitted to. An adapted network's own answers on val and test say nothing of the target."""
    return (val, test) if adaptation is None or adaptation.val is None else (adaptation.val, None)


def _evaluated(run: Run) -> dict[str, Any]:
    """`folds` and `label_budget` where they are asked for: on other divisions of the images, with network copies."""
    options, out = run.options, {}
    if options.folds is not None or options.label_budget:
        run.known = known(run)
        if options.adapt != "none":
            run.monitor.say("folds and label budgets are without adaptation: they are about the labelled domain")
    if options.folds is not None:
        out["folds"] = cross_validate(run, options.folds)
    if options.label_budget:
        out["label_budget"] = learning_curve(run)
    return out


def _record(run: Run, to: Path, golden: Sequence[Sample], result: dict[str, Any], tuned: Progress) -> Bundle:
    start, options = run.start, run.options
    outcome = record.Outcome(
        data=run.data,
        golden=golden,
        pixels=run.store.inputs(golden),
        network=start.network,
        preprocess=start.preprocess,
        model={
            "backbone": start.spec.name,
            "backbone_args": start.arguments,
            "num_classes": len(run.data.labels),
            "weights": start.provenance,
        },
        training={
            "strategy": result["strategy"],
            "chosen": result["chosen"],
            "best_epoch": result["best_epoch"],
            "options": start.identity["options"],
            "metrics": {k: result[k] for k in ("val", "test", "linear_probe")},
            "history": tuned.history,
            "skipped": list(run.data.skipped),
            "identity": start.identity,
            # Without its path: what is in the manifest travels.
            "result": {k: v for k, v in result.items() if k != "bundle"},
        },
        confidence=result["confidence"],
        local={"data": str(run.data.root), "command": list(options.command or sys.argv)},
    )
    made = record.write(to, run.folder / "new", outcome, options.golden_photos, options.overwrite)
    logs.keep(made, run.folder, tuned.history)
    return made
