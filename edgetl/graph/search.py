"""How near a candidate is to the fp32 graph, on images that were neither calibrated on nor are judged on.

No labels are needed: KL ranks, and what the flips cost is read off the reference's own probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.graph.partial import logits_of_all
from edgetl.graph.pixels import Pixels, graph_logits
from edgetl.measure.score import Paired, compare, divergences
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.classify import softmax

Logits = npt.NDArray[np.float32]
NOISES = 32  # noise vectors that each answer meets
_ROWS = 64  # answers at a time: 64 x 32 x 1000 classes are 8 MB


@dataclass(frozen=True)
class Score:
    """A candidate on `n` search images, percentage points where it says pp.

    drop_pp: by their labels (agreement where they have none); expected_drop_pp: label-free, for the images of
    the verdict (expected_loss); kl: mean KL(fp32 || candidate) in nats; each: that of every image, (n,).
    """

    kl: float
    agreement: float
    drop_pp: float
    expected_drop_pp: float
    n: int
    each: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)

    def nearer_than(self, other: Score) -> bool:
        """Whether this one is nearer to fp32 by more than a standard error, both measured on the same images.

        The rule of Breiman et al. 1984 (section 3.4.3) for choosing the simpler of two: here the one that was there.
        """
        gain = other.each - self.each
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
        return bool(gain.mean() > error)

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "drop_pp": self.drop_pp,
            "kl": self.kl,
            "agreement": self.agreement,
            "expected_drop_pp": self.expected_drop_pp,
            "n": self.n,
        }


@dataclass(frozen=True)
class Rung:
    """One step of the search: its name, its score, the seconds it took, and whether it was kept."""

    name: str
    score: Score
    seconds: float
    kept: bool

    def to_json(self) -> dict[str, Any]:
        """The object of cli.md and more figures."""
        return {"name": self.name, **self.score.to_json(), "seconds": round(self.seconds, 3), "kept": self.kept}


def paired(reference: Logits, candidate: Logits, targets: npt.NDArray[np.int64], max_drop: float) -> Paired:
    """`measure.compare`, with a graph that overflows reported as an error of that graph."""
    if not np.isfinite(candidate).all():
        raise GraphError("the graph gives NaN or inf", "on an image it is measured on", "use the fp16 graph")
    return compare(reference, candidate, targets, max_drop=max_drop)


def expected_loss(
    answers: Logits, noise: Logits, by_agreement: bool = False, temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """(n,): what `noise` on the logits would cost each of the reference's `answers` (n, C), as shares of an image.

    Every answer meets NOISES of the noise vectors (m, C) in turn. A flip costs the reference's probability of
    its own answer less that of the new one, which is the accuracy lost if the reference is calibrated at
    `temperature` (P(y = old) - P(y = new)); with `by_agreement` each flip costs 1.
    """
    out = np.zeros(len(answers))
    for start in range(0, len(answers), _ROWS):
        rows = answers[start : start + _ROWS]
        drawn = (np.arange(start, start + len(rows))[:, None] * NOISES + np.arange(NOISES)) % len(noise)
        new = (rows[:, None, :] + noise[drawn]).argmax(axis=2)
        old = rows.argmax(axis=1)[:, None]
        p = softmax(rows / temperature)
        cost = (new != old) if by_agreement else np.take_along_axis(p, old, 1) - np.take_along_axis(p, new, 1)
        out[start : start + len(rows)] = cost.mean(axis=1)
    return out


class Search:
    """The search images with the fp32 graph's answers; `measure` costs one simulated pass of a graph.

    `answers` are the reference's logits on the images of the verdict. Training images are what the network
    knows best: their margins are wide, and INT8 noise that flips 5 % of new images may flip none of them. So
    the noise is measured on the search images and its cost on those answers. No candidate meets the verdict's
    images, so the verdict stays a look at something new.
    """

    def __init__(
        self,
        source: onnx.ModelProto,
        pixels: Pixels,
        scratch: Path,
        answers: Logits,
        by_agreement: bool = False,
        temperature: float = 1.0,
        threads: int = 0,
        monitor: Monitor = SILENT,
    ) -> None:
        self._answers, self._temperature = answers, temperature
        self._pixels, self._scratch, self._threads, self._monitor = pixels, scratch, threads, monitor
        self._by_agreement = by_agreement
        self._reference = self._logits(source, "search: fp32", pixels.n)
        known = (pixels.targets >= 0).all()
        self._targets = pixels.targets if known else self._reference.argmax(axis=1)

    @property
    def n(self) -> int:
        """How many images there are."""
        return self._pixels.n

    def measure(self, model: onnx.ModelProto, what: str, limit: int | None = None) -> Score:
        """Score of `model` on the first `limit` images. Raises GraphError where it gives NaN or inf."""
        n = min(limit or self.n, self.n)
        return self._score(self._logits(model, f"search: {what}", n))

    def measure_all(
        self, base: onnx.ModelProto, variants: Sequence[onnx.ModelProto], what: str, limit: int | None = None
    ) -> tuple[Score, list[Score]]:
        """Scores of `base` and of graphs that differ from it in one place each: what they share is run once."""
        pixels = self._pixels.head(min(limit or self.n, self.n))
        own, others = logits_of_all(base, variants, pixels, self._threads, self._monitor, f"search: {what}")
        return self._score(own), [self._score(given) for given in others]

    def _score(self, given: Logits) -> Score:
        n = len(given)
        reference, targets = self._reference[:n], self._targets[:n]
        found = paired(reference, given, targets, 0.5)
        lost = expected_loss(self._answers, given - reference, self._by_agreement, self._temperature)
        return Score(
            kl=found.kl,
            agreement=found.agreement,
            drop_pp=found.drop_pp,
            expected_drop_pp=100.0 * float(lost.mean()),
            n=found.n,
            each=divergences(reference, given),
        )

    def _logits(self, model: onnx.ModelProto, what: str, n: int) -> Logits:
        path = surgery.save(model, self._scratch / "candidate.onnx")
        try:
            return graph_logits(path, self._pixels.head(n), self._threads, self._monitor, what)[0]
        finally:
            path.unlink()
