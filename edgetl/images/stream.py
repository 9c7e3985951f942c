"""Images as batches of pixels: decoded once each by a few threads, memory bounded by the batch."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Deque, Iterator, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

import numpy as np

from edgetl.bundle import sha256_bytes
from edgetl.errors import DataError
from edgetl.images.dataset import Sample
from edgetl.images.decode import read_bytes, to_input
from edgetl.spec import Preprocess

if TYPE_CHECKING:
    import numpy.typing as npt


T = TypeVar("T")


class Batch(NamedTuple):
    """pixels: uint8 (B, H, W, 3) RGB; targets: int64 (B,) class indices; samples: where they came from."""

    pixels: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int64]
    samples: Sequence[Sample]


def read_sample(root: Path, sample: Sample) -> bytes:
    """The encoded bytes of a sample. Raises DataError when the file is gone or is not the one that was split."""
    data = read_bytes(root / sample.path)
    if sha256_bytes(data) != sample.digest:
        raise DataError(
            "an image changed since the split was made", root / sample.path, "restore it, or fine-tune again"
        )
    return data


def stream(
    root: Path,
    samples: Sequence[Sample],
    spec: Preprocess,
    batch_size: int,
    workers: Optional[int] = None,
    on_batch: Optional[Callable[[int], None]] = None,
) -> Iterator[Batch]:
    """The samples in order, `batch_size` at a time; at most two batches are decoded ahead.

    `on_batch(n)` is told the size of each batch as it is handed out (for a progress bar).
    Raises DataError / CorruptImage naming the file.
    """

    def load(sample: Sample) -> npt.NDArray[np.uint8]:
        return to_input(read_sample(root, sample), spec, root / sample.path)

    for chunk, pixels in prefetched(samples, batch_size, load, workers):
        if on_batch:
            on_batch(len(chunk))
        yield Batch(np.stack(pixels), np.array([s.target for s in chunk], dtype=np.int64), chunk)


def prefetched(
    items: Sequence[Sample],
    batch_size: int,
    load: Callable[[Sample], T],
    workers: Optional[int] = None,
) -> Iterator[Tuple[Sequence[Sample], List[T]]]:
    """(chunk, [load(item) for item in chunk]) with at most the next two chunks being loaded by threads.

    Results come in the order of `items`, and an error of `load` where its item would have come; leaving
    early (or Ctrl-C) ends the threads.
    """
    chunks = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    pool = ThreadPoolExecutor(max_workers=workers or min(8, os.cpu_count() or 1))
    pending: Deque[List[Future[T]]] = deque()
    try:
        for chunk in chunks[:2]:
            pending.append([pool.submit(load, item) for item in chunk])
        for index, chunk in enumerate(chunks):
            ready = [future.result() for future in pending.popleft()]
            if index + 2 < len(chunks):
                pending.append([pool.submit(load, item) for item in chunks[index + 2]])
            yield chunk, ready
    finally:
        for futures in pending:
            for future in futures:
                future.cancel()
        pool.shutdown(wait=True)
