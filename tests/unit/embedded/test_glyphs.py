"""The source domain: glyphs, their views, and the script that trains on them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.embedded import card
from edgetl.transfer import weights_file
from models import augment, glyphs, make_embedded


@pytest.fixture(scope="module")
def drawn() -> glyphs.Glyphs:
    return glyphs.render()


def test_every_class_is_drawn_in_many_fonts(drawn: glyphs.Glyphs) -> None:
    assert len(drawn.masks) == len(drawn.targets) == len(drawn.fonts)
    assert drawn.masks.shape[1:] == (glyphs.CANVAS, glyphs.CANVAS)
    assert np.bincount(drawn.targets, minlength=len(drawn.labels)).min() >= 10
    assert sorted(drawn.labels) == card()["labels"]  # the shipped weights were trained on these


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


def few(drawn: glyphs.Glyphs, classes: int = 3) -> glyphs.Glyphs:
    """The first classes of all."""
    kept = drawn.targets < classes
    fonts = tuple(font for font, there in zip(drawn.fonts, kept, strict=True) if there)
    return glyphs.Glyphs(drawn.masks[kept], drawn.targets[kept], fonts, drawn.labels[:classes])


def test_glyphs_become_images_whose_views_are_a_function_of_seed_epoch_and_glyph(
    drawn: glyphs.Glyphs, tmp_path: Path
) -> None:
    some = few(drawn)
    data = make_embedded.write_images(some, tmp_path)
    held = some.fonts.count(make_embedded.HELD_OUT_FONT)
    assert data.labels == tuple(sorted(some.labels)) and len(data.split("train")) == len(some.masks) - held
    assert len({s.digest for s in data.split("val")}) == held * make_embedded.VAL_VIEWS > 0
    assert {make_embedded.HELD_OUT_FONT in s.path for s in data.split("val")} == {True}
    views, train = make_embedded.GlyphViews(data, seed=0), data.split("train")
    first = views(train[:5], epoch=1)
    assert first.shape == (5, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(views(train[2:5], 1), first[2:]), "whatever the batch"
    assert not np.array_equal(views(train[:5], 2), first)
    assert not np.array_equal(make_embedded.GlyphViews(data, seed=1)(train[:5], 1), first)


def made(folder: Path, some: glyphs.Glyphs, seed: int = 0) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return make_embedded.make(folder, make_embedded.Recipe(seed=seed, epochs=1, batch=16), some)
    finally:
        torch.set_num_threads(threads)


def test_the_embedded_backbone_is_made_by_the_stage_of_edgetl_pretrain(drawn: glyphs.Glyphs, tmp_path: Path) -> None:
    described = made(tmp_path, few(drawn, classes=2))
    file = tmp_path / "smallnet.safetensors"
    assert described["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    written = weights_file.card_of(file)
    assert written is not None and written.backbone == "smallnet"
    assert written.training["identity"]["options"]["epochs"] == 1 and len(written.training["history"]) == 1
    assert described["preprocess"] == written.preprocess.to_json()
    assert described["training"]["epochs_run"] == 1 and set(described) == set(card())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["smallnet.json", "smallnet.safetensors"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(drawn: glyphs.Glyphs, tmp_path: Path) -> None:
    some = few(drawn)
    shas = [made(tmp_path / name, some, seed)["sha256"] for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert shas[0] == shas[1] != shas[2]
