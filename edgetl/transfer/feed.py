"""What goes into each step of the training, prepared by threads while the step before it computes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from edgetl.images import Sample, loaded_ahead
from edgetl.transfer.features import Pixels
from edgetl.transfer.processes import ALONE, Group
from edgetl.transfer.step import MakesViews, Unlabelled


@dataclass(frozen=True)
class Portion:
    """The part of a batch that this process takes."""

    batch: Sequence[Sample]  # the whole of it
    start: int  # samples are batch[start:]
    samples: Sequence[Sample]
    counts: bool  # False: nothing was left for this process; it passes an image for form's sake
    pixels: Pixels  # uint8 (len(samples), S, S, 3)
    unlabelled: Pixels | None = None  # uint8 (U, S, S, 3)
    unlabelled_samples: Sequence[Sample] = ()
    start_unlabelled: int = 0  # their place in the step's unlabelled batch, of
    whole_unlabelled: int = 0  # so many

    def rows(self) -> tuple[list[int], int, list[bool]]:
        """For WholeBatch: the places of the images in the whole batch (labelled first), its size, which count."""
        here = list(range(self.start, self.start + len(self.samples)))
        there = [len(self.batch) + self.start_unlabelled + i for i in range(len(self.unlabelled_samples))]
        return here + there, len(self.batch) + self.whole_unlabelled, [self.counts] * len(here) + [True] * len(there)

    def places(self, group: Group) -> tuple[Group, tuple[int, int], tuple[int, int]]:
        """For Step: whose rows these are, and (first row, rows of the whole batch) of both kinds."""
        return group, (self.start, len(self.batch)), (self.start_unlabelled, self.whole_unlabelled)


def in_batches(order: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """`order` cut into batches; a single image that is left goes with the batch before it.

    BatchNorm in training has no variance of one image, and no image is to be lost.
    """
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [[*batches[-2], *batches[-1]]]
    return batches


def part(count: int, group: Group = ALONE) -> range:
    """Which of `count` rows this process takes: an even share, in the order of the ranks."""
    return range(count * group.rank // group.size, count * (group.rank + 1) // group.size)


@dataclass(frozen=True)
class Feed:
    """The images of a run's steps."""

    views: MakesViews
    unlabelled: Unlabelled | None
    seed: int
    size: int  # images a step, over all processes
    group: Group = ALONE

    def epoch(self, batches: Sequence[Sequence[Sample]], epoch: int, number: int) -> Generator[Portion]:
        """This process's portion of every batch of an epoch whose first step is `number` of the run."""
        shares = [part(len(batch), self.group) for batch in batches]
        mine = ([batch[i] for i in share] or batch[:1] for batch, share in zip(batches, shares, strict=True))
        labelled = loaded_ahead(mine, lambda chunk: self.views(chunk, epoch), initializer=_one_thread)
        unlabelled = self._others(number)
        with closing(labelled), closing(unlabelled):
            for batch, share, (samples, pixels) in zip(batches, shares, labelled, strict=True):
                yield Portion(batch, share.start, samples, len(share) > 0, pixels, *next(unlabelled))

    def _others(self, number: int) -> Generator[tuple[Pixels | None, Sequence[Sample], int, int]]:
        """The last four fields of each step's portion."""
        if self.unlabelled is None:
            while True:
                yield None, (), 0, 0
        views, rows = self.unlabelled.views, part(self.size, self.group)
        mine = (b[rows.start : rows.stop] for b in self.unlabelled.batches(self.seed, number, self.size))
        loaded = loaded_ahead(mine, lambda b: np.concatenate([views([s], n) for s, n in b]), initializer=_one_thread)
        with closing(loaded):
            for batch, pixels in loaded:
                yield pixels, [s for s, _ in batch], rows.start, self.size


def _one_thread() -> None:
    """Each loading thread works alone: they are as many as there are cores."""
    torch.set_num_threads(1)
