"""`--teacher`: a trained bundle teaches a smaller backbone with its probabilities, on unlabelled images too.

The teacher looks at each image once, as it would where it is deployed: its own resize, crop, size and normalisation.
What it says is kept, and the student learns it from its random views. Asking the teacher about each view anew would
cost a pass of the larger network at every step, which on a CPU is most of the training time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from edgetl.bundle import Bundle, read_json
from edgetl.errors import InputError
from edgetl.images import Dataset, Sample, read_sample, to_input
from edgetl.images.of_bundle import without
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer import features
from edgetl.transfer.network import deployed
from edgetl.transfer.processes import ALONE, Group
from edgetl.transfer.step import ExtraLoss, Step

if TYPE_CHECKING:
    from edgetl.transfer.run import Run  # it holds the Start that holds a Teacher

TEMPERATURE = 2.0
SHARE = 0.9  # of the teacher in the loss; the rest is the labels' (Hinton et al. 2015: "a considerably lower weight")


@dataclass(frozen=True)
class Teacher:
    """A bundle that teaches. `columns` are the places of our classes among its own."""

    bundle: Bundle
    sha256: str  # of its checkpoint
    columns: tuple[int, ...]
    trained_on: frozenset[str] = frozenset()  # digests of its training images

    def logits(
        self,
        path: Path,
        root: Path,
        samples: Sequence[Sample],
        device: torch.device,
        monitor: Monitor = SILENT,
        group: Group = ALONE,
    ) -> npt.NDArray[np.float32]:
        """What it says of each sample, float32 (N, C) in the order of our classes; kept in the file `path`.

        A file that a killed run left is continued. Every process of `group` must call this, and asks for a part.
        """
        network = deployed(self.bundle).to(device).to(memory_format=torch.channels_last)
        spec = self.bundle.preprocess

        def inputs(chunk: Sequence[Sample]) -> npt.NDArray[np.uint8]:
            return np.stack([to_input(read_sample(root, s), spec, root / s.path) for s in chunk])

        monitor.say(f"asking the teacher about {len(samples)} images")
        return features.cached(path, network, samples, inputs, device, monitor, group)[:, list(self.columns)]


def open_teacher(path: Path, data: Dataset, monitor: Monitor = SILENT) -> Teacher:
    """The bundle at `path` as a teacher of the classes of `data`.

    Raises BundleError (no bundle, or one without a checkpoint: an adopted graph) and InputError (other labels).
    Warns where it was trained on images that are held out here: they then say less about new images.
    """
    bundle = Bundle.open(path)
    checkpoint = bundle.artifact("checkpoint")
    ours, theirs = set(data.labels), set(bundle.labels)
    if ours != theirs:
        parts = [
            f"only {where}: {', '.join(sorted(names)[:5])}"
            for where, names in (("here", ours - theirs), ("there", theirs - ours))
            if names
        ]
        raise InputError("the teacher has other labels", "; ".join(parts), "use a bundle of the same classes")
    held_out = {s.digest for split in ("val", "test") for s in data.split(split)}
    columns = tuple(bundle.labels.index(label) for label in data.labels)
    teacher = Teacher(bundle, str(checkpoint["sha256"]), columns, _trained_on(bundle))
    seen = len(held_out & teacher.trained_on)
    if seen:
        monitor.warn(
            f"the teacher was trained on {seen} of the {len(held_out)} val and test images: their accuracy is too good"
        )
    return teacher


def _trained_on(bundle: Bundle) -> frozenset[str]:
    found = bundle.artifacts("splits")
    if not found:
        return frozenset()
    rows = read_json(bundle.file(found[-1]), "splits")
    return frozenset(s.digest for s in Dataset.from_json(rows, bundle.path, bundle.labels).split("train"))


def unlabelled_for(run: Run) -> list[Sample]:
    """The run's unlabelled images, decoded once, without those that are held out in val or test."""
    held_out = [*run.data.split("val"), *run.data.split("test")]
    found = without(run.start.unlabelled, held_out)
    if len(found) < len(run.start.unlabelled):
        run.monitor.say(f"{len(run.start.unlabelled) - len(found)} unlabelled images are held out here: not taught on")
    return run.decoded(found)


def distillation(run: Run, unlabelled: Sequence[Sample]) -> Distillation:
    """The loss from the teacher's answers to the training images and to the unlabelled ones."""
    teacher, device = run.start.teacher, run.start.device
    assert teacher is not None
    samples = [*run.data.split("train"), *unlabelled]
    logits = teacher.logits(run.folder / "teacher.f32", run.data.root, samples, device, run.monitor, run.group)
    return Distillation(samples, logits)


class Distillation(ExtraLoss):
    """share/(1 - share) T^2 KL(softmax(t/T) || softmax(s/T)), a mean over images (Hinton, Vinyals & Dean 2015, sec. 2).

    t are the teacher's logits, s the student's; T^2 keeps the gradient's size whatever T. Beside the labels' loss
    with weight 1 this is their mixture of share and 1 - share, but for a factor.
    """

    of_whole_batch = True  # unlabelled images count too, and a process may have some and no labelled one left

    def __init__(self, samples: Sequence[Sample], logits: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self._place = {sample.digest: place for place, sample in enumerate(samples)}
        self._logits = (torch.from_numpy(logits),)

    def forward(self, step: Step) -> torch.Tensor:
        """The loss over the labelled and the unlabelled images of the step."""
        student = torch.cat([step.outputs[0], step.unlabelled_outputs[0]])
        labelled = step.samples[: len(step.outputs[0])]  # an image that is passed for form's sake is no row of these
        places = [self._place[s.digest] for s in (*labelled, *step.unlabelled_samples)]
        teacher = self._logits[0][places].to(student.device)
        whole = step.place[1] + step.place_unlabelled[1] or len(student)  # images of the step, over all processes
        # The processes' gradients are averaged: of sums, each times their number, that is the sum's.
        return SHARE / (1 - SHARE) * step.group.size * soft_loss(student, teacher, images=whole)


def soft_loss(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = TEMPERATURE, images: int | None = None
) -> torch.Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) of logits (B, C), summed and divided by `images` (None: B)."""
    ours, theirs = ((logits / temperature).log_softmax(1) for logits in (student, teacher))
    total = functional.kl_div(ours, theirs, reduction="sum", log_target=True)
    return temperature**2 * (total / (len(student) if images is None else images))
