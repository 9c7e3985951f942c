"""The training phase of a run: what is decided before the first step, and the loop with its log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetl.bundle import atomic_json, read_json
from edgetl.images import Sample, draw_balanced, rank_of
from edgetl.transfer import backbones, distil, features, keep, large, logs, probe
from edgetl.transfer.augment import Views
from edgetl.transfer.recipe import recipe_for
from edgetl.transfer.run import Probed, Run
from edgetl.transfer.step import ExtraLoss, MakesViews, Unlabelled
from edgetl.transfer.train import DTYPES, Progress, Setting, Trainer, dtype_here

FLIP_TEST_IMAGES = 512
# With fewer of them in val one epoch's accuracy is mostly noise (5 points at .7 and 100), and a run stopped by it stops
# anywhere: .42 on test after 24 of 60 epochs, .60 after all of them (flowers, ten labels a class; docs/log.md).
LEAST_VAL = 100


def train(run: Run, probed: Probed) -> Progress:
    """Fine-tune the network in place; `run.before` keeps what it was."""
    fitted = probed.fitted
    start, options, data = run.start, run.options, run.data
    network, spec = start.network, start.spec
    run.before = {k: v.detach().clone() for k, v in backbones.deployed_state(network.backbone, spec).items()}
    train = data.split("train")
    recipe = recipe_for(options, len(train), run.plan)
    decisions = run.group.first(lambda: _decisions(run, fitted))
    if run.plan.from_probe:
        run.fold(probed.cooled)
    large.decode_behind(run, recipe.batch)
    views: MakesViews = run.views or Views(run.store.image, start.preprocess, options.seed, decisions["flips"])
    unlabelled = distil.unlabelled_for(run) if start.teacher else ()
    setting = Setting(
        train=train,
        val=data.split("val"),
        views=views,
        inputs=run.store.inputs,
        weights=probe.class_weights(run.targets("train"), len(data.labels)),
        device=start.device,
        amp=DTYPES[decisions["amp"]],
        seed=options.seed,
        monitor=run.monitor,
        extras=_extras(run, fitted, unlabelled),
        unlabelled=Unlabelled(unlabelled, views) if unlabelled else None,
        keeps_last=len(data.split("val")) < LEAST_VAL,
        group=run.group,
    )
    trainer = Trainer(network, spec, recipe, setting, run.folder / "state.pt")
    progress = _logged(run, trainer)
    for extra in setting.extras:
        extra.close()
    backbones.drop_auxiliary(network.backbone, spec)  # they have done their part
    took = sum(line["seconds"] for line in progress.history)
    run.images_per_second = len(train) * len(progress.history) / took
    return progress


def _extras(run: Run, fitted: probe.Probe, unlabelled: Sequence[Sample]) -> list[ExtraLoss]:
    """What --keep and --teacher add to the loss."""
    start, train = run.start, run.data.split("train")
    drawn = draw_balanced(train, keep.ATTENTION_IMAGES, run.options.seed) if run.options.keep == "delta" else train[:1]
    images = features.to_device(run.store.inputs(drawn), start.device)
    targets = torch.tensor([s.target for s in drawn], device=start.device)
    extras = keep.penalties(run.options.keep, start.network, start.spec, fitted, images, targets)
    return [*extras, distil.distillation(run, unlabelled)] if start.teacher else extras


def _logged(run: Run, trainer: Trainer) -> Progress:
    """Train to the end, from where a killed run left off, with a line an epoch."""
    log = logs.EpochLog(run.folder, trainer.restore().history)

    def on_epoch(line: dict[str, Any]) -> None:
        log.add(line)
        loss, accuracy, speed = (line[k] for k in ("train_loss", "val_accuracy", "images_per_second"))
        run.monitor.say(f"epoch {line['epoch']}: loss {loss:.3f}, val accuracy {accuracy:.3f}, {speed:.0f} images/s")

    progress = trainer.run(on_epoch)
    log.close()
    return progress


def _decisions(run: Run, fitted: probe.Probe) -> dict[str, Any]:
    """The precision of the training, and whether mirror images mean the same; noted, so that --resume agrees."""
    path = run.folder / "decisions.json"
    if path.is_file():
        return read_json(path, "training state")
    decided = {"amp": dtype_here(run.options.amp, run.start.device), "flips": _flips(run, fitted)}
    atomic_json(path, decided)
    return decided


def _flips(run: Run, fitted: probe.Probe) -> bool:
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
