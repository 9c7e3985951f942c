"""What is fitted to features a block at a time, against scikit-learn on the whole matrix; and the memory it takes."""

import mmap
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.preprocessing import StandardScaler

from edgetl.transfer import blocks, classifiers, closed_form, probe

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def _set(n: int, d: int, classes: int, seed: int = 0, uneven: bool = False) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    shares = np.array([6.0, *[1.0] * (classes - 1)]) if uneven else np.ones(classes)
    targets = np.concatenate([np.arange(classes), rng.choice(classes, n - classes, p=shares / shares.sum())])
    raw = 0.6 * rng.normal(size=(classes, d))[targets] + rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5
    return (raw * rng.uniform(0.1, 30, d) + 5).astype(np.float32), targets.astype(np.int64)


@pytest.fixture
def by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set is large, and a block has some 20 rows."""
    monkeypatch.setattr(blocks, "LARGE", 0)
    monkeypatch.setattr(blocks, "BLOCK", 200)


@pytest.mark.usefixtures("by_blocks")
@given(st.integers(1, 60), st.integers(1, 500))
def test_the_blocks_are_the_rows_in_order_and_small(n: int, d: int) -> None:
    features = np.arange(n * d, dtype=np.float32).reshape(n, d)
    parts = list(blocks.blocks(features))
    assert np.array_equal(np.concatenate([block for _, block in parts]), features)
    assert [i for rows, _ in parts for i in range(n)[rows]] == list(range(n))
    assert all(block.size <= max(blocks.BLOCK, d) for _, block in parts)


@pytest.mark.usefixtures("by_blocks")
@given(st.lists(st.integers(0, 99), max_size=150))
def test_what_is_drawn_are_these_rows(order: list[int]) -> None:
    features = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    rows = np.array(order, np.int64)
    assert np.array_equal(blocks.drawn(features, rows), features[rows])


@given(st.lists(st.integers(0, 99), min_size=1, max_size=150), st.integers(1, 40), st.booleans())
def test_many_rows_that_are_selected_or_stacked_are_mapped_and_few_are_not(
    order: list[int], cut: int, large: bool
) -> None:
    features = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    rows = np.array(order, np.int64)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(blocks, "LARGE", 0 if large else 10_000)
        patch.setattr(blocks, "BLOCK", 50)
        found = blocks.selected(features, rows, Path(folder))
        whole = blocks.stacked([features[:cut], features[cut:]], Path(folder))
        assert isinstance(found, np.memmap) == isinstance(whole, np.memmap) == large
        assert not list(Path(folder).iterdir()), "the file has no name to be left behind"
        assert np.array_equal(found, features[rows]) and np.array_equal(whole, features)


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages are let go where the system has a way to")
@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="what of a file is resident is read from /proc")
def test_a_mapped_file_does_not_stay_resident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1 << 16)
    path = tmp_path / "features"
    np.zeros((20_000, 64), np.float32).tofile(path)
    mapped = np.memmap(path, np.float32, "r", shape=(20_000, 64))
    peak = 0
    for _, block in blocks.blocks(mapped[:15_000]):
        block.sum()
        peak = max(peak, _resident(path))
    assert 0 < peak < mapped.nbytes // 2
    assert blocks.drawn(mapped, np.arange(0, 20_000, 10)).shape == (2_000, 64)
    assert _resident(path) == 0
    mapped.sum()
    assert _resident(path) > mapped.nbytes // 2, "or this test could not fail"


def _resident(path: Path) -> int:
    """Bytes of the mapped file that are in this process."""
    found = Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").split(str(path), 1)[1]
    return int(found.split("Rss:", 1)[1].split(None, 1)[0]) * 1024


@pytest.mark.usefixtures("by_blocks")
def test_the_scaler_is_scikit_learns() -> None:
    features, _ = _set(90, 12, 3)
    features[:, 3] = 7.0  # constant
    ours, theirs = blocks.scaler_of(features), StandardScaler().fit(features)
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-6)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_softmax_regression_is_scikit_learns(classes: int, uneven: bool, c: float) -> None:
    features, targets = _set(120, 10, classes, uneven=uneven)
    scaler = StandardScaler().fit(features)
    weights = probe.class_weights(targets, classes) if uneven else None
    assert (weights is not None) == uneven
    weight, bias = blocks.softmax_regression(features, scaler, targets, c, weights, 1000)
    given = None if weights is None else {i: float(w) for i, w in enumerate(weights)}
    # The optimum itself: ours stops where the gradient is below 1e-3 of the loss's scale.
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8, class_weight=given)
    theirs.fit(scaler.transform(features).astype(np.float64), targets)
    assert weight.shape == theirs.coef_.shape
    ours = scaler.transform(features) @ weight.T + bias
    wanted = scaler.transform(features) @ theirs.coef_.T + theirs.intercept_
    centred = [s - s.mean(1, keepdims=True) if classes > 2 else s for s in (ours, wanted)]
    assert np.abs(centred[0] - centred[1]).max() < 0.03 * np.abs(centred[1]).max()


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("uneven", [False, True])
def test_the_probe_of_a_large_set_is_that_of_a_small_one(
    classes: int, uneven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets = _set(400, 20, classes, uneven=uneven)
    small = probe.fit(features, targets, classes, seed=0)
    monkeypatch.setattr(blocks, "LARGE", 0)
    monkeypatch.setattr(blocks, "BLOCK", 600)
    large = probe.fit(features, targets, classes, seed=0)
    assert large.c == small.c
    ours, theirs = large.logits(features), small.logits(features)
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("uneven", [False, True])
def test_every_classifier_of_a_large_set_is_that_of_a_small_one(
    classes: int, uneven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, targets = _set(300, 24, classes, uneven=uneven)
    small = classifiers.fit(features, targets, classes, seed=0)
    monkeypatch.setattr(blocks, "LARGE", 0)
    monkeypatch.setattr(blocks, "BLOCK", 600)
    for name in small.accuracies:  # whichever is the best in cross-validation
        scaler = StandardScaler().fit(features)
        both = (
            classifiers._candidates(scaler.transform(features).astype(np.float64), targets, uneven),
            classifiers._large(name, features, scaler, targets, uneven),
        )
        one, other = ({key: head for key, head in found.items() if key[0] == name} for found in both)
        assert list(one) == list(other)
        for ours, theirs in zip(*other.values(), *one.values(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    large = classifiers.fit(features, targets, classes, seed=0)
    assert large.told == small.told
    np.testing.assert_allclose(large.logits(features), small.logits(features), atol=1e-4)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("n", [60, 14])  # more and fewer images than features
def test_ridge_is_scikit_learns_with_its_leave_one_out_choice(classes: int, balanced: bool, n: int) -> None:
    features, targets = _set(n, 20, classes, uneven=True)
    scaler = StandardScaler().fit(features)
    counts = np.bincount(targets)
    weights = n / (classes * counts) if balanced else np.ones(classes)
    for alphas in ([10.0], [0.1, 1.0, 10.0, 100.0, 1000.0]):
        theirs = RidgeClassifierCV(alphas, class_weight="balanced" if balanced else None)
        theirs.fit(scaler.transform(features).astype(np.float64), targets)
        alpha, weight, bias = closed_form.ridge(features, scaler, targets, weights, alphas)
        assert alpha == theirs.alpha_
        np.testing.assert_allclose(weight, np.atleast_2d(theirs.coef_), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(bias, np.ravel(theirs.intercept_), rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("by_blocks")
@pytest.mark.parametrize("shape", [(50, 9), (12, 30)])
def test_the_covariance_within_classes_is_that_of_the_residuals(shape: tuple[int, int]) -> None:
    features, targets = _set(*shape, 3)
    scaler = StandardScaler().fit(features)
    found = closed_form.sums(features, scaler, targets, np.ones(3))
    spread, axes = closed_form.within(found)
    scaled = scaler.transform(features).astype(np.float64)
    means = np.stack([scaled[targets == c].mean(0) for c in range(3)])
    np.testing.assert_allclose(found.means, means, atol=1e-9)
    residuals = scaled - means[targets]
    np.testing.assert_allclose(axes.T * spread @ axes, residuals.T @ residuals / len(targets), atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 4), st.integers(0, 100))
def test_the_gradient_is_the_losss_slope(classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, targets = rng.normal(size=(6, 1 if classes == 2 else classes)) * 3, rng.integers(0, classes, 6)
    nll, gradient = blocks._softmax(scores, targets)
    for column in range(scores.shape[1]):
        step = np.zeros_like(scores)
        step[:, column] = 1e-5
        slope = (blocks._softmax(scores + step, targets)[0] - blocks._softmax(scores - step, targets)[0]) / 2e-5
        np.testing.assert_allclose(gradient[:, column], slope, atol=1e-6)
    assert (nll >= 0).all()


@pytest.mark.parametrize("fit", [probe.fit, classifiers.fit])
def test_memory_does_not_grow_with_the_images(
    tmp_path: Path, fit: Callable[..., probe.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What numpy holds at most, of features mapped from a file: four times the images, the same but for the targets."""
    monkeypatch.setattr(blocks, "LARGE", 1 << 16)
    monkeypatch.setattr(blocks, "BLOCK", 1 << 14)
    monkeypatch.setattr(probe, "CV_IMAGES", 300)
    monkeypatch.setattr(classifiers, "CV_IMAGES", 300)
    monkeypatch.setattr(probe, "ITERATIONS", 5)
    peaks = []
    for n in (4_000, 16_000):
        features, targets = _set(n, 32, 4)
        features.tofile(tmp_path / str(n))
        mapped = np.memmap(tmp_path / str(n), np.float32, "r", shape=features.shape)
        del features
        tracemalloc.start()
        found = fit(mapped, targets, 4, 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        assert found.logits(mapped).shape == (n, 4)
        tracemalloc.stop()
    more = 12_000
    assert peaks[1] - peaks[0] < more * 32 * 4 / 2, "not even half of what the further rows would take"
