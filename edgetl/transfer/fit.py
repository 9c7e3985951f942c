"""The procedure on one division of the images: features, probe, training, choice. Folds and label budgets repeat it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgetl.bundle import atomic_write
from edgetl.measure.confidence import temperature_of
from edgetl.transfer import auto, large, probe, tune, weights
from edgetl.transfer.choose import FROZEN, Choice, choose
from edgetl.transfer.run import Logits, Probed, Run
from edgetl.transfer.train import Progress, judge


@dataclass(frozen=True)
class Fitted:
    """What it came to: the run's network is the one that was chosen by val.

    `val` and `probe_val` are the logits (N, C) on val of that network and of the linear probe.
    """

    probe: probe.Probe
    probe_val: Logits
    tuned: Progress
    choice: Choice

    @property
    def chosen(self) -> str:
        """What was kept: "linear-probe", "features", the strategy's own name, or "wise-ft"."""
        return self.choice.kept.name

    @property
    def val(self) -> Logits:
        """What the kept network says on val."""
        return self.choice.kept.logits

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights are kept, or are in the kept average; 0 where the backbone stayed frozen."""
        return 0 if self.chosen in FROZEN else self.tuned.best_epoch


def fit(run: Run) -> Fitted:
    """Fit the run's network to its train split; what a killed run left in `run.folder` is taken over."""
    at_start = large.starting(run)
    found = probed(run, at_start or large.competing(run))
    reasons: tuple[str, ...] = ()
    if run.plan.name == "auto":
        picked = run.group.first(lambda: auto.pick(run, found))
        run.plan, reasons = picked.plan, picked.reasons
    tuned = tune.train(run, found) if run.plan.trains else Progress()
    if at_start:
        if run.before is not None:
            weights.load_exactly(run.start.network.backbone, run.before)
        found = replace(probed(run, large.competing(run)), cooled=found.cooled)
    choice = choose(run, found, tuned, reasons)
    return Fitted(found.fitted, found.fitted.logits(found.val), tuned, choice)


def probed(run: Run, part: large.Part) -> Probed:
    """The linear probe on cached features of `part`, and these; the backbone is as it came."""
    samples = [*part.train, *part.val]
    began = time.perf_counter()
    drawn = len(samples) < len(run.data.split("train")) + len(run.data.split("val"))
    found = run.headless(run.folder / part.features, samples) if drawn else run.features(samples)
    if run.known is None and not run.images_per_second:
        run.images_per_second = len(samples) / (time.perf_counter() - began)
    n = len(part.train)
    targets, held = (np.array([s.target for s in samples], np.int64) for samples in (part.train, part.val))
    path = run.folder / part.probe
    if path.is_file():
        with np.load(path) as saved:
            fitted = probe.Probe(saved["weight"], saved["bias"], float(saved["c"]))
    else:
        known = (found[:n], targets, len(run.data.labels), run.options.seed, run.monitor)
        fitted = run.group.first(lambda: probe.fit(*known))
        _save_probe(path, fitted)
    accuracy, _ = judge(fitted.logits(found[n:]), held)
    run.monitor.say(f"linear probe: val accuracy {accuracy:.3f} (C = {fitted.c:g})")
    temperature = max(1.0, temperature_of(fitted.logits(found[n:]), held))
    return Probed(fitted, fitted.cooled(temperature), found[:n], found[n:], accuracy)


def _save_probe(path: Path, fitted: probe.Probe) -> None:
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, weight=fitted.weight, bias=fitted.bias, c=np.float64(fitted.c))
    atomic_write(path, temporary.read_bytes())
    temporary.unlink()
