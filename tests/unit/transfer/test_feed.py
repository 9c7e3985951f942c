from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.images import Sample
from edgetl.transfer.feed import Feed, in_batches, part
from edgetl.transfer.processes import Group
from edgetl.transfer.step import Unlabelled


def _samples(count: int) -> list[Sample]:
    return [Sample(f"{i}.png", 0, f"{i:064x}") for i in range(count)]


def _views(chunk: list[Sample], epoch: int) -> np.ndarray:
    return np.array([[int(s.digest, 16), epoch] for s in chunk], np.uint8)


class _Member(Group):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@given(st.integers(0, 70), st.integers(2, 20))
def test_batches_hold_every_image_once_and_none_is_alone(count: int, size: int) -> None:
    order = _samples(count)
    batches = in_batches(order, size)
    assert [s for batch in batches for s in batch] == order
    assert all(2 <= len(batch) <= size + 1 for batch in batches) or count == 1


@given(st.integers(0, 200), st.integers(1, 9))
def test_processes_share_rows_evenly_without_overlap(count: int, size: int) -> None:
    parts = [part(count, _Member(rank, size)) for rank in range(size)]
    assert [row for rows in parts for row in rows] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("count", "batch", "size"), [(23, 5, 2), (23, 5, 4), (21, 4, 3), (6, 4, 4), (3, 4, 1)])
def test_the_portions_of_all_processes_are_the_batches_of_one(count: int, batch: int, size: int) -> None:
    order, target = _samples(count), Unlabelled(_samples(7), _views)
    batches = in_batches(order, batch)
    members = [Feed(_views, target, 0, batch, _Member(rank, size)) for rank in range(size)]
    seen: Counter[int] = Counter()
    for portions in zip(*(list(m.epoch(batches, 3, 10)) for m in members), strict=True):
        counted = [(s, row) for p in portions if p.counts for s, row in zip(p.samples, p.pixels, strict=True)]
        assert [s for s, _ in counted] == list(portions[0].batch)
        assert all(row.tolist() == [int(s.digest, 16), 3] for s, row in counted)
        assert all(len(p.pixels) > 0 for p in portions), "a process without images still takes part"
        seen.update(int(s.digest, 16) for s, _ in counted)
        assert sum(len(p.unlabelled_samples) for p in portions) == batch
        rows = [r for p in portions for r, real in zip(p.rows()[0], p.rows()[2], strict=True) if real]
        assert sorted(rows) == list(range(portions[0].rows()[1])), "each row of the whole batch is someone's"
    assert seen == Counter(range(count))


def test_without_unlabelled_images_there_are_none() -> None:
    (portion,) = Feed(_views, None, 0, 4).epoch([_samples(3)], 1, 0)
    assert portion.unlabelled is None
    assert portion.rows() == ([0, 1, 2], 3, [True] * 3)
