"""Which adapted classifier to keep, without a single target label: agreement of two halves, and what is collapsed.

Two classifiers fitted on disjoint halves of the source and adapted to the same target agree there about as often as
they are right (Jiang et al. 2022, "Assessing Generalization via Disagreement"; Baek et al. 2022, "Agreement-on-the-
Line", for shifted data). Agreement is Cohen's kappa, so that answering one class always earns nothing. Entropy and
soft neighbourhood density are reported beside it; docs/log.md has how often each was right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetl.transfer.adapt.methods import METHODS, NONE

COLLAPSED = 0.75  # of the largest effective number of classes among the candidates; below it, it has collapsed
SLIGHT = 0.2  # kappa up to which agreement is "slight" at most (Landis & Koch 1977): no evidence for anything
DOUBTFUL = 0.6  # kappa of what is kept; below, agreement is "moderate" at most (Landis & Koch 1977)
SURE = 0.8  # kappa that a method which reads its own answers must reach; "almost perfect" (Landis & Koch 1977)
DENSITY_TEMPERATURE = 0.05
_DENSITY_ROWS = 2000  # at most: its matrix is rows x rows

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Score:
    """What is known of a candidate without labels of the target.

    agreement: Cohen's kappa on the target between two fits on halves of the source. effective_classes: exp of the
    entropy of the mean answer. entropy: mean of each answer's, nats. density: soft neighbourhood density.
    """

    name: str
    agreement: float
    effective_classes: float
    entropy: float
    density: float

    def told(self) -> dict[str, Any]:
        """For JSON, rounded."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def score(name: str, logits: Floats, halves: tuple[Floats, Floats]) -> Score:
    """Score the target logits (M, C) of a candidate and those of its two half fits."""
    answers = probabilities(logits)
    return Score(
        name,
        kappa(halves[0].argmax(1), halves[1].argmax(1), logits.shape[1]),
        float(np.exp(_entropy(answers.mean(0, keepdims=True))[0])),
        float(_entropy(answers).mean()),
        neighbourhood_density(answers[:: -(-len(answers) // _DENSITY_ROWS)]),  # images lie in the order of folders
    )


def probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """softmax of logits (N, C)."""
    shifted = np.exp(np.asarray(logits, np.float64) - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))


def _entropy(answers: Floats) -> npt.NDArray[np.float64]:
    return np.asarray(-(answers * np.log(np.maximum(answers, 1e-300))).sum(1))


def kappa(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64], classes: int) -> float:
    """Cohen's kappa of two lists of answers: agreement beyond chance, 1 at most; 0 where both say one thing only."""
    observed = float((first == second).mean())
    shares = [np.bincount(found, minlength=classes) / len(found) for found in (first, second)]
    by_chance = float(shares[0] @ shares[1])
    return 0.0 if by_chance > 1 - 1e-12 else (observed - by_chance) / (1 - by_chance)


def neighbourhood_density(answers: Floats, temperature: float = DENSITY_TEMPERATURE) -> float:
    """Soft neighbourhood density (Saito et al. 2021, "Tune it the Right Way", section 3.2): the more, the better.

    The mean entropy of softmax over j != i of <p_i, p_j> / T, p being the answers (N, C) scaled to length 1.
    """
    unit = answers / np.linalg.norm(answers, axis=1, keepdims=True)
    similar = unit @ unit.T / temperature
    np.fill_diagonal(similar, -np.inf)
    return float(_entropy(probabilities(similar)).mean())


def has_collapsed(score: Score, scores: Sequence[Score]) -> bool:
    """Whether it gives the target to far fewer classes than another candidate does."""
    return score.effective_classes < COLLAPSED * max(s.effective_classes for s in scores)


def decide(scores: Sequence[Score]) -> tuple[str, str]:
    """(the candidate to keep, why) among source-only ("none") and adapted ones.

    A candidate that gives most of the target to few classes has collapsed and is out; so are adapted ones whose
    agreement is slight, or not above that of source-only, where that has not collapsed itself. Of the rest, the
    highest agreement; but a method that reads its own answers has part of its agreement from there, and wants SURE of
    it where another is left.
    """
    by_name = {s.name: s for s in scores}
    base = by_name[NONE]
    standing = [s for s in scores if not has_collapsed(s, scores)]
    least = max(SLIGHT, base.agreement) if base in standing else SLIGHT
    better = [s for s in standing if s.name != NONE and s.agreement > least]
    if not better:
        best = max((s for s in scores if s.name != NONE), key=lambda s: s.agreement)
        said = (
            f"adaptation is not expected to help: on the unlabelled images two fits of {best.name} agree at kappa "
            f"{best.agreement:.3f}, two of source-only at {base.agreement:.3f}"
        )
        return NONE, said
    trusted = [
        s for s in better if not METHODS[s.name.partition(" ")[0]].reads_answers or s.agreement >= SURE
    ] or better
    kept = max(trusted, key=lambda s: s.agreement)
    against = (
        f"two of source-only at {base.agreement:.3f}"
        if base in standing
        else f"source-only answers with {base.effective_classes:.1f} classes only"
    )
    told = f"two fits of {kept.name} on halves of DATA agree on the unlabelled images at kappa {kept.agreement:.3f}"
    return kept.name, f"{told}, {against}"


def halves_of(targets: npt.NDArray[np.int64], seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two stratified halves as indices; a class of a single image is in both."""
    rng = np.random.default_rng(seed)
    parts: tuple[list[int], list[int]] = ([], [])
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        if len(members) == 1:
            members = np.repeat(members, 2)
        for half in (0, 1):
            parts[half].extend(members[half::2].tolist())
    return np.sort(np.array(parts[0])), np.sort(np.array(parts[1]))
