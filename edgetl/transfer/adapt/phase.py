"""The adaptation phase of a fine-tuning run: candidates, their scores without target labels, and what is kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetl.bundle import atomic_write
from edgetl.images import Sample
from edgetl.transfer import backbones, distance, features, weights
from edgetl.transfer.adapt import end_to_end, frozen, select, target
from edgetl.transfer.adapt.frozen import Domains, Floats
from edgetl.transfer.adapt.methods import AUTO, METHODS, NONE
from edgetl.transfer.probe import Linear, fit_at
from edgetl.transfer.run import Run
from edgetl.transfer.verdict import SAME, far_from, verdict

END_TO_END = " end to end"
STANDARDISED = ", standardised"
DISTANCE_IMAGES = 1000  # of each domain; the distance's matrix is quadratic in them
PERMUTATIONS = 199


@dataclass(frozen=True)
class Adaptation:
    """What came of it. `kept` is "none" or the method; `samples` are what it was adapted to; `told` is for JSON."""

    kept: str
    samples: tuple[Sample, ...]
    told: dict[str, Any]

    @property
    def adapted(self) -> bool:
        """Whether the network is another than the source-only one."""
        return self.kept != NONE


@dataclass(frozen=True)
class _Trial:
    """A candidate head, its logits on the target, and those of its two half fits."""

    head: Linear
    logits: Floats
    halves: tuple[Floats, Floats]


def adapt(run: Run, is_frozen: bool) -> Adaptation | None:
    """Adapt the run's source-only network to the unlabelled images where that is expected to help; None: not asked.

    `is_frozen`: the backbone is as it came, so that the features of the probe are its features. What a killed run
    left in `run.folder` is taken over. Raises DataError, CorruptImage, StageError.
    """
    asked = run.options.adapt
    if asked == NONE:
        return None
    samples = _decoded(run)
    domains = _domains(run, samples, "features.f32" if is_frozen else "tuned.f32", "target.f32")
    distances = _distances(run, domains)
    told: dict[str, Any] = {"asked": asked, "n_unlabelled": len(samples), **distances, "scores": []}
    near, why = verdict(distances["mmd2"], distances["p_value"], far_from(run.start.spec.name))
    kept = NONE
    if near == SAME:
        why = f"source and target are the same domain: {why}"
    else:
        trials = {name: _trial(run, name, domains) for name in frozen.methods_for(asked)}
        scores = [select.score(name, trial.logits, trial.halves) for name, trial in trials.items()]
        kept, why = select.decide(scores)
        method = kept if asked == AUTO else asked
        if run.plan.trains and method != NONE and METHODS[method].trains:
            kept, why = _end_to_end(run, method, samples, scores)
        if kept in METHODS:
            run.fold(trials[kept].head)
        told["scores"] = [score.told() for score in scores]
    run.monitor.say(f"adaptation: {kept if kept != NONE else 'source-only'} is kept: {why}")
    return Adaptation(kept, tuple(samples) if kept != NONE else (), {**told, "kept": kept, "why": why})


def _decoded(run: Run) -> list[Sample]:
    """The target's images, each decoded once, without the corrupt ones where --skip-corrupt allows it."""
    found = target.apart_from(run.start.unlabelled, run.data, run.monitor)
    corrupt = run.store.fill(found, run.options.skip_corrupt, run.monitor)
    for error in corrupt.values():
        run.monitor.warn(f"left out: {error}")
    return [sample for sample in found if sample.digest not in corrupt]


def _domains(run: Run, samples: Sequence[Sample], source: str, unlabelled: str) -> Domains:
    """Features of train and of the target under the network as it is, cached in two files of the run's folder."""
    start, data = run.start, run.data
    labelled = [*data.split("train"), *data.split("val")]
    with backbones.headless(start.network.backbone, start.spec):
        both = [
            features.cached(run.folder / name, start.network, rows, run.store.inputs, start.device, run.monitor)
            for name, rows in ((source, labelled), (unlabelled, samples))
        ]
    return Domains(both[0][: len(data.split("train"))], run.targets("train"), both[1], len(data.labels))


