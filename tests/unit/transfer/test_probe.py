import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from edgetl.transfer import backbones, probe


def _blobs(classes: int, each: int, width: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), each)
    centres = rng.normal(size=(classes, width)) * 2
    features = (centres[targets] + rng.normal(size=(len(targets), width))) * rng.uniform(0.1, 30, width) + 5
    return features.astype(np.float32), targets


@pytest.mark.parametrize("classes", [2, 5])
def test_the_fold_is_scikit_learns_classifier(classes: int) -> None:
    features, targets = _blobs(classes, 40)
    fitted = probe.fit(features, targets, classes, seed=0)
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=fitted.c, max_iter=1000, tol=1e-3).fit(scaler.transform(features), targets)
    logits = fitted.logits(features)
    ours = torch.from_numpy(logits).softmax(1).numpy()
    np.testing.assert_allclose(ours, model.predict_proba(scaler.transform(features)), atol=2e-3)
    assert logits.dtype == np.float32


def test_folded_into_the_head_the_network_answers_like_the_probe() -> None:
    spec, model = backbones.row("smallnet"), backbones.build("smallnet", 3, 16).eval()
    images = torch.randn(30, 3, 16, 16)
    with torch.inference_mode():
        with backbones.headless(model, spec) as body:
            features = body(images).numpy()
        fitted = probe.fit(features, np.arange(30) % 3, 3, seed=0)
        backbones.set_head(model, spec, torch.from_numpy(fitted.weight), torch.from_numpy(fitted.bias))
        np.testing.assert_allclose(model(images).numpy(), fitted.logits(features), atol=1e-3)


def test_few_images_a_class_leave_nothing_to_choose_by() -> None:
    features, targets = _blobs(3, 2)
    assert probe.fit(features, targets, 3, seed=0).c == probe.DEFAULT


def test_noise_gets_a_strong_penalty_and_signal_is_found() -> None:
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], 60)
    noise = rng.normal(size=(120, 200)).astype(np.float32)
    noise[:, 0] += targets * 1.5
    assert probe.fit(noise, targets, 2, seed=0).c <= 0.1


def test_a_constant_feature_does_no_harm() -> None:
    features, targets = _blobs(3, 20)
    features[:, 4] = 7.0
    fitted = probe.fit(features, targets, 3, seed=0)
    assert np.isfinite(fitted.weight).all()
    assert (fitted.logits(features).argmax(1) == targets).mean() > 0.9


def test_even_classes_are_not_weighted_and_rare_ones_count_more() -> None:
    assert probe.class_weights(np.repeat([0, 1], [40, 60]), 2) is None
    weights = probe.class_weights(np.repeat([0, 1], [10, 90]), 2)
    assert weights is not None
    assert weights[0] > 5 * weights[1]


@given(st.lists(st.integers(0, 400), min_size=2, max_size=8).filter(lambda counts: sum(counts) > 0))
def test_class_weights_average_to_one_over_the_images(counts: list[int]) -> None:
    targets = np.repeat(np.arange(len(counts)), counts)
    weights = probe.class_weights(targets, len(counts))
    if weights is not None:
        assert weights[targets].mean() == pytest.approx(1, abs=1e-4)
        assert (weights[np.array(counts) > 0] > 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.integers(1, 6), st.integers(0, 5))
def test_a_probe_is_finite_and_repeatable(classes: int, each: int, seed: int) -> None:
    features, targets = _blobs(classes, each, seed=seed)
    first, second = (probe.fit(features, targets, classes, seed) for _ in range(2))
    assert np.array_equal(first.weight, second.weight)
    assert np.isfinite(first.logits(features)).all()


def test_a_class_that_a_draw_would_miss_is_in_every_fit_of_the_choice() -> None:
    """Two classes, one of which has 4 of 8,000 images: a plain draw of 3,000 holds none of them in most seeds."""
    targets = np.zeros(8000, np.int64)
    targets[[5, 600, 4000, 7999]] = 1
    for seed in range(5):
        order, fold = probe.folds_of(targets, seed, probe.CV_IMAGES)
        assert len(np.unique(order)) == len(order) and probe.CV_IMAGES <= len(order) <= probe.CV_IMAGES + probe.FOLDS
        for held in range(probe.FOLDS):
            assert set(targets[order][fold != held]) == {0, 1}
    features = np.random.default_rng(0).normal(size=(8000, 4)).astype(np.float32)
    features[:, 0] += 8 * targets
    fitted = probe.fit(features, targets, 2, seed=1)
    assert (fitted.logits(features).argmax(1) == targets)[targets == 1].all()


def test_a_draw_that_misses_no_class_is_as_it_was() -> None:
    targets = np.arange(5000) % 7
    order, _ = probe.folds_of(targets, 3, 1500)
    assert np.array_equal(order, np.random.default_rng(3).permutation(5000)[:1500])
