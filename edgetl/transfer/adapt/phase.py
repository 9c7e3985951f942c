"""The adaptation phase of a fine-tuning run: candidates, their scores without target labels, and what is kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetl.bundle import atomic_write
from edgetl.images import Sample
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer import backbones, distance, weights
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
    """What came of it. `kept` is "none" or the method; `samples` are what it was adapted to; `told` is for JSON.

    `val`: what the adapted classifier says of val, whose images it is shown as the source's are (through the source's
    side of the alignment, not the target's, which is in the network). As far as the domains are aligned, these logits
    (N, C) are like those of the target's images, and their classes are known: confidence is fitted to them.
    """

    kept: str
    samples: tuple[Sample, ...]
    val: Floats | None
    told: dict[str, Any]

    @property
    def adapted(self) -> bool:
        """Whether the network is another than the source-only one."""
        return self.kept != NONE


@dataclass(frozen=True)
class _Trial:
    """A candidate head, its logits on the target, those of its two half fits, and Adaptation's `val`."""

    head: Linear
    logits: Floats
    halves: tuple[Floats, Floats]
    val: Floats


@dataclass(frozen=True)
class _Features:
    """What the network makes of both domains, and of val."""

    domains: Domains
    val: Floats


@dataclass(frozen=True)
class _Decided:
    """All candidates by name, their scores, and which one is kept and why."""

    trials: dict[str, _Trial]
    scores: list[select.Score]
    kept: str
    why: str


def adapt(run: Run, is_frozen: bool, samples: Sequence[Sample] = ()) -> Adaptation | None:
    """Adapt the run's source-only network to the unlabelled images where that is expected to help; None: not asked.

    `is_frozen`: the backbone is as it came, so that the features of the probe are its features. `samples`: what
    `images` gave, where that has been called. What a killed run left in `run.folder` is taken over. Raises DataError,
    CorruptImage, StageError.
    """
    asked = run.options.adapt
    if asked == NONE:
        return None
    samples = samples or images(run)
    seen = _features(run, samples, "features.f32" if is_frozen else "tuned.f32", "target.f32")
    distances = run.group.first(lambda: _distances(run, seen.domains))
    limit = far_from(run.start.spec.name)
    near, why = verdict(distances["mmd2"], distances["p_value"], limit, distances["a_distance_p"])
    if near == SAME:
        found = _Decided({}, [], NONE, f"source and target are the same domain: {why}")
    else:
        found = run.group.first(lambda: _on_features(run, seen))
        method = found.kept if asked == AUTO else asked
        if run.plan.trains and method != NONE and METHODS[method].trains:
            found = _end_to_end(run, method, samples, found)
        if found.kept != NONE:
            run.fold(found.trials[found.kept].head)
    kept = found.kept
    run.monitor.say(f"adaptation: {kept if kept != NONE else 'source-only'} is kept: {found.why}")
    _warn_of_little(run, found)
    told = {"scores": [score.told() for score in found.scores], "kept": kept, "why": found.why}
    known = {"asked": asked, "n_unlabelled": len(samples), **distances}
    if kept == NONE:
        return Adaptation(kept, (), None, {**known, **told})
    return Adaptation(kept, tuple(samples), found.trials[kept].val, {**known, **told})


def _warn_of_little(run: Run, found: _Decided) -> None:
    """Say what the choice rests on where that is weak.

    Agreement is about what accuracy is, and may be low even for what is kept; that source-only has collapsed is
    concluded from the few classes it gives, which may be all there are.
    """
    by_name = {score.name: score for score in found.scores}
    if found.kept != NONE and select.has_collapsed(by_name[NONE], found.scores):
        run.monitor.warn(
            f"source-only gives the unlabelled images to {by_name[NONE].effective_classes:.1f} classes (effective "
            "number): if they do hold so few, it may be right, and --adapt, which expects all classes, wrong"
        )
    agreement = by_name[found.kept].agreement if by_name else 1.0
    if agreement < select.DOUBTFUL:
        run.monitor.warn(
            f"many answers on the unlabelled images are likely to be wrong (agreement {agreement:.2f}, below "
            f"{select.DOUBTFUL:g}): labels for some of them would help more than any adaptation"
        )


def _on_features(run: Run, seen: _Features) -> _Decided:
    """Every method that is asked for, on the features as they are."""
    trials = {name: _trial(run, name, seen) for name in frozen.methods_for(run.options.adapt)}
    scores = [select.score(name, trial.logits, trial.halves) for name, trial in trials.items()]
    return _Decided(trials, scores, *select.decide(scores))


def images(run: Run) -> list[Sample]:
    """The images to adapt to, each decoded once, without corrupt ones where --skip-corrupt allows it; none: not asked.

    Called before a long training, it tells within seconds what is wrong with them. Raises CorruptImage, DataError.
    """
    if run.options.adapt == NONE:
        return []
    sound = run.decoded(target.apart_from(run.start.unlabelled, run.data, run.monitor))
    target.check_enough(sound)
    return sound


