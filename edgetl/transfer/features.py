"""The feature cache: with a frozen backbone each image passes through it once, whatever is fitted afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgetl.errors import disk_errors
from edgetl.images import Sample, loaded_ahead
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer.processes import ALONE, Group

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
    group: Group = ALONE,
) -> Floats:
    """The model's output for each sample, float32 (N, D), in eval mode; the model's mode is left in eval.

    Threads prepare the next batches meanwhile. Every process of `group` must call this with the same samples: each
    takes a part of the batches, and all get the whole.
    """
    found = []
    for rows in _batches(model, samples, inputs, device, batch, group):
        found.append(rows)
        monitor.progress(what, min(len(found) * batch, len(samples)), len(samples))
    return np.concatenate(found)


def _batches(
    model: nn.Module, samples: Sequence[Sample], inputs: Inputs, device: torch.device, batch: int, group: Group
) -> Iterator[Floats]:
    """The model's output batch by batch, in order: in every round each process computes one and gets all."""
    model.eval()
    starts = range(0, len(samples), batch)
    mine = (samples[i : i + batch] for i in starts[group.rank :: group.size])
    ahead = loaded_ahead(mine, inputs)
    try:
        for _ in range(0, len(starts), group.size):
            own = next(ahead, None)
            rows = None
            if own is not None:
                with torch.inference_mode():
                    rows = model(to_device(own[1], device)).float().cpu().numpy()
            yield from (found for found in group.gathered(rows) if found is not None)
    finally:
        ahead.close()


def cached(
    path: Path,
    model: nn.Module,
    samples: Sequence[Sample],
    inputs: Inputs,
    device: torch.device,
    monitor: Monitor,
    group: Group = ALONE,
) -> Floats:
    """Features float32 (N, D) of `samples`, kept in the raw file `path` as they come, and read from there.

    What is returned is mapped, not loaded: it may be larger than memory. A file that a killed run left is continued
    at its last whole batch, so the result has the same bits. `model` must return features (backbones.headless) and
    be the one that began the file. With several processes the first one's file holds the features for all.
    """
    model.eval()
    with torch.inference_mode():
        width = int(model(to_device(inputs(samples[:1]), device)).shape[1])
    path, done = group.first(lambda: (path, _whole_batches(path, width, len(samples))))
    with _appending(path, group) as stream:
        for rows in _batches(model, samples[done:], inputs, device, BATCH, group):
            stream.write(rows.tobytes())
            stream.flush()
            done += len(rows)
            monitor.progress("features", done, len(samples))
    group.wait()
    return np.memmap(path, np.float32, "r", shape=(len(samples), width))


def _whole_batches(path: Path, width: int, most: int) -> int:
    """Cut the file after its last whole batch; how many rows there are."""
    row = width * 4
    with disk_errors(path), path.open("ab") as stream:
        done = min(stream.tell() // (row * BATCH) * BATCH, most)
        stream.truncate(done * row)
    return done


@contextmanager
def _appending(path: Path, group: Group) -> Iterator[BinaryIO]:
    """The file in the first process, nothing in the others."""
    with disk_errors(path), (path if group.rank == 0 else Path(os.devnull)).open("ab") as stream:
        yield stream
