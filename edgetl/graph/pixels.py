"""Images decoded once for an export, kept in a scratch file, read a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetl.errors import disk_errors
from edgetl.images import Sample, stream
from edgetl.measure.environment import available_cores
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import Backend, run_pixels
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Preprocess

_BATCH = 8  # images a run: enough for the kernels, small enough for memory


class Pixels:
    """`n` images, uint8 (n, S, S, 3) RGB, in a file; `targets` int64 (n,). Plain reads, so they cost no memory."""

    def __init__(self, path: Path, size: int, targets: npt.NDArray[np.int64]) -> None:
        self.path = path
        self.targets = targets
        self.n = len(targets)
        self._shape = (size, size, 3)

    @classmethod
    def decoded(
        cls,
        path: Path,
        root: Path,
        samples: Sequence[Sample],
        spec: Preprocess,
        monitor: Monitor = SILENT,
        what: str = "decode",
    ) -> Pixels:
        """Decode `samples` (paths under `root`) into `path`. Raises DataError, CorruptImage, DiskError."""
        done = 0
        with disk_errors(path), path.open("wb") as out:
            for batch in stream(root, samples, spec, _BATCH):
                out.write(batch.pixels.tobytes())
                done += len(batch.samples)
                monitor.progress(what, done, len(samples))
        return cls(path, spec.size, np.array([s.target for s in samples], dtype=np.int64))

    @classmethod
    def of_array(cls, path: Path, pixels: npt.NDArray[np.uint8]) -> Pixels:
        """From an array (n, S, S, 3); the targets are zeros."""
        with disk_errors(path):
            path.write_bytes(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())
        return cls(path, pixels.shape[1], np.zeros(len(pixels), dtype=np.int64))

    def batches(self, start: int = 0, stop: int | None = None, step: int = _BATCH) -> Iterator[npt.NDArray[np.uint8]]:
        """uint8 (<= step, S, S, 3) from image `start` up to `stop`."""
        stop = self.n if stop is None else min(stop, self.n)
        one = int(np.prod(self._shape))
        with self.path.open("rb") as source:
            source.seek(start * one)
            for first in range(start, stop, step):
                count = min(step, stop - first)
                yield np.frombuffer(source.read(count * one), dtype=np.uint8).reshape(count, *self._shape)

    def head(self, count: int) -> Pixels:
        """The first `count` images, in the same file."""
        return Pixels(self.path, self._shape[0], self.targets[:count])

    def first(self, count: int) -> npt.NDArray[np.uint8]:
        """The first `count` images."""
        return next(self.batches(0, count, count))


def logits_of(
    backend: Backend, pixels: Pixels, monitor: Monitor = SILENT, what: str = "run", workers: int = 1
) -> npt.NDArray[np.float32]:
    """float32 (n, C) of `backend` over `pixels`; `workers` batches at once, for backends whose `run` allows it."""
    parts: list[npt.NDArray[np.float32]] = []
    done = 0
    batches = pixels.batches()
    with ThreadPoolExecutor(workers) as pool:
        while group := list(itertools.islice(batches, workers)):  # no more in memory than are being run
            parts.extend(pool.map(lambda batch: run_pixels(backend, batch, _BATCH), group))
            done += sum(map(len, group))
            monitor.progress(what, done, pixels.n)
    return np.concatenate(parts)


def graph_logits(
    path: Path, pixels: Pixels, threads: int = 0, monitor: Monitor = SILENT, what: str = "run"
) -> tuple[npt.NDArray[np.float32], str]:
    """(float32 (n, C), evidence) of the graph at `path` in onnxruntime; `threads` 0: as many as there are cores.

    A thread a batch instead of several for one: onnxruntime's float16 kernels use one however many there are,
    its threads spin while they wait, and the answers do not depend on their number.
    """
    backend = OrtBackend(path, threads=1)
    try:
        return logits_of(backend, pixels, monitor, what, threads or available_cores()), backend.evidence
    finally:
        backend.close()
