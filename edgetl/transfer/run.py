"""What the phases of one fine-tuning run share: data, network, options, and how to ask the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetl.images import Dataset, Sample
from edgetl.measure.score import metrics
from edgetl.monitor import Monitor
from edgetl.transfer import backbones, blocks, features
from edgetl.transfer.leakage import Prints
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.prepare import Start
from edgetl.transfer.probe import Linear, Probe
from edgetl.transfer.processes import ALONE, Group
from edgetl.transfer.step import MakesViews

Logits = npt.NDArray[np.float32]
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Probed:
    """The linear probe and the features it was fitted to and judged by, float32 (N, D), in the order of the splits.

    `cooled` gives the probe's answers with probabilities that are right on val: where a training starts from. On a
    few images the probe separates its training set, so that its own loss there is next to nothing and nothing would
    pull at the body; its large head is what keeps features from moving (Tomihari & Sato 2024).
    """

    fitted: Probe
    cooled: Linear
    train: Logits
    val: Logits
    accuracy: float  # of the probe on `val`


@dataclass(frozen=True)
class Known:
    """Features of the frozen backbone, float32 (N, D), that divisions of the same images share; rows by digest."""

    values: Logits
    rows: Mapping[str, int]


@dataclass
class Run:
    """What the phases share. `plan` is the strategy that is carried out: auto's pick once it has picked."""

    data: Dataset
    start: Start
    options: FinetuneOptions
    folder: Path
    store: PixelStore
    monitor: Monitor
    images_per_second: float = 0.0
    before: State | None = None  # the backbone's state before training
    views: MakesViews | None = None  # where the usual random views do not do
    known: Known | None = None  # where several divisions of the same images are fitted
    prints: Prints | None = None  # of a large set, gathered while it trains
    group: Group = ALONE  # the processes that carry it out; each has a folder of its own

    def __post_init__(self) -> None:
        self.plan = self.options.plan

    def targets(self, split: str) -> npt.NDArray[np.int64]:
        """The classes of a split's images, int64 (N,)."""
        return np.array([s.target for s in self.data.split(split)], np.int64)

    def metrics(self, logits: Logits, split: str) -> dict[str, Any]:
        """METRICS of cli.md for the logits (N, C) of a split."""
        return metrics(logits, self.targets(split), self.data.labels)

    def decoded(self, samples: Sequence[Sample]) -> list[Sample]:
        """`samples`, each decoded once, a part by each process; corrupt ones are told and missing with --skip-corrupt.

        Raises CorruptImage without it, DataError: the same in every process.
        """
        mine, skip = samples[self.group.rank :: self.group.size], self.options.skip_corrupt
        parts = self.group.each(lambda: self.store.fill(mine, skip, self.monitor))
        corrupt = {digest: error for part in parts for digest, error in part.items()}
        self.store.refresh()
        for error in corrupt.values():
            self.monitor.warn(f"left out: {error}")
        return [sample for sample in samples if sample.digest not in corrupt]

    def features(self, samples: Sequence[Sample]) -> Logits:
        """What the frozen backbone makes of the samples, float32 (N, D): read where known, else kept in `folder`."""
        if self.known is not None:
            rows = np.array([self.known.rows[s.digest] for s in samples], np.int64)
            return blocks.selected(self.known.values, rows, self.folder)
        return self.headless(self.folder / "features.f32", samples)

    def headless(self, file: Path, samples: Sequence[Sample]) -> Logits:
        """The same by the network, from `file` as far as a killed run came."""
        network, spec, device = self.start.network, self.start.spec, self.start.device
        with backbones.headless(network.backbone, spec):
            found = features.cached(file, network, samples, self.store.inputs, device, self.monitor, self.group)
        self.store.refresh()  # each process has decoded a part
        return found

    def logits(self, split: str) -> Logits:
        """The network's answers, in the order of the split."""
        network, device, samples = self.start.network, self.start.device, self.data.split(split)
        return features.forward(network, samples, self.store.inputs, device, split, self.monitor, group=self.group)

    def fold(self, fitted: Linear) -> None:
        """Write a linear classifier of the features into the head."""
        network, spec = self.start.network, self.start.spec
        backbones.set_head(network.backbone, spec, torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias))
