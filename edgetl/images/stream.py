"""Images as batches of pixels: decoded once each by a few threads, memory bounded by the batch."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Callable,
    Deque,
    Generator,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

import numpy as np

from edgetl.bundle import sha256_bytes
from edgetl.errors import DataError
from edgetl.images.dataset import Sample
from edgetl.images.decode import read_bytes, to_input
from edgetl.spec import Preprocess

if TYPE_CHECKING:
    import numpy.typing as npt


A = TypeVar("A")
T = TypeVar("T")
_PIECE = 4  # items a job of `loaded_ahead`: enough to hide the cost of a future, few enough to use all cores
_MOST_WORKERS = 32  # beyond it Python's lock is the limit, not the cores


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
    chunks = (items[i : i + batch_size] for i in range(0, len(items), batch_size))
    return _ahead(((chunk, [partial(load, item) for item in chunk]) for chunk in chunks), workers)


def loaded_ahead(
    batches: Iterable[Sequence[A]],
    load: Callable[[Sequence[A]], npt.NDArray[np.uint8]],
    workers: Optional[int] = None,
    initializer: Optional[Callable[[], None]] = None,
) -> Generator[Tuple[Sequence[A], npt.NDArray[np.uint8]], None, None]:
    """(batch, load(batch)) while threads load pieces of the next two batches; `load` gives a row for each item.

    `initializer` is called in each thread before its first piece. Errors and early leaving as in `prefetched`.
    """
    jobs = ((batch, [partial(load, batch[i : i + _PIECE]) for i in range(0, len(batch), _PIECE)]) for batch in batches)
    for batch, parts in _ahead(jobs, workers, initializer):
        yield batch, parts[0] if len(parts) == 1 else np.concatenate(parts)


def cores() -> int:
    """Cores that this process may use: its share, where torchrun started several on this machine."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, there // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _ahead(
    batches: Iterable[Tuple[Sequence[A], Sequence[Callable[[], T]]]],
    workers: Optional[int],
    initializer: Optional[Callable[[], None]] = None,
) -> Iterator[Tuple[Sequence[A], List[T]]]:
    """(batch, what its jobs returned) in order, with the jobs of the next two batches at work in threads."""
    waiting = iter(batches)
    pool = ThreadPoolExecutor(workers or min(_MOST_WORKERS, cores()), "edgetl-load", initializer or _nothing)
    pending: Deque[Tuple[Sequence[A], List[Future[T]]]] = deque()
    try:
        for batch, jobs in islice(waiting, 2):
            pending.append((batch, [pool.submit(job) for job in jobs]))
        while pending:
            done, futures = pending[0]
            ready = [future.result() for future in futures]
            pending.popleft()
            for batch, jobs in islice(waiting, 1):
                pending.append((batch, [pool.submit(job) for job in jobs]))
            yield done, ready
    finally:
        for _, futures in pending:
            for future in futures:
                future.cancel()
        pool.shutdown(wait=True)


def _nothing() -> None:
    pass
