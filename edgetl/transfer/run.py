"""What the phases of one fine-tuning run share: data, network, options, and how to ask the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetl.images import Dataset
from edgetl.measure.score import metrics
from edgetl.monitor import Monitor
from edgetl.transfer import backbones, features
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.prepare import Start
from edgetl.transfer.probe import Probe

Logits = npt.NDArray[np.float32]
State = dict[str, torch.Tensor]


@dataclass
class Run:
    """What the phases share."""

    data: Dataset
    start: Start
    options: FinetuneOptions
    folder: Path
    store: PixelStore
    monitor: Monitor
    images_per_second: float = 0.0
    before: State | None = None  # the backbone's state before training

    def targets(self, split: str) -> npt.NDArray[np.int64]:
        """The classes of a split's images, int64 (N,)."""
        return np.array([s.target for s in self.data.split(split)], np.int64)

    def metrics(self, logits: Logits, split: str) -> dict[str, Any]:
        """METRICS of cli.md for the logits (N, C) of a split."""
        return metrics(logits, self.targets(split), self.data.labels)

    def logits(self, split: str) -> Logits:
        """The network's answers, in the order of the split."""
        network, device = self.start.network, self.start.device
        return features.forward(network, self.data.split(split), self.store.inputs, device, split, self.monitor)

    def fold(self, fitted: Probe) -> None:
        """Write a linear classifier of the features into the head."""
        network, spec = self.start.network, self.start.spec
        backbones.set_head(network.backbone, spec, torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias))
