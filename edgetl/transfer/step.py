"""One training step as an extra loss sees it: penalties, distillation and domain adaptation hang in here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgetl.images import Sample
from edgetl.transfer.augment import epoch_order
from edgetl.transfer.network import Deployed
from edgetl.transfer.processes import ALONE, Group


@dataclass(frozen=True)
class Step:
    """What is known after the network's forward pass and before the backward one.

    Labelled and unlabelled images pass through the network in one forward pass; tensors a forward hook of an extra
    loss has caught hold the labelled images' rows first.
    """

    network: Deployed  # being trained; an extra loss may ask it again
    samples: Sequence[Sample]
    images: torch.Tensor  # float32 (B, 3, S, S), RGB 0-255
    targets: torch.Tensor  # int64 (B,)
    outputs: tuple[torch.Tensor, ...]  # logits float32 (B, C), then those of auxiliary classifiers
    unlabelled: torch.Tensor | None  # float32 (U, 3, S, S), where Setting.unlabelled is given
    unlabelled_outputs: tuple[torch.Tensor, ...]  # as `outputs`, (U, C)
    unlabelled_samples: Sequence[Sample]  # U of them
    epoch: int  # from 1
    number: int  # of the step in the whole run, from 0
    progress: float  # number / steps of the run, in [0, 1)
    group: Group = ALONE
    place: tuple[int, int] = (0, 0)  # of several processes: this one's first row in the whole batch, which has so many
    place_unlabelled: tuple[int, int] = (0, 0)

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """All processes' rows of a tensor that has one for each of `targets`: for a loss `of_whole_batch`."""
        return self.group.whole(rows, *self.place)

    def whole_unlabelled(self, rows: torch.Tensor) -> torch.Tensor:
        """The same of a tensor with a row for each unlabelled image."""
        return self.group.whole(rows, *self.place_unlabelled)


class ExtraLoss(nn.Module):
    """A loss beside the cross-entropy: a subclass's `forward(step)` gives a scalar, its weight already in it.

    Its parameters (a discriminator's, say) are trained along at the head's learning rate, and its whole state is
    saved and restored with the run's; a frozen network (a teacher) is kept out of both by holding it in a tuple or
    a closure. It is a mean over labelled images, or a penalty that does not depend on them: then it is the same in
    one process and, its share of the images weighing in, in several. Anything else sets `of_whole_batch` and asks
    the step for all processes' rows (`Step.whole`); it is called in all, also where no labelled image is left.
    """

    of_whole_batch = False

    def forward(self, step: Step) -> torch.Tensor:
        """Scalar float32 with a gradient."""
        raise NotImplementedError

    def close(self) -> None:
        """Take what hangs in the network (hooks) out of it; called when training has ended."""


class MakesViews(Protocol):
    """(samples, epoch) -> uint8 (B, S, S, 3)."""

    def __call__(self, samples: Sequence[Sample], epoch: int) -> npt.NDArray[np.uint8]:
        """A random view of each, a function of (epoch, image)."""
        ...


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels that pass along in every step, as many as labelled ones, however few there are."""

    samples: Sequence[Sample]
    views: MakesViews

    def batches(self, seed: int, number: int, size: int) -> Iterator[list[tuple[Sample, int]]]:
        """(image, pass over the images) for step `number` of the run and all that follow, `size` each, without end.

        Every pass has an order and views of its own, and what step takes which image is a function of (seed, number):
        a resumed run goes on with the images that are next.
        """
        lap, place = divmod(number * size, len(self.samples))
        order = epoch_order(self.samples, seed, lap + 1)
        while True:
            batch: list[tuple[Sample, int]] = []
            while len(batch) < size:
                if place == len(order):
                    lap, place = lap + 1, 0
                    order = epoch_order(self.samples, seed, lap + 1)
                taken = order[place : place + size - len(batch)]
                batch += [(sample, lap + 1) for sample in taken]
                place += len(taken)
            yield batch
