from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as torchvision_datasets

from edgetl.errors import DataError
from edgetl.images import ReadOptions, read_data
from edgetl.transfer import datasets


def _image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    """EuroSAT as its archive unpacks; torchvision finds it there and downloads nothing."""
    for label in ("Forest", "River"):
        for i in range(4):
            _image(tmp_path / "downloads/eurosat/2750" / label / f"{label}_{i}.jpg", len(label) + i)
    return tmp_path


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    root = tmp_path / "downloads/dtd/dtd"
    (root / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{label}/{label}_{number}{i}.jpg" for label in ("banded", "dotted") for i in range(3)]
        (root / "labels" / f"{split}1.txt").write_text("".join(n + "\n" for n in names))
        for i, name in enumerate(names):
            _image(root / "images" / name, 100 * number + i)
    return tmp_path


def test_a_data_set_without_splits_becomes_class_folders(eurosat: Path) -> None:
    folder = datasets.materialise("torchvision:EuroSAT", eurosat)
    data = read_data(str(folder), ReadOptions())
    assert data.labels == ("Forest", "River")
    assert not data.given
    first = torchvision_datasets.EuroSAT(str(eurosat / "downloads"))[0][0]
    written = Image.open(folder / "Forest" / "000000.png")
    assert np.array_equal(np.asarray(first), np.asarray(written)), "PNG keeps the decoded pixels"


def test_given_splits_are_kept(dtd: Path) -> None:
    data = read_data(str(datasets.materialise("torchvision:DTD", dtd)), ReadOptions())
    assert data.given
    assert {name: len(data.split(name)) for name in ("train", "val", "test")} == {"train": 6, "val": 6, "test": 6}


def test_the_folder_is_written_once(eurosat: Path) -> None:
    folder = datasets.materialise("torchvision:EuroSAT", eurosat)
    marker = folder / "Forest" / "000000.png"
    before = marker.stat().st_mtime_ns
    assert datasets.materialise("torchvision:EuroSAT", eurosat) == folder
    assert marker.stat().st_mtime_ns == before


def test_a_failure_halfway_leaves_no_folder(eurosat: Path) -> None:
    (eurosat / "downloads/eurosat/2750/River/River_3.jpg").write_bytes(b"cut")
    with pytest.raises(DataError, match="EuroSAT"):
        datasets.materialise("torchvision:EuroSAT", eurosat)
    assert list((eurosat / "folders").iterdir()) == []


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match="torchvision:CIFAR10"):
        datasets.materialise("torchvision:CIFAR1O")
    with pytest.raises(DataError, match="known: CIFAR10"):
        datasets.materialise("torchvision:zzzzz")


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")  # nobody listens on port 9
    with pytest.raises(DataError, match=r"could not be downloaded.*--data-root"):
        datasets.materialise("torchvision:EuroSAT", tmp_path)


def test_every_source_names_a_data_set_of_torchvision() -> None:
    assert all(hasattr(torchvision_datasets, name) for name in datasets.SOURCES)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["0 - zero", "a/b"], ["0 - zero", "a_b"]),
        (["Cafe\u0301", "x."], ["Caf\u00e9", "x"]),
        (["a/b", "a_b"], ["000 a_b", "001 a_b"]),
        ([], []),
    ],
)
def test_class_names_are_folder_names(classes: list[str], names: list[str]) -> None:
    class Found:
        pass

    found = Found()
    found.classes = classes  # type: ignore[attr-defined]
    assert datasets.class_names(found) == names
