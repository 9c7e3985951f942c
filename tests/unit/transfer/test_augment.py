from concurrent.futures import ThreadPoolExecutor
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from edgetl.images import Sample
from edgetl.spec import Fit, Preprocess
from edgetl.transfer.augment import CROP_SCALE, Views, _crop, epoch_order, stream_seed

SAMPLES = [Sample(f"{i}.png", i % 2, f"{i:064x}") for i in range(6)]


def _image(sample: Sample) -> np.ndarray:
    return np.random.default_rng(int(sample.digest, 16)).integers(0, 255, (30, 40, 3), dtype=np.uint8)


def _views(flips: bool = True, seed: int = 0, fit: Fit = Fit.CROP) -> Views:
    return Views(_image, Preprocess(size=24, resize=24, fit=fit), seed, flips)


def test_a_view_depends_on_seed_epoch_and_image_only() -> None:
    together = _views()(SAMPLES, 3)
    alone = [_views()([s], 3)[0] for s in reversed(SAMPLES)]
    assert np.array_equal(together, np.stack(alone[::-1]))
    assert not np.array_equal(together, _views()(SAMPLES, 4))
    assert not np.array_equal(together, _views(seed=1)(SAMPLES, 3))


def test_the_global_random_stream_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    _views()(SAMPLES, 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("fit", list(Fit))
def test_views_have_the_networks_shape(fit: Fit) -> None:
    views = _views(fit=fit)(SAMPLES, 1)
    assert views.shape == (6, 24, 24, 3)
    assert views.dtype == np.uint8


def test_without_flips_no_view_is_mirrored() -> None:
    """A white left edge stays left in every one of many epochs; with flips it does not."""
    half = np.zeros((24, 24, 3), np.uint8)
    half[:, :12] = 255

    def left_is_brighter(flips: bool) -> list[bool]:
        views = Views(lambda _: half, Preprocess(size=24, resize=24), 0, flips)
        return [bool(v[:, :4].mean() > v[:, -4:].mean()) for e in range(20) for v in views(SAMPLES[:1], e)]

    assert all(left_is_brighter(False))
    assert not all(left_is_brighter(True))


def test_each_epoch_has_its_own_order_of_all_images() -> None:
    first, second = epoch_order(SAMPLES, 0, 1), epoch_order(SAMPLES, 0, 2)
    assert first != second
    assert sorted(s.path for s in first) == sorted(s.path for s in second)
    assert epoch_order(SAMPLES[::-1], 0, 1) == first, "the order of the listing does not matter"


@given(st.integers(0, 2**31), st.text(max_size=5), st.integers(0, 1000))
def test_stream_seeds_fit_torch(seed: int, what: str, epoch: int) -> None:
    value = stream_seed(seed, what, epoch)
    assert 0 <= value < 2**63
    assert value == stream_seed(seed, what, epoch)


def test_many_threads_draw_the_views_that_one_does() -> None:
    views = _views()
    expected = views(SAMPLES, 2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda s: views([s], 2)[0], SAMPLES * 20))
    assert np.array_equal(np.stack(found), np.tile(expected, (20, 1, 1, 1)))


@given(st.integers(0, 2**32), st.integers(1, 300), st.integers(1, 300))
def test_crops_lie_in_the_image_and_keep_to_area_and_aspect(seed: int, height: int, width: int) -> None:
    top, left, h, w = _crop(Random(seed), height, width)
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0
    if min(height, width) >= 60 and 0.5 < width / height < 2:  # room for an allowed crop: only rounding is off
        assert 0.45 <= h * w / (height * width) <= 1
        assert 0.72 <= w / h <= 1.4


def test_crops_are_spread_as_torchvisions_are() -> None:
    """Mean and spread of area, aspect and place over 4,000 draws each: an independent implementation."""
    draw, torchvisions = Random(0), v2.RandomResizedCrop(24, scale=CROP_SCALE, antialias=True)
    torch.manual_seed(0)
    image = torch.zeros(3, 90, 120, dtype=torch.uint8)
    ours = np.array([_crop(draw, 90, 120) for _ in range(4000)], float)
    drawn = [torchvisions.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in drawn], float)
    assert np.allclose(ours.mean(0), theirs.mean(0), atol=6 * theirs.std(0).max() / 4000**0.5)
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.06)
