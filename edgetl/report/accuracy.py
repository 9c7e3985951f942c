"""How good the answers are, class by class, and which images flipped: from a bench's answers, else fine-tuning's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetl.measure.score import WHOLE_MATRIX
from edgetl.stats import Interval, mcnemar, paired_difference, wilson

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgetl.measure.answers import Answers

    Ints = npt.NDArray[np.integer[Any]]

BINS = 10  # of the reliability diagram
LOST, WON, OTHER = "lost", "won", "both wrong"


@dataclass(frozen=True)
class ClassScore:
    """One class: of its `n` images `hits` were named rightly (recall, with Wilson's interval); precision, F1 0-1."""

    label: str
    n: int
    hits: int
    recall: float
    recall_ci: Interval
    precision: float
    f1: float


@dataclass(frozen=True)
class Scores:
    """All that is known of one set of answers. `cells`: (true, answer, images), zeros left out."""

    name: str
    split: str
    n: int
    accuracy: float
    accuracy_ci: Interval
    macro_f1: float
    ece: float | None
    classes: tuple[ClassScore, ...]
    cells: tuple[tuple[int, int, int], ...]

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes without an image here: nothing is known of them."""
        return tuple(one.label for one in self.classes if not one.n)

    def confusions(self, most: int) -> list[tuple[str, str, int, int]]:
        """(true, answer, images, images of the true class) of what is most often mistaken."""
        wrong = sorted(((i, j, n) for i, j, n in self.cells if i != j), key=lambda cell: (-cell[2], cell[:2]))
        found = [(self.classes[i], self.classes[j], n) for i, j, n in wrong[:most]]
        return [(true.label, answer.label, n, true.n) for true, answer, n in found]

    @property
    def mistakes(self) -> int:
        """Images with a wrong answer."""
        return sum(n for i, j, n in self.cells if i != j)


@dataclass(frozen=True)
class Flip:
    """An image whose answer changed. Probabilities are of the answer given, softmax without a temperature."""

    path: str
    digest: str
    true: str
    before: str
    before_p: float
    after: str
    after_p: float
    kind: str


@dataclass(frozen=True)
class Flips:
    """A candidate beside the reference on the same `n` images; `shown` are some of the flipped, losses first."""

    candidate: str
    reference: str
    split: str
    n: int
    lost: int
    won: int
    other: int
    p_mcnemar: float
    drop_pp: float
    drop_ci_pp: Interval
    shown: tuple[Flip, ...]

    @property
    def total(self) -> int:
        """Images whose answer changed."""
        return self.lost + self.won + self.other


@dataclass(frozen=True)
class Bin:
    """Images whose top probability lies in one tenth: the mean of it, the share that is right with its interval, n."""

    confidence: float
    right: float
    right_ci: Interval
    n: int


def of_answers(answers: Answers, name: str) -> Scores | None:
    """Scores of one candidate; None where it failed or was not among them."""
    if name not in answers.names or not len(answers.targets):
        return None
    row = answers.row(name)
    if not answers.seen[row]:
        return None
    top, c = answers.top[row], len(answers.labels)
    pairs, counts = np.unique(answers.targets.astype(np.int64) * c + top, return_counts=True)
    cells = [(int(pair // c), int(pair % c), int(n)) for pair, n in zip(pairs, counts, strict=True)]
    right = top == answers.targets
    found = np.abs(_gaps(answers.top_probability[row], right)).sum() / len(right)
    return _scores(name, answers.split, answers.labels, cells, float(found))


def _gaps(confidence: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Per bin of Guo et al. 2017 (15 of equal width): sum of (right - confidence)."""
    bins = np.minimum((confidence * 15).astype(np.int64), 14)
    return np.asarray(np.bincount(bins, weights=right - confidence.astype(np.float64), minlength=15), np.float64)


def of_metrics(name: str, split: str, found: Mapping[str, Any], labels: Sequence[str]) -> Scores:
    """Scores of a METRICS object of cli.md; without a confusion matrix (an older bundle) `cells` is empty."""
    written = found.get("confusion") or []
    if isinstance(written, Mapping):
        cells = [(int(i), int(j), int(n)) for i, j, n in written["cells"]]
    else:
        cells = [(i, j, int(n)) for i, row in enumerate(written) for j, n in enumerate(row) if n]
    classes = []
    for label in labels:
        one = found["per_class"][label]
        n = int(one["n"])
        hits = round(float(one["recall"]) * n)
        classes.append(
            ClassScore(label, n, hits, float(one["recall"]), wilson(hits, n), float(one["precision"]), float(one["f1"]))
        )
    low, high = found["accuracy_ci"]
    return Scores(
        name,
        split,
        int(found["n"]),
        float(found["accuracy"]),
        (float(low), float(high)),
        float(found["macro_f1"]),
        found.get("ece"),
        tuple(classes),
        tuple(cells),
    )


def _scores(
    name: str, split: str, labels: Sequence[str], cells: Sequence[tuple[int, int, int]], ece: float | None
) -> Scores:
    there, said, hits = (np.zeros(len(labels), np.int64) for _ in range(3))
    for true, answer, n in cells:
        there[true] += n
        said[answer] += n
        hits[true] += n if true == answer else 0
    classes = []
    for i, label in enumerate(labels):
        n, right, named = int(there[i]), int(hits[i]), int(said[i])
        f1 = 2 * right / (n + named) if n + named else 0.0
        classes.append(
            ClassScore(label, n, right, right / n if n else 0.0, wilson(right, n), right / named if named else 0.0, f1)
        )
    total, correct = int(there.sum()), int(hits.sum())
    macro = float(np.mean([one.f1 for one in classes if one.n]))
    return Scores(name, split, total, correct / total, wilson(correct, total), macro, ece, tuple(classes), tuple(cells))


def flips(answers: Answers, name: str, most: int) -> Flips | None:
    """What changed from the reference to a candidate; None where one of them has no answers.

    `most` are listed: those that became wrong first, and of these the surest answers first.
    """
    if name not in answers.names or name == answers.reference:
        return None
    ours, base = answers.row(name), answers.row(answers.reference)
    if not (answers.seen[ours] and answers.seen[base]) or not len(answers.targets):
        return None
    before, after, targets = answers.top[base], answers.top[ours], answers.targets
    was, now, changed = before == targets, after == targets, before != after
    lost, won = was & ~now, now & ~was
    n, a, b = len(targets), int(lost.sum()), int(won.sum())
    rank = np.where(lost, 0, np.where(won, 1, 2))
    sure = answers.top_probability[ours]
    order = sorted(np.flatnonzero(changed), key=lambda i: (int(rank[i]), -float(sure[i]), answers.digests[i]))
    low, high = paired_difference(a, b, n)
    return Flips(
        name,
        answers.reference,
        answers.split,
        n,
        a,
        b,
        int(changed.sum()) - a - b,
        mcnemar(a, b),
        100.0 * (a - b) / n,
        (100.0 * low, 100.0 * high),
        tuple(_flip(answers, int(i), base, ours, (LOST, WON, OTHER)[int(rank[i])]) for i in order[:most]),
    )


def _flip(answers: Answers, i: int, base: int, ours: int, kind: str) -> Flip:
    labels = answers.labels
    return Flip(
        answers.paths[i],
        answers.digests[i],
        labels[int(answers.targets[i])],
        labels[int(answers.top[base, i])],
        float(answers.top_probability[base, i]),
        labels[int(answers.top[ours, i])],
        float(answers.top_probability[ours, i]),
        kind,
    )


def reliability(answers: Answers, name: str) -> tuple[Bin, ...]:
    """Ten bins of top probability, empty ones left out; nothing where the candidate has no answers."""
    if name not in answers.names or not answers.seen[answers.row(name)]:
        return ()
    row = answers.row(name)
    sure, right = answers.top_probability[row], answers.top[row] == answers.targets
    places = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    out = []
    for place in range(BINS):
        inside = places == place
        n, hits = int(inside.sum()), int((inside & right).sum())
        if n:
            out.append(Bin(float(sure[inside].mean()), hits / n, wilson(hits, n), n))
    return tuple(out)


@dataclass(frozen=True)
class Shown:
    """An image to explain: its answer, the probability of that answer, the truth."""

    path: str
    digest: str
    true: str
    answer: str
    probability: float


def hits_and_misses(answers: Answers, name: str, each: int) -> tuple[list[Shown], list[Shown]]:
    """The surest right and the surest wrong answers of a candidate, `each` at most, of different classes first."""
    if name not in answers.names or not answers.seen[answers.row(name)]:
        return [], []
    row = answers.row(name)
    right = answers.top[row] == answers.targets
    order = np.argsort(-answers.top_probability[row], kind="stable")
    hits, misses = ([int(i) for i in order if right[i] == wanted] for wanted in (True, False))
    return _varied(answers, row, hits, each), _varied(answers, row, misses, each)


def _varied(answers: Answers, row: int, order: Sequence[int], most: int) -> list[Shown]:
    first: dict[int, int] = {}
    for i in order:
        first.setdefault(int(answers.targets[i]), i)
    chosen = list(first.values())[:most]
    chosen += [i for i in order if i not in set(chosen)][: most - len(chosen)]
    labels = answers.labels
    return [
        Shown(
            answers.paths[i],
            answers.digests[i],
            labels[int(answers.targets[i])],
            labels[int(answers.top[row, i])],
            float(answers.top_probability[row, i]),
        )
        for i in chosen
    ]


def is_whole(scores: Scores) -> bool:
    """Whether a confusion matrix of so many classes is drawn whole."""
    return len(scores.classes) <= min(WHOLE_MATRIX, MATRIX)


MATRIX = 30  # classes up to which a matrix can be read on a page; above it the most frequent confusions are listed
