"""The source domain: glyphs, their views, and the script that trains on them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetl.embedded import card
from models import augment, glyphs, make_embedded


@pytest.fixture(scope="module")
def drawn() -> glyphs.Glyphs:
    return glyphs.render()


def test_every_class_is_drawn_in_many_fonts(drawn: glyphs.Glyphs) -> None:
    assert len(drawn.masks) == len(drawn.targets) == len(drawn.fonts)
    assert drawn.masks.shape[1:] == (glyphs.CANVAS, glyphs.CANVAS)
    assert np.bincount(drawn.targets, minlength=len(drawn.labels)).min() >= 10
    assert list(drawn.labels) == card()["labels"]  # the shipped weights were trained on these


def test_a_glyph_is_centred_and_fills_its_box(drawn: glyphs.Glyphs) -> None:
    for mask in drawn.masks[::211]:
        ys, xs = np.nonzero(mask)
        assert max(np.ptp(ys), np.ptp(xs)) + 1 in range(glyphs.GLYPH - 3, glyphs.GLYPH + 1)
        assert abs(ys.min() + ys.max() + 1 - glyphs.CANVAS) <= 2
        assert abs(xs.min() + xs.max() + 1 - glyphs.CANVAS) <= 2


def test_a_character_that_a_font_lacks_is_left_out() -> None:
    aileron = glyphs.load(glyphs.AILERON)
    missing = glyphs._ink(aileron, "\uffff")
    assert glyphs.drawn(aileron, "Ж", missing) is None
    assert glyphs.drawn(aileron, "R", missing) is not None
    assert glyphs.drawn(aileron, " ", missing) is None
    assert not glyphs.drawable("cmr10", "Ж")


def test_one_shape_is_one_class() -> None:
    _, class_of = glyphs.merged_by_shape()
    assert class_of["o"] != class_of["0"]
    assert class_of["C"] == class_of["c"]
    assert class_of["b"] != class_of["d"]


def test_views_are_images_and_a_function_of_their_generator(drawn: glyphs.Glyphs) -> None:
    masks = torch.from_numpy(drawn.masks[:41])
    first, same, other = (augment.view(masks, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert first.shape == (41, 3, 32, 32) and first.dtype == torch.float32
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert all(float(view.std()) > 0.01 for view in first)  # none is blank


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        recipe = make_embedded.Recipe(steps=2, batch=16)
        cards = [make_embedded.make(tmp_path / name, recipe) for name in ("a", "b")]
        other = make_embedded.make(tmp_path / "c", make_embedded.Recipe(seed=1, steps=2, batch=16))
    finally:
        torch.set_num_threads(threads)
    written = (tmp_path / "a/smallnet.safetensors").read_bytes()
    assert cards[0]["sha256"] == cards[1]["sha256"] == hashlib.sha256(written).hexdigest() != other["sha256"]
    assert cards[0]["training"]["views_seen"] == 32
    assert set(cards[0]) == set(card())
