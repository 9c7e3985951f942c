"""The feature cache: with a frozen backbone each image passes through it once, whatever is fitted afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgetl.errors import disk_errors
from edgetl.images import Sample
from edgetl.monitor import SILENT, Monitor

BATCH = 64
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Inputs = Callable[[Sequence[Sample]], Pixels]


def to_device(pixels: Pixels, device: torch.device) -> torch.Tensor:
    """uint8 (B, S, S, 3) as float32 (B, 3, S, S) in 0-255, channels_last in memory (the pixels already are)."""
    return torch.from_numpy(pixels).to(device, non_blocking=True).permute(0, 3, 1, 2).float()


def forward(
    model: nn.Module,
    samples: Sequence[Sample],
    inputs: Inputs,
    device: torch.device,
    what: str,
    monitor: Monitor = SILENT,
    batch: int = BATCH,
) -> Floats:
    """The model's output for each sample, float32 (N, D), in eval mode; the model's mode is left in eval."""
    model.eval()
    out = []
    with torch.inference_mode():
        for start in range(0, len(samples), batch):
            chunk = samples[start : start + batch]
            out.append(model(to_device(inputs(chunk), device)).float().cpu().numpy())
            monitor.progress(what, start + len(chunk), len(samples))
    return np.concatenate(out)


def cached(
    path: Path, model: nn.Module, samples: Sequence[Sample], inputs: Inputs, device: torch.device, monitor: Monitor
) -> Floats:
    """Features float32 (N, D) of `samples`, kept in the raw file `path` as they come.

    A file that a killed run left is continued at its last whole batch, so the result has the same bits.
    `model` must return features (backbones.headless) and be the one that began the file.
    """
    model.eval()
    with torch.inference_mode():
        width = int(model(to_device(inputs(samples[:1]), device)).shape[1])
    row = width * 4
    with disk_errors(path), path.open("ab") as stream:
        whole = path.stat().st_size // (row * BATCH) * BATCH
        done = min(whole, len(samples))
        stream.truncate(done * row)
        stream.seek(0, os.SEEK_END)
        for start in range(done, len(samples), BATCH):
            chunk = samples[start : start + BATCH]
            stream.write(forward(model, chunk, inputs, device, "").tobytes())
            stream.flush()
            monitor.progress("features", start + len(chunk), len(samples))
    return np.fromfile(path, np.float32).reshape(len(samples), width)
