"""The phases of a fine-tuning run, in order: decode, features, probe, train, choose, record."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetl.bundle import atomic_json, atomic_write, read_json
from edgetl.images import Dataset, Sample, rank_of
from edgetl.measure.score import metrics
from edgetl.monitor import Monitor
from edgetl.transfer import backbones, features, logs, probe, record, weights
from edgetl.transfer.augment import Views
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.prepare import Start, check_splits
from edgetl.transfer.recipe import recipe_for
from edgetl.transfer.train import DTYPES, Progress, Setting, Trainer, faster_dtype, judge

FLIP_TEST_IMAGES = 512
Logits = npt.NDArray[np.float32]
State = dict[str, torch.Tensor]


@dataclass
class _Run:
    """What the phases share."""

    data: Dataset
    start: Start
    options: FinetuneOptions
    folder: Path
    store: PixelStore
    monitor: Monitor
    images_per_second: float = 0.0
    before: State | None = None  # the backbone's state before training

    def targets(self, split: str) -> npt.NDArray[np.int64]:
        return np.array([s.target for s in self.data.split(split)], np.int64)

    def metrics(self, logits: Logits, split: str) -> dict[str, Any]:
        return metrics(logits, self.targets(split), self.data.labels)

    def logits(self, split: str) -> Logits:
        """The network's answers, in the order of the split."""
        network, device = self.start.network, self.start.device
        return features.forward(network, self.data.split(split), self.store.inputs, device, split, self.monitor)


def carry_out(
    data: Dataset, to: Path, start: Start, options: FinetuneOptions, folder: Path, monitor: Monitor
) -> dict[str, Any]:
    """Run every phase and record the bundle; returns the object of cli.md."""
    started = time.perf_counter()
    store = PixelStore(folder, data.root, start.preprocess)
    try:
        run = _Run(_sound(data, store, options, monitor), start, options, folder, store, monitor)
        start.network.to(start.device).to(memory_format=torch.channels_last)
        fitted, val_features = _probe(run)
        tuned = _train(run, fitted) if options.plan.trains else Progress()
        chosen, val_logits = _choose(run, fitted, val_features, tuned)
        held, golden = record.drawn(run.data, options.seed)
        result = {
            "bundle": str(to),
            "backbone": start.spec.name,
            "strategy": options.plan.name,
            "chosen": chosen,
            "labels": list(data.labels),
            "n": {split: len(held.split(split)) for split in ("train", "val", "test", "calibration")},
            "best_epoch": tuned.best_epoch if chosen != "linear-probe" else 0,
            "val": run.metrics(val_logits, "val"),
            # Looked at once, when everything has been decided.
            "test": run.metrics(run.logits("test"), "test") if held.split("test") else None,
            "linear_probe": run.metrics(fitted.logits(val_features), "val"),
            "seconds": round(time.perf_counter() - started, 3),
            "images_per_second": round(run.images_per_second, 2),
        }
        run.data = held
        _record(run, to, golden, result, tuned)
    finally:
        store.close()
    return result


def _sound(data: Dataset, store: PixelStore, options: FinetuneOptions, monitor: Monitor) -> Dataset:
    """Every image decoded once; `data` without the corrupt ones where --skip-corrupt allows it."""
    for line in data.warnings:
        monitor.warn(line)
    corrupt = store.fill(data.all(), options.skip_corrupt, monitor)
    if not corrupt:
        return data
    for error in corrupt.values():
        monitor.warn(f"left out: {error}")
    monitor.warn(f"{len(corrupt)} corrupt images are left out")
    splits = {k: tuple(s for s in v if s.digest not in corrupt) for k, v in data.splits.items()}
    left = replace(data, splits=splits, skipped=tuple(sorted(s.path for s in data.all() if s.digest in corrupt)))
    check_splits(left)
    return left


def _probe(run: _Run) -> tuple[probe.Probe, Logits]:
    """The linear probe on cached features, and the features of val."""
    start, data = run.start, run.data
    samples = [*data.split("train"), *data.split("val")]
    began = time.perf_counter()
    with backbones.headless(start.network.backbone, start.spec):
        found = features.cached(
            run.folder / "features.f32", start.network, samples, run.store.inputs, start.device, run.monitor
        )
    run.images_per_second = len(samples) / (time.perf_counter() - began)
    n = len(data.split("train"))
    path = run.folder / "probe.npz"
    if path.is_file():
        with np.load(path) as saved:
            fitted = probe.Probe(saved["weight"], saved["bias"], float(saved["c"]))
    else:
        fitted = probe.fit(found[:n], run.targets("train"), len(data.labels), run.options.seed, run.monitor)
        _save_probe(path, fitted)
    accuracy, _ = judge(fitted.logits(found[n:]), run.targets("val"))
    run.monitor.say(f"linear probe: val accuracy {accuracy:.3f} (C = {fitted.c:g})")
    return fitted, found[n:]


def _save_probe(path: Path, fitted: probe.Probe) -> None:
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, weight=fitted.weight, bias=fitted.bias, c=np.float64(fitted.c))
    atomic_write(path, temporary.read_bytes())
    temporary.unlink()


