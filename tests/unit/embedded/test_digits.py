"""The demo's data on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from edgetl.embedded.digits import MARK, write_digits
from edgetl.errors import DataError
from edgetl.images import ReadOptions, read_data


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("demo") / "digits")


def test_is_a_split_layout_with_ten_labelled_images_a_class_and_every_scan_once(digits: Path) -> None:
    data = read_data(str(digits), ReadOptions())
    assert data.labels == tuple("0123456789")
    assert data.given and not data.warnings
    assert set(data.counts("train").values()) == {10}
    assert set(data.counts("val").values()) == {50}
    assert len(data.split("test")) == 1797 - 600
    assert len({Path(s.path).name for s in data.all()}) == 1797


def test_holds_the_scans_unchanged_and_under_their_class(digits: Path) -> None:
    source = load_digits()
    for path in sorted(digits.glob("*/*/*.png"))[::97]:
        index = int(path.stem)
        assert str(source.target[index]) == path.parent.name
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (8, 8)
        assert np.array_equal(np.rint(pixels / 255 * 16), source.images[index])


def test_a_second_call_leaves_every_file_as_it_was(digits: Path) -> None:
    before = snapshot(digits)
    write_digits(digits)
    assert snapshot(digits) == before


def test_repairs_what_was_changed_removed_or_added(tmp_path: Path) -> None:
    whole = write_digits(tmp_path / "digits")
    want = {name: data for name, (data, _) in snapshot(whole).items()}
    images = sorted(whole.glob("train/*/*.png"))
    images[0].write_bytes(b"no image")
    images[1].unlink()
    (whole / "test/3/extra.png").write_bytes(images[2].read_bytes())
    write_digits(whole)
    assert {name: data for name, (data, _) in snapshot(whole).items()} == want


def test_begins_again_after_a_kill_half_way(tmp_path: Path) -> None:
    whole = write_digits(tmp_path / "digits")
    want = {name: data for name, (data, _) in snapshot(whole).items()}
    (whole / MARK).write_text("{}")  # as a killed run leaves it
    for path in whole.glob("val/*/*.png"):
        path.unlink()
    write_digits(whole)
    assert {name: data for name, (data, _) in snapshot(whole).items()} == want


def test_another_draw_replaces_the_first(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits")
    few = read_data(str(write_digits(tmp_path / "digits", train_per_class=3)), ReadOptions())
    assert set(few.counts("train").values()) == {3}


def test_leaves_a_folder_of_someone_else_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(DataError, match="something else"):
        write_digits(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
