"""One pass over the images for all backends; a backend that dies takes nobody with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgetl.errors import BackendError, DataError
from edgetl.images import Batch
from edgetl.measure import predict, predict_each
from edgetl.runtime.ort import OrtBackend

MakeGraph = Callable[..., Path]


def batches(sizes: tuple[int, ...] = (4, 4, 2)) -> Iterator[Batch]:
    rng = np.random.default_rng(0)
    for size in sizes:
        yield Batch(rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8), rng.integers(0, 3, size), [])


class Dying(OrtBackend):
    """Answers the first batch, then dies as a third-party runtime might."""

    runs = 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.runs += 1
        if self.runs > 1:
            raise AttributeError("gone")
        return super().run(batch)


def test_predict_gives_a_row_an_image(tiny_graph: MakeGraph) -> None:
    logits, targets = predict(OrtBackend(tiny_graph()), batches(), max_batch=3)
    assert (logits.shape, logits.dtype, targets.shape) == ((10, 3), np.float32, (10,))


def test_the_stream_is_read_once_and_the_living_go_on(tiny_graph: MakeGraph) -> None:
    read = 0

    def counted() -> Iterator[Batch]:
        nonlocal read
        for batch in batches():
            read += 1
            yield batch

    dying = Dying(tiny_graph())
    found, targets, failed = predict_each({"dies": dying, "lives": OrtBackend(tiny_graph())}, counted())
    assert (read, len(targets)) == (3, 10)
    assert list(found) == ["lives"]
    assert isinstance(failed["dies"], AttributeError)
    assert dying.runs == 2  # not asked again after its failure


def test_predict_raises_the_backends_own_error(tiny_graph: MakeGraph) -> None:
    with pytest.raises(BackendError, match="another input"):
        predict(OrtBackend(tiny_graph(size=8)), batches())


def test_no_images(tiny_graph: MakeGraph) -> None:
    with pytest.raises(DataError, match="no images"):
        predict(OrtBackend(tiny_graph()), batches(()))
