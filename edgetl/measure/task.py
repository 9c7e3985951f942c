"""The seam between tasks: what the line needs to know of one beyond inputs, outputs and a score.

Classification is the first. Segmentation and detection add a row to TASKS; bundle, export, guard, build
and bench stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Protocol, Sequence

from edgetl.errors import BundleError
from edgetl.measure.score import Paired, compare, metrics
from edgetl.runtime.classify import top_k

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating[Any]]
    Ints = npt.NDArray[np.integer[Any]]


class Task(Protocol):
    """One kind of problem, seen from its outputs. numpy only: the device scores with the same code."""

    @property
    def name(self) -> str:
        """What the manifest calls it."""

    @property
    def score(self) -> str:
        """The key of `metrics` that a contract is about; higher is better, 0-1."""

    def metrics(self, outputs: Floats, targets: Ints, labels: Sequence[str]) -> Dict[str, Any]:
        """Every figure shown for these outputs."""

    def compare(
        self, reference: Floats, candidate: Floats, targets: Ints, seed: int = 0, max_drop: Optional[float] = None
    ) -> Paired:
        """A candidate beside its reference on the same inputs."""

    def decode(self, output: Floats, labels: Sequence[str], top: int) -> List[Dict[str, Any]]:
        """One input's output as what a user reads, best first."""


class Classification:
    """Outputs are logits (N, C); the answer is the largest."""

    name = "classification"
    score = "accuracy"

    def metrics(self, outputs: Floats, targets: Ints, labels: Sequence[str]) -> Dict[str, Any]:
        """See score.metrics."""
        return metrics(outputs, targets, labels)

    def compare(
        self, reference: Floats, candidate: Floats, targets: Ints, seed: int = 0, max_drop: Optional[float] = None
    ) -> Paired:
        """See score.compare."""
        return compare(reference, candidate, targets, seed, max_drop)

    def decode(self, output: Floats, labels: Sequence[str], top: int) -> List[Dict[str, Any]]:
        """See classify.top_k."""
        return top_k(output, labels, top)


TASKS: Dict[str, Task] = {task.name: task for task in (Classification(),)}


def task_of(manifest: Mapping[str, Any]) -> Task:
    """The Task that a manifest names. Raises BundleError for one this edgetl does not know."""
    name = str(manifest.get("task"))
    if name not in TASKS:
        raise BundleError("the bundle is for a task that this edgetl does not know", name, "known: " + ", ".join(TASKS))
    return TASKS[name]
