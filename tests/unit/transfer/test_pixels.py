from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.errors import CorruptImage, DataError
from edgetl.images import Dataset, ReadOptions, read_data, to_input
from edgetl.spec import Fit, Preprocess
from edgetl.transfer.pixels import PixelStore

SPEC = Preprocess(size=24, resize=28)


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> Dataset:
    folder = make_folder(n=6, size=40)
    Image.new("RGB", (50, 90), (9, 200, 30)).save(folder / "left" / "tall.png")
    return read_data(str(folder), ReadOptions())


def _expected(data: Dataset, spec: Preprocess) -> np.ndarray:
    return np.stack([to_input((data.root / s.path).read_bytes(), spec) for s in data.all()])


@pytest.mark.parametrize("fit", list(Fit))
@pytest.mark.parametrize("limit", [1 << 30, 20_000, 0])
def test_inputs_are_the_projects_one_preprocessing(tmp_path: Path, data: Dataset, fit: Fit, limit: int) -> None:
    """Also past the limit, where images are decoded again."""
    spec = Preprocess(size=24, resize=28 if fit is Fit.CROP else 24, fit=fit)
    store = PixelStore(tmp_path / "work", data.root, spec, limit)
    assert store.fill(data.all(), skip_corrupt=False) == {}
    assert np.array_equal(store.inputs(data.all()), _expected(data, spec))
    assert (tmp_path / "work" / "pixels.bin").stat().st_size <= limit
    store.close()


def test_a_second_run_takes_over_what_is_stored(tmp_path: Path, data: Dataset) -> None:
    store = PixelStore(tmp_path, data.root, SPEC)
    store.fill(data.all(), False)
    store.close()
    expected = _expected(data, SPEC)
    for sample in data.all():
        (data.root / sample.path).unlink()
    again = PixelStore(tmp_path, data.root, SPEC)
    again.fill(data.all(), False)
    assert np.array_equal(again.inputs(data.all()), expected)


@pytest.mark.parametrize("cut", [1, 30, 200, 700])
def test_a_torn_index_and_unindexed_pixels_are_dropped(tmp_path: Path, data: Dataset, cut: int) -> None:
    store = PixelStore(tmp_path, data.root, SPEC)
    store.fill(data.all(), False)
    store.close()
    index = tmp_path / "pixels.jsonl"
    index.write_bytes(index.read_bytes()[:-cut])
    again = PixelStore(tmp_path, data.root, SPEC)
    again.fill(data.all(), False)
    assert np.array_equal(again.inputs(data.all()), _expected(data, SPEC))
    assert len(index.read_bytes().splitlines()) == len({s.digest for s in data.all()})


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:80])


def test_a_corrupt_image_is_found_before_training(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    folder = make_folder(n=5)
    _truncate(folder / "right" / "002.png")
    data = read_data(str(folder), ReadOptions())
    with pytest.raises(CorruptImage, match=r"right/002\.png"):
        PixelStore(tmp_path / "a", data.root, SPEC).fill(data.all(), skip_corrupt=False)
    corrupt = PixelStore(tmp_path / "b", data.root, SPEC).fill(data.all(), skip_corrupt=True)
    assert [Path(e.value.split(" ")[0]).name for e in corrupt.values()] == ["002.png"]


def test_an_image_that_changed_since_it_was_hashed_is_no_corrupt_one(tmp_path: Path, data: Dataset) -> None:
    (data.root / data.all()[0].path).write_bytes(b"other")
    with pytest.raises(DataError, match="changed since"):
        PixelStore(tmp_path / "w", data.root, SPEC).fill(data.all(), skip_corrupt=True)


def test_an_image_that_was_not_decoded_before_is_when_it_is_asked_for(tmp_path: Path, data: Dataset) -> None:
    store = PixelStore(tmp_path / "w", data.root, SPEC)
    expected = _expected(data, SPEC)
    assert np.array_equal(store.inputs(data.all()), expected)
    for sample in data.all():
        (data.root / sample.path).unlink()
    assert np.array_equal(store.inputs(data.all()), expected), "kept, not decoded again"
    store.close()


def test_processes_read_what_the_others_stored(tmp_path: Path, data: Dataset) -> None:
    stores = [PixelStore(tmp_path / "w", data.root, SPEC, process=rank, processes=2) for rank in range(2)]
    expected = _expected(data, SPEC)
    for rank, store in enumerate(stores):
        store.fill(data.all()[rank::2], False)
    for sample in data.all():
        (data.root / sample.path).unlink()
    for store in stores:
        store.refresh()
        assert np.array_equal(store.inputs(data.all()), expected)
        store.close()
    alone = PixelStore(tmp_path / "w", data.root, SPEC)  # --resume with another number of processes
    assert np.array_equal(alone.inputs(data.all()), expected)
    alone.close()


def test_what_is_decoded_behind_is_there_and_a_corrupt_one_ends_the_next_call(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    folder = make_folder(n=30)
    data = read_data(str(folder), ReadOptions())
    store = PixelStore(tmp_path / "good", data.root, SPEC)
    store.fill_behind(data.all())
    store.settle()
    assert len((tmp_path / "good" / "pixels.jsonl").read_bytes().splitlines()) == len(data.all())
    store.close()
    _truncate(folder / "right" / "002.png")
    data = read_data(str(folder), ReadOptions())
    bad = next(s for s in data.all() if s.path == "right/002.png")
    store = PixelStore(tmp_path / "bad", data.root, SPEC)
    store.fill_behind([s for s in data.all() if s.path.startswith("right")])
    with pytest.raises(CorruptImage, match=r"right/002\.png"):
        store.settle()
    with pytest.raises(CorruptImage, match=r"right/002\.png"):
        store.image(next(s for s in data.all() if s != bad))
    store.close()


def test_closing_ends_what_is_decoded_behind(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = read_data(str(make_folder(n=200, size=200)), ReadOptions())
    store = PixelStore(tmp_path / "w", data.root, SPEC)
    store.fill_behind(data.all())
    store.close()
    assert len((tmp_path / "w" / "pixels.jsonl").read_bytes().splitlines()) < len(data.all())


def test_threads_may_use_one_store_at_once(tmp_path: Path, data: Dataset) -> None:
    store = PixelStore(tmp_path, data.root, SPEC)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda s: store.inputs([s])[0], data.all() * 5))
    assert np.array_equal(np.stack(found), np.tile(_expected(data, SPEC), (5, 1, 1, 1)))
    lines = (tmp_path / "pixels.jsonl").read_bytes().splitlines()
    assert len(lines) == len({s.digest for s in data.all()}), "each image is stored once"
    store.close()
