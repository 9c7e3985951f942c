"""Batches come in order, a bounded number ahead, and name the file that is wrong."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgetl.errors import CorruptImage, DataError
from edgetl.images import (
    ReadOptions,
    Sample,
    cores,
    loaded_ahead,
    prefetched,
    read_data,
    read_sample,
    stream,
    to_input,
)
from edgetl.spec import Preprocess

SPEC = Preprocess(16, 20)
ALL = ReadOptions(val_fraction=0, test_fraction=0)


def items(n: int) -> list[Sample]:
    return [Sample(str(i), 0, "") for i in range(n)]


def test_batches_in_order_with_the_last_one_short(make_folder):
    data = read_data(str(make_folder(n=5)), ALL)
    told: list[int] = []
    batches = list(stream(data.root, data.all(), SPEC, 4, on_batch=told.append))
    assert [len(b.targets) for b in batches] == told == [4, 4, 2]
    assert [s for b in batches for s in b.samples] == data.all()
    for batch in batches:
        assert batch.pixels.dtype == np.uint8 and batch.targets.dtype == np.int64
        for pixels, target, sample in zip(batch.pixels, batch.targets, batch.samples, strict=True):
            np.testing.assert_array_equal(pixels, to_input((data.root / sample.path).read_bytes(), SPEC))
            assert target == sample.target
    assert list(stream(data.root, [], SPEC, 4)) == []


@pytest.mark.parametrize("workers", [1, 8])
def test_at_most_two_batches_are_loaded_ahead(workers):
    started = 0
    lock = threading.Lock()

    def load(sample: Sample) -> int:
        nonlocal started
        with lock:
            started += 1
        return int(sample.path)

    handed = 0
    for chunk, loaded in prefetched(items(100), 5, load, workers):
        handed += len(chunk)
        assert loaded == [int(s.path) for s in chunk]
        time.sleep(0.002)  # time for the threads to run ahead as far as they may
        with lock:
            assert started <= handed + 10
    assert started == handed == 100


def test_order_holds_though_later_ones_are_ready_first():
    def load(sample: Sample) -> str:
        time.sleep(0.01 * (3 - int(sample.path) % 4))
        return sample.path

    assert [x for _, loaded in prefetched(items(13), 4, load, 4) for x in loaded] == [str(i) for i in range(13)]


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    batches = prefetched(items(1000), 4, lambda s: s.path, 4)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_an_error_comes_where_its_batch_would_and_ends_the_threads():
    def load(sample: Sample) -> str:
        if sample.path == "9":
            raise CorruptImage("bad", sample.path)
        return sample.path

    before = threading.active_count()
    seen = []
    with pytest.raises(CorruptImage, match="bad: 9"):
        for chunk, _ in prefetched(items(40), 4, load, 4):
            seen.append(len(chunk))
    assert seen == [4, 4]
    assert threading.active_count() == before


def test_a_changed_or_missing_image_is_named(make_folder):
    data = read_data(str(make_folder(n=4)), ALL)
    first, second = data.all()[:2]
    assert read_sample(data.root, first) == (data.root / first.path).read_bytes()
    Path(data.root / first.path).write_bytes(b"another picture")
    with pytest.raises(DataError, match=rf"an image changed since the split was made: .*{first.path}; restore it"):
        read_sample(data.root, first)
    (data.root / second.path).unlink()
    with pytest.raises(DataError, match=r"no such image"):
        list(stream(data.root, [second], SPEC, 1))


def test_a_corrupt_image_is_named_with_its_whole_path(make_folder):
    root = make_folder(n=4)
    (root / "left/bad.jpg").write_text("I am text")
    data = read_data(str(root), ALL)
    with pytest.raises(CorruptImage, match=r"not an image: .*photos/left/bad\.jpg"):
        list(stream(data.root, data.all(), SPEC, 4))


@pytest.mark.parametrize("sizes", [[10, 10, 3], [1], [5, 1, 9, 4], []])
def test_batches_loaded_in_pieces_are_whole_and_in_order(sizes: list[int]) -> None:
    every = items(sum(sizes))
    batches = [every[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    threads = set()

    def load(chunk):
        threads.add(threading.current_thread().name)
        time.sleep(0.001 * (5 - len(chunk)))
        return np.array([int(s.path) for s in chunk])

    found = list(loaded_ahead(batches, load, 4))
    assert [batch for batch, _ in found] == batches
    assert [row for _, rows in found for row in rows] == list(range(len(every)))
    assert threading.current_thread().name not in threads


def test_an_endless_stream_of_batches_is_taken_two_ahead_only():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield items(3)

    stream = loaded_ahead(endless(), lambda chunk: np.zeros(len(chunk)), 2)
    for handed in range(1, 6):
        next(stream)
        assert taken <= handed + 2
    stream.close()


def test_each_loading_thread_is_prepared_first():
    ready = threading.local()

    def load(chunk):
        assert ready.yes
        return np.zeros(len(chunk))

    assert len(list(loaded_ahead([items(9)], load, 3, lambda: setattr(ready, "yes", True)))) == 1


def test_torchruns_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cores() == 3
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert cores() == 6