def _distances(run: Run, domains: Domains) -> dict[str, float]:
    rng = np.random.default_rng(run.options.seed)
    source, unlabelled = (
        rows[rng.permutation(len(rows))[:DISTANCE_IMAGES]] for rows in (domains.source, domains.target)
    )
    found = distance.discrepancy_of(source, unlabelled, run.options.seed, PERMUTATIONS)
    return {
        "mmd2": round(found.mmd2, 6),
        "p_value": found.p_value,
        "a_distance": round(distance.a_distance(source, unlabelled, run.options.seed), 4),
    }


def _trial(run: Run, method: str, domains: Domains) -> _Trial:
    """Adapt the network's head, and heads fitted on each half of the source; kept in a file for --resume."""
    path = run.folder / f"adapt-{method}.npz"
    if not path.is_file():
        fitted = backbones.head_of(run.start.network.backbone, run.start.spec)
        assert fitted.bias is not None
        flat = (fitted.weight.detach().cpu().flatten(1).numpy(), fitted.bias.detach().cpu().numpy())
        trial = _fitted(run, method, domains, Linear(*flat))
        stream = io.BytesIO()
        first, second = trial.halves
        np.savez(stream, weight=trial.head.weight, bias=trial.head.bias, first=first, second=second)
        atomic_write(path, stream.getvalue())
    with np.load(path) as saved:
        head = Linear(saved["weight"], saved["bias"])
        return _Trial(head, head.logits(domains.target), (saved["first"], saved["second"]))


def _fitted(run: Run, method: str, domains: Domains, head: Linear) -> _Trial:
    seed, c = run.options.seed, _strength(run)
    made = frozen.adapted(method, domains, head, c, seed, run.monitor)
    halves = []
    for rows in select.halves_of(domains.targets, seed):
        part = Domains(domains.source[rows], domains.targets[rows], domains.target, domains.classes)
        own = fit_at(part.source, part.targets, part.classes, c)
        halves.append(frozen.adapted(method, part, own, c, seed, run.monitor).logits(domains.target))
    return _Trial(made, made.logits(domains.target), (halves[0], halves[1]))


def _strength(run: Run) -> float:
    """The probe's C, which its cross-validation chose."""
    with np.load(run.folder / "probe.npz") as saved:
        return float(saved["c"])


def _end_to_end(run: Run, method: str, samples: Sequence[Sample], scores: list[select.Score]) -> tuple[str, str]:
    """Train end to end and decide again with its scores among `scores` (they are added); the network is the better one.

    Its own head is a candidate, and that head standardised by domain on the new features: what the training left
    between the domains costs nothing to take off. Half fits are linear heads on these features: training it twice
    more would cost more than it tells.
    """
    backbone, spec = run.start.network.backbone, run.start.spec
    before = {k: v.detach().clone() for k, v in backbones.deployed_state(backbone, spec).items()}
    weights.load_exactly(backbone, end_to_end.train(run, method, samples))
    domains = _domains(run, samples, "adapted.f32", "adapted-target.f32")
    head = backbones.head_of(backbone, spec)
    assert head.bias is not None
    own = Linear(head.weight.detach().cpu().flatten(1).numpy(), head.bias.detach().cpu().numpy())
    heads = {}
    for name, closed in ((method + END_TO_END, NONE), (method + END_TO_END + STANDARDISED, "standardise")):
        heads[name] = frozen.adapted(closed, domains, own, _strength(run), run.options.seed)
        halves = []
        for rows in select.halves_of(domains.targets, run.options.seed):
            part = Domains(domains.source[rows], domains.targets[rows], domains.target, domains.classes)
            fitted = fit_at(part.source, part.targets, part.classes, _strength(run))
            halves.append(frozen.adapted(closed, part, fitted, _strength(run), run.options.seed).logits(domains.target))
        scores.append(select.score(name, heads[name].logits(domains.target), (halves[0], halves[1])))
    kept, why = select.decide(scores)
    if kept in heads:
        run.fold(heads[kept])
    else:
        weights.load_exactly(backbone, before)
    return kept, why
