from collections.abc import Callable
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