def _train(run: _Run, fitted: probe.Probe) -> Progress:
    """Fine-tune the network in place; `run.before` keeps what it was."""
    start, options, data = run.start, run.options, run.data
    network, spec = start.network, start.spec
    run.before = {k: v.detach().clone() for k, v in backbones.deployed_state(network.backbone, spec).items()}
    train = data.split("train")
    recipe = recipe_for(options, len(train))
    decisions = _decisions(run, fitted, recipe.batch)
    if options.plan.from_probe:
        _fold(run, fitted)
    setting = Setting(
        train=train,
        val=data.split("val"),
        views=Views(run.store.image, start.preprocess, options.seed, decisions["flips"]),
        inputs=run.store.inputs,
        weights=probe.class_weights(run.targets("train"), len(data.labels)),
        device=start.device,
        amp=DTYPES[decisions["amp"]],
        seed=options.seed,
        monitor=run.monitor,
    )
    trainer = Trainer(network, spec, recipe, setting, run.folder / "state.pt")
    log = logs.EpochLog(run.folder, trainer.restore().history)

    def on_epoch(line: dict[str, Any]) -> None:
        log.add(line)
        loss, accuracy, speed = (line[k] for k in ("train_loss", "val_accuracy", "images_per_second"))
        run.monitor.say(f"epoch {line['epoch']}: loss {loss:.3f}, val accuracy {accuracy:.3f}, {speed:.0f} images/s")

    progress = trainer.run(on_epoch)
    log.close()
    backbones.drop_auxiliary(network.backbone, spec)  # they have done their part
    took = sum(line["seconds"] for line in progress.history)
    run.images_per_second = len(train) * len(progress.history) / took
    return progress


def _decisions(run: _Run, fitted: probe.Probe, batch: int) -> dict[str, Any]:
    """Which precision trains faster and whether mirror images mean the same; noted, so that --resume agrees."""
    path = run.folder / "decisions.json"
    if path.is_file():
        return read_json(path, "training state")
    start, options = run.start, run.options
    images = run.store.inputs(run.data.split("train")[: min(batch, 16)])
    amp = faster_dtype(
        start.network,
        start.spec,
        recipe_for(options, len(run.data.split("train"))),
        images,
        start.device,
        options.amp,
    )
    decided = {"amp": amp, "flips": _flips(run, fitted)}
    atomic_json(path, decided)
    return decided


def _flips(run: _Run, fitted: probe.Probe) -> bool:
    """Whether mirrored images keep their class: they do for flowers, not for digits or traffic signs.

    The probe is asked on val, as it is and mirrored. A loss beyond chance (1.5 standard deviations of the
    discordant pairs) says that mirroring changes the meaning.
    """
    samples = sorted(run.data.split("val"), key=lambda s: rank_of(run.options.seed, s.digest))[:FLIP_TEST_IMAGES]
    targets = np.array([s.target for s in samples])

    def mirrored(chunk: Sequence[Sample]) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(run.store.inputs(chunk)[:, :, ::-1])

    right = []
    with backbones.headless(run.start.network.backbone, run.start.spec):
        for inputs in (run.store.inputs, mirrored):
            found = features.forward(run.start.network, samples, inputs, run.start.device, "mirror test", run.monitor)
            right.append(fitted.logits(found).argmax(1) == targets)
    lost, won = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    keep = bool(lost - won <= 1.5 * (lost + won) ** 0.5)
    if not keep:
        run.monitor.say(f"mirrored images are not used: {lost} of {len(samples)} change their class")
    return keep


def _fold(run: _Run, fitted: probe.Probe) -> None:
    network, spec = run.start.network, run.start.spec
    backbones.set_head(network.backbone, spec, torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias))


def _choose(run: _Run, fitted: probe.Probe, val_features: Logits, tuned: Progress) -> tuple[str, Logits]:
    """Load the better of probe and fine-tuned by val into the network; returns which, and its val logits.

    Equal accuracy: the lower loss. Every choice is made on val; the test split is not looked at here.
    """
    backbone, plan = run.start.network.backbone, run.options.plan
    if tuned.best is not None:
        weights.load_exactly(backbone, tuned.best)
        logits = run.logits("val")
        scores = [judge(found, run.targets("val")) for found in (logits, fitted.logits(val_features))]
        if not plan.competes or (scores[0][0], -scores[0][1]) > (scores[1][0], -scores[1][1]):
            return plan.name, logits
        run.monitor.say("fine-tuning did not beat the linear probe on val: the probe is kept")
    if run.before is not None:
        weights.load_exactly(backbone, run.before)
    _fold(run, fitted)
    return "linear-probe", run.logits("val")


def _record(run: _Run, to: Path, golden: Sequence[Sample], result: dict[str, Any], tuned: Progress) -> None:
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
        local={"data": str(run.data.root), "command": list(options.command or sys.argv)},
    )
    made = record.write(to, run.folder / "new", outcome, options.golden_photos, options.overwrite)
    logs.keep(made, run.folder, tuned.history)
