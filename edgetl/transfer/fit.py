"""The procedure on one division of the images: features, probe, training, choice. Folds and label budgets repeat it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetl.bundle import atomic_write
from edgetl.transfer import backbones, features, probe, tune
from edgetl.transfer.choose import choose
from edgetl.transfer.run import Logits, Run
from edgetl.transfer.train import Progress, judge


@dataclass(frozen=True)
class Fitted:
    """What it came to: the run's network is the one that was chosen by val.

    `val` and `probe_val` are the logits (N, C) on val of that network and of the linear probe.
    """

    probe_val: Logits
    tuned: Progress
    chosen: str
    val: Logits


def fit(run: Run) -> Fitted:
    """Fit the run's network to its train split; what a killed run left in `run.folder` is taken over."""
    fitted, val_features = _probe(run)
    tuned = tune.train(run, fitted) if run.options.plan.trains else Progress()
    chosen, val = choose(run, fitted, val_features, tuned)
    return Fitted(fitted.logits(val_features), tuned, chosen, val)


def _probe(run: Run) -> tuple[probe.Probe, Logits]:
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
