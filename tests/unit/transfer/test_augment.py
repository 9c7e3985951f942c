import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetl.images import Sample
from edgetl.spec import Fit, Preprocess
from edgetl.transfer.augment import Views, epoch_order, stream_seed

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
