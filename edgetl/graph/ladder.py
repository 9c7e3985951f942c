"""The rescue ladder: from the plainest INT8 network to costlier ones, until one is expected to keep the contract.

calibration method > bias correction > rounded weights > cross-layer equalisation > the most harmful layers in
float > training

Every rung is measured on the search images alone. What is chosen here is judged once, on others, by the caller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx

from edgetl.graph import equalise, exclude, local
from edgetl.graph.candidate import Candidate
from edgetl.graph.exclude import Effect, Trial
from edgetl.graph.local import LayerNoise
from edgetl.graph.pixels import Pixels
from edgetl.graph.quantise import Calibrated
from edgetl.graph.ranges import METHODS
from edgetl.graph.search import Rung, Score, Search
from edgetl.monitor import SILENT, Monitor

MARGIN = 0.5  # of the contract: the verdict's images scatter


@dataclass(frozen=True)
class Tools:
    """What the rungs work with. `calibrate`: one pass of the calibration images through another float graph.

    `retrain`: the network trained with its quantisers in place, as a float graph, and the ranges that it learnt;
    None where it brought nothing. `weight_bits`: see Candidate.
    """

    search: Search
    calibration: Pixels
    calibrate: Callable[[onnx.ModelProto], Calibrated]
    retrain: Callable[[Candidate], tuple[onnx.ModelProto, Mapping[str, float]] | None]
    threads: int = 0
    monitor: Monitor = SILENT
    weight_bits: int | None = None


@dataclass(frozen=True)
class Found:
    """Where the ladder ended. `noises` by node, `effects` of the groups whose harm was measured."""

    candidate: Candidate
    rungs: tuple[Rung, ...]
    noises: Mapping[str, LayerNoise]
    effects: tuple[Effect, ...]


@dataclass
class _Climb:
    """The best candidate so far and how it was come by; `whole_score`: of the best with nothing in float."""

    tools: Tools
    max_drop: float
    best: Candidate
    score: Score | None = None
    whole_score: Score | None = None
    rungs: list[Rung] = field(default_factory=list)
    effects: tuple[Effect, ...] = ()
    _last: float = field(default_factory=time.monotonic)

    @property
    def enough(self) -> bool:
        """Whether the best candidate is expected to keep the contract."""
        return self.score is not None and keeps(self.score, self.max_drop)

    @property
    def expected(self) -> float:
        """The points that the best candidate is expected to lose."""
        return float("inf") if self.score is None else self.score.expected_drop_pp

    def offer(self, name: str, candidate: Candidate, further: bool = True) -> None:
        """Measure a rung; keep its candidate where it is nearer to fp32 than the best so far.

        `further`: it is a step more than that one has, so it must be nearer by more than what images scatter.
        """
        self.take(name, candidate, self.tools.search.measure(candidate.twin(), name), further)

    def take(self, name: str, candidate: Candidate, score: Score, further: bool = True) -> None:
        """The same for one that was measured."""
        better = score.kl < _kl(self.score)
        kept = better and (not further or self.score is None or score.nearer_than(self.score))
        self.log(name, score, kept)
        if kept:
            self.best, self.score, self.whole_score = candidate, score, score

    def log(self, name: str, score: Score, kept: bool, seconds: float | None = None) -> None:
        """Add a rung, by default with the time since the one before it, and say what it brought."""
        now = time.monotonic()
        self.rungs.append(Rung(name, score, now - self._last if seconds is None else seconds, kept))
        self._last = now
        self.tools.monitor.say(
            f"{name}: KL {score.kl:.4f}, agreement {score.agreement:.3f}, expected drop "
            f"{score.expected_drop_pp:.2f} points (n {score.n}){'' if kept else '; not kept'}"
        )


def keeps(score: Score, max_drop: float) -> bool:
    """Whether a candidate is expected to lose no more than half of `max_drop` points."""
    return score.expected_drop_pp <= MARGIN * max_drop


def climb(start: Calibrated, source: onnx.ModelProto, method: str, rescue: str, max_drop: float, tools: Tools) -> Found:
    """The first candidate that is expected to keep the contract, or the one nearest to fp32 of all that were tried.

    `method`: auto or one of METHODS; `rescue`: how far to go (options.RESCUES). Raises GraphError.
    """
    climbing = _Climb(tools, max_drop, Candidate(source, start, method, weight_bits=tools.weight_bits))
    _methods(climbing, climbing.best, method)
    if rescue != "none":
        _free_rungs(climbing, method)
    whole, noises = climbing.best, _noises(tools, climbing.best)
    if rescue != "none":
        _leave_out(climbing, noises)
    if rescue == "qat" and not climbing.enough:
        untrained = climbing.best, climbing.score, climbing.effects
        if _retrain(climbing, whole):
            climbing.effects = ()  # of another network
            _leave_out(climbing, _noises(tools, climbing.best), "trained, ")
            if untrained[1] is not None and climbing.expected > untrained[1].expected_drop_pp:
                climbing.best, climbing.score, climbing.effects = untrained
            noises = _noises(tools, climbing.best)
    effects = climbing.effects or exclude.effects(
        climbing.best, noises, tools.search, exclude.XRAY_SHORTLIST, exclude.XRAY_IMAGES
    )
    return Found(climbing.best, tuple(climbing.rungs), noises, effects)


def _methods(climbing: _Climb, base: Candidate, method: str, label: str = "") -> None:
    for name in _distinct(base, method):
        climbing.offer(f"{label}{name}", replace(base, method=name, steps=(*base.steps, name)), further=False)


def _distinct(base: Candidate, method: str) -> Iterator[str]:
    """The methods to try; one that gives the same ranges as another before it is left out."""
    seen: set[tuple[float, ...]] = set()
    for name in METHODS if method == "auto" else (method,):
        ranges = base.found.ranges(name)
        key = tuple(ranges[tensor] for tensor in sorted(ranges))
        if key not in seen:
            seen.add(key)
            yield name


def _free_rungs(climbing: _Climb, method: str) -> None:
    """What costs the device nothing: other biases (seconds, so always), other weights."""
    plain = climbing.best
    _correct(climbing, climbing.best)
    if not climbing.enough:
        _round(climbing, plain)
    if not climbing.enough:
        _equalise(climbing, plain, method)


def _equalise(climbing: _Climb, plain: Candidate, method: str) -> None:
    """Equalised from `plain`, whose biases are as they were, and then corrected."""
    tools = climbing.tools
    source = equalise.equalised(plain.source, tools.calibration, tools.threads, tools.monitor)
    if source is None:
        tools.monitor.say("equalisation: the network has no two layers to scale against each other")
        return
    base = replace(plain, source=source, found=tools.calibrate(source))
    tried = [replace(base, method=name, steps=(name, "equalised")) for name in _distinct(base, method)]
    scores = [tools.search.measure(candidate.twin(), f"equalised {candidate.method}") for candidate in tried]
    best = min(range(len(tried)), key=lambda index: scores[index].kl)
    climbing.take(f"equalised {tried[best].method}", tried[best], scores[best])
    _correct(climbing, tried[best], "equalised ")
    if not climbing.enough:
        _round(climbing, tried[best], "equalised ")


def _correct(climbing: _Climb, candidate: Candidate, label: str = "") -> None:
    tools = climbing.tools
    climbing.offer(f"{label}bias corrected", candidate.corrected(tools.calibration, tools.threads, tools.monitor))


def _round(climbing: _Climb, candidate: Candidate, label: str = "") -> None:
    tools = climbing.tools
    found = candidate.rounded(tools.calibration, tools.threads, tools.monitor)
    _correct(climbing, found, f"{label}weights rounded, ")


def _noises(tools: Tools, best: Candidate) -> Mapping[str, LayerNoise]:
    floats, weights = (best.source, None) if best.plain is None else (best.plain, best.source)
    return local.noise(
        floats, best.placement, best.ranges, tools.calibration, tools.threads, tools.monitor, weights=weights
    )


def _leave_out(climbing: _Climb, noises: Mapping[str, LayerNoise], label: str = "") -> None:
    """The fewest groups in float that are enough; they cost time on the device, so no more than that.

    Up to a tenth of the MACs goes for the margin; more only where the contract would not be kept even so.
    """
    if climbing.enough:
        return
    base, tools, allowed = climbing.best, climbing.tools, climbing.max_drop
    climbing.effects = exclude.effects(base, noises, tools.search)
    order, cheap = exclude.ranking(base, climbing.effects, noises)
    trials, chosen = exclude.fewest(base, order[:cheap], tools.search, lambda score: keeps(score, allowed))
    if chosen is None and climbing.expected > allowed:
        chosen = _least(trials, allowed)
    if chosen is None and climbing.expected > allowed:
        more, chosen = exclude.fewest(base, order, tools.search, lambda score: score.expected_drop_pp <= allowed, cheap)
        trials += more
        nearest = min(trials, key=lambda trial: trial.score.kl, default=None)
        if chosen is None and nearest is not None and nearest.score.kl < _kl(climbing.score):
            chosen = nearest
    for trial in trials:
        name = f"{label}{trial.count} group{'s' if trial.count > 1 else ''} in float"
        climbing.log(name, trial.score, trial is chosen, trial.seconds)
        if trial is chosen:
            climbing.best, climbing.score = replace(trial.candidate, steps=(*base.steps, name)), trial.score


def _least(trials: Sequence[Trial], allowed: float) -> Trial | None:
    """Of the trials that are expected to keep the contract without the margin the one with the fewest groups."""
    passing = [trial for trial in trials if trial.score.expected_drop_pp <= allowed]
    return min(passing, key=lambda trial: trial.count, default=None)


def _kl(score: Score | None) -> float:
    return float("inf") if score is None else score.kl


def _retrain(climbing: _Climb, whole: Candidate) -> bool:
    """Train from `whole`, which leaves nothing in float; whether that brought it nearer to fp32.

    Its biases are not corrected: training saw them together with the noise, and against the trained graph's
    own float answers, which nobody asks for, a correction would lead away.
    """
    found = climbing.tools.retrain(whole)
    if found is None:
        climbing.tools.monitor.say("training brought nothing")
        return False
    source, ranges = found
    trained = replace(whole, source=source, plain=None, learnt=ranges, steps=(*whole.steps, "trained"))
    score = climbing.tools.search.measure(trained.twin(), "trained")
    kept = score.kl < _kl(climbing.whole_score)
    climbing.log("trained", score, kept)
    if kept:
        climbing.best, climbing.score = trained, score
    return kept
