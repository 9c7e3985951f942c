"""What a run keeps: the probe, a closed-form classifier, the fine-tuned network, or an average: by val alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgetl.transfer import classifiers, weights
from edgetl.transfer.probe import Linear
from edgetl.transfer.run import Logits, Probed, Run, State
from edgetl.transfer.train import Progress, judge
from edgetl.transfer.wise import ALPHAS, averaged

LINEAR_PROBE, FEATURES, WISE = "linear-probe", "features", "wise-ft"
FROZEN = (LINEAR_PROBE, FEATURES)  # the backbone is as it came


@dataclass(frozen=True)
class Candidate:
    """A network that could be kept: what it says on val, and how it is made (a head on the frozen body, or a state)."""

    name: str
    logits: Logits
    accuracy: float
    loss: float
    head: Linear | None = None
    state: State | None = None
    alpha: float | None = None

    def told(self) -> dict[str, Any]:
        """For the result's `selection`."""
        alpha = {} if self.alpha is None else {"alpha": self.alpha}
        return {"name": self.name, **alpha, "val_accuracy": self.accuracy, "val_loss": self.loss}


@dataclass(frozen=True)
class Choice:
    """The kept candidate, all of them, and why the training was what it was (auto)."""

    kept: Candidate
    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]

    def selection(self) -> dict[str, Any]:
        """`selection` of finetune's object: what was compared on val, the average's alpha, and the reason in words."""
        others = [c for c in self.candidates if c.name == LINEAR_PROBE and c is not self.kept]
        against = f" (linear-probe {others[0].accuracy:.3f})" if others else ""
        if others and others[0].accuracy == self.kept.accuracy:
            against = f", as the linear probe; the loss decides, {self.kept.loss:.3f} against {others[0].loss:.3f}"
        place = "is best on val" if len(self.candidates) > 1 else "is kept as asked for; on val"
        why = [*self.reasons, f"{self.kept.name} {place}: {self.kept.accuracy:.3f}{against}"]
        return {
            "why": "; ".join(why),
            "alpha": self.kept.alpha,
            "candidates": [candidate.told() for candidate in self.candidates],
        }


def choose(run: Run, probed: Probed, tuned: Progress, reasons: tuple[str, ...] = ()) -> Choice:
    """Load the best candidate by val into the network.

    The highest accuracy; of equals the lowest loss, and of those the simplest. Every choice is made on val; the test
    split is not looked at here. A strategy that does not compete (scratch) is kept as it is.
    """
    candidates = (*_frozen(run, probed), *_trained(run, probed, tuned))
    kept = max(candidates, key=lambda c: (c.accuracy, -c.loss))
    backbone = run.start.network.backbone
    if kept.state is not None:
        weights.load_exactly(backbone, kept.state)
    elif run.before is not None:
        weights.load_exactly(backbone, run.before)
    if kept.head is not None:
        run.fold(kept.head)
    if tuned.best is not None and kept.name in FROZEN:
        run.monitor.say(f"fine-tuning did not beat the frozen backbone on val: {kept.name} is kept")
    if kept.alpha is not None:
        run.monitor.say(f"the average of probe and fine-tuned weights is better on val: alpha {kept.alpha:g} is kept")
    return Choice(kept, candidates, reasons)


def _frozen(run: Run, probed: Probed) -> Iterator[Candidate]:
    """The linear probe; for features and auto also the best closed-form classifier."""
    if not run.options.plan.competes:
        return
    yield _candidate(run, LINEAR_PROBE, probed.fitted.logits(probed.val), head=probed.fitted)
    if run.options.plan.name in (FEATURES, "auto"):
        known = (probed.train, run.targets("train"), len(run.data.labels), run.options.seed, run.monitor)
        fitted = run.group.first(lambda: classifiers.fit(*known))
        run.monitor.say(f"features: {fitted.told}")
        yield _candidate(run, FEATURES, fitted.logits(probed.val), head=fitted)


def _trained(run: Run, probed: Probed, tuned: Progress) -> Iterator[Candidate]:
    """The fine-tuned network, and its averages with the probe's (WiSE-FT)."""
    if tuned.best is None:
        return
    backbone = run.start.network.backbone
    yield _of_state(run, run.plan.name, tuned.best)
    if not run.plan.starts_at_weights or run.before is None:
        return
    weights.load_exactly(backbone, run.before)
    run.fold(probed.cooled)
    probe = {key: value.detach().clone() for key, value in backbone.state_dict().items()}
    for alpha in ALPHAS:
        yield _of_state(run, WISE, averaged(probe, tuned.best, alpha), alpha)


def _of_state(run: Run, name: str, state: State, alpha: float | None = None) -> Candidate:
    weights.load_exactly(run.start.network.backbone, state)
    return _candidate(run, name, run.logits("val"), state=state, alpha=alpha)


def _candidate(
    run: Run,
    name: str,
    logits: Logits,
    head: Linear | None = None,
    state: State | None = None,
    alpha: float | None = None,
) -> Candidate:
    accuracy, loss = judge(logits, run.targets("val"))
    return Candidate(name, logits, accuracy, loss, head, state, alpha)
