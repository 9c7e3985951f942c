"""Images that nobody labelled: every one below a folder, whatever lies between."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from edgetl.bundle import sha256_file
from edgetl.errors import DataError
from edgetl.images.of_bundle import UNLABELLED, read_unlabelled
from edgetl.monitor import Monitor


def _draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)


def test_links_to_folders_are_followed_once_and_what_is_hidden_is_not_read(tmp_path: Path) -> None:
    there = tmp_path / "there"
    for seed, name in enumerate(("a.png", "day 1/b.PNG", "day 1/night/c.jpg", ".hidden.png", "__MACOSX/._a.png")):
        _draw(there / name, seed)
    _draw(there / ".thumbnails/d.png", 9)
    _draw(tmp_path / "elsewhere/e.png", 10)
    (there / "card").symlink_to(tmp_path / "elsewhere")
    (there / "day 1/back").symlink_to(there)  # without end
    (there / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (there / "notes.txt").write_text("no image")
    root, found = read_unlabelled(str(there))
    assert root == there
    assert [s.path for s in found] == ["a.png", "card/e.png", "day 1/b.PNG", "day 1/night/c.jpg"]
    assert {s.target for s in found} == {UNLABELLED} and len({s.digest for s in found}) == 4


def test_nothing_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no images"):
        read_unlabelled(str(tmp_path))
    with pytest.raises(DataError, match="no such folder"):
        read_unlabelled(str(tmp_path / "absent"))


def test_it_is_told_how_far_the_listing_is(tmp_path: Path) -> None:
    class Listening(Monitor):
        told: ClassVar[list[tuple[str, int, int]]] = []

        def progress(self, what: str, done: int, total: int) -> None:
            self.told.append((what, done, total))

    for seed in range(3):
        _draw(tmp_path / f"{seed}.png", seed)
    _, found = read_unlabelled(str(tmp_path), Listening())
    assert Listening.told == [("listing", 3, 3)]
    assert [s.digest for s in found] == [sha256_file(tmp_path / s.path) for s in found]