def _features(run: Run, samples: Sequence[Sample], source: str, unlabelled: str) -> _Features:
    """Those of train and val and of the target under the network as it is, cached in two files of the run's folder."""
    data = run.data
    labelled = [*data.split("train"), *data.split("val")]
    both = [run.headless(run.folder / name, rows) for name, rows in ((source, labelled), (unlabelled, samples))]
    n = len(data.split("train"))
    return _Features(Domains(both[0][:n], run.targets("train"), both[1], len(data.labels)), both[0][n:])


def _distances(run: Run, domains: Domains) -> dict[str, float]:
    rng = np.random.default_rng(run.options.seed)
    source, unlabelled = (
        rows[rng.permutation(len(rows))[:DISTANCE_IMAGES]] for rows in (domains.source, domains.target)
    )
    found = distance.discrepancy_of(source, unlabelled, run.options.seed, PERMUTATIONS)
    apart = distance.separation_of(source, unlabelled, run.options.seed)
    return {
        "mmd2": round(found.mmd2, 6),
        "p_value": found.p_value,
        "a_distance": round(apart.a_distance, 4),
        "a_distance_p": apart.p_value,
    }


def _trial(run: Run, method: str, seen: _Features) -> _Trial:
    """Adapt the network's head, and heads fitted on each half of the source; kept in a file for --resume."""
    path = run.folder / f"adapt-{method}.npz"
    if not path.is_file():
        trial = _fitted_as(method, seen, _head(run), _strength(run), run.options.seed, run.monitor)
        stream = io.BytesIO()
        first, second = trial.halves
        np.savez(stream, weight=trial.head.weight, bias=trial.head.bias, first=first, second=second, val=trial.val)
        atomic_write(path, stream.getvalue())
    with np.load(path) as saved:
        head = Linear(saved["weight"], saved["bias"])
        return _Trial(head, head.logits(seen.domains.target), (saved["first"], saved["second"]), saved["val"])


def _fitted_as(method: str, seen: _Features, head: Linear, c: float, seed: int, monitor: Monitor = SILENT) -> _Trial:
    """`head` adapted by a method of `frozen`, and heads fitted on each half of the source."""
    domains = seen.domains
    made = frozen.fitted(method, domains, head, c, seed, monitor)
    halves = []
    for rows in select.halves_of(domains.targets, seed):
        part = Domains(domains.source[rows], domains.targets[rows], domains.target, domains.classes)
        own = fit_at(part.source, part.targets, part.classes, c)
        halves.append(frozen.adapted(method, part, own, c, seed, monitor).logits(domains.target))
    return _Trial(made.head, made.head.logits(domains.target), (halves[0], halves[1]), made.of_source(seen.val))


def _strength(run: Run) -> float:
    """The probe's C, which its cross-validation chose."""
    with np.load(run.folder / "probe.npz") as saved:
        return float(saved["c"])


def _end_to_end(run: Run, method: str, samples: Sequence[Sample], before: _Decided) -> _Decided:
    """Train end to end and decide again among `before` and what came of it; the network is that of what is kept."""
    backbone, spec = run.start.network.backbone, run.start.spec
    state = {k: v.detach().clone() for k, v in backbones.deployed_state(backbone, spec).items()}
    weights.load_exactly(backbone, end_to_end.train(run, method, samples))
    seen = _features(run, samples, "adapted.f32", "adapted-target.f32")
    found = run.group.first(lambda: _on_adapted(run, method, seen, before))
    if found.kept in before.trials:
        weights.load_exactly(backbone, state)
    return found


def _on_adapted(run: Run, method: str, seen: _Features, before: _Decided) -> _Decided:
    """`before` and two heads on the features that were trained with the method's loss.

    The network's own head is a candidate, and that head standardised by domain on the new features: what the training
    left between the domains costs nothing to take off. Half fits are linear heads on these features: training it twice
    more would cost more than it tells.
    """
    own, c, seed = _head(run), _strength(run), run.options.seed
    trials, scores = dict(before.trials), list(before.scores)
    for name, closed in ((method + END_TO_END, NONE), (method + END_TO_END + STANDARDISED, "standardise")):
        trials[name] = trial = _fitted_as(closed, seen, own, c, seed)
        scores.append(select.score(name, trial.logits, trial.halves))
    return _Decided(trials, scores, *select.decide(scores))


def _head(run: Run) -> Linear:
    """The network's last layer."""
    head = backbones.head_of(run.start.network.backbone, run.start.spec)
    assert head.bias is not None
    return Linear(head.weight.detach().cpu().flatten(1).numpy(), head.bias.detach().cpu().numpy())
