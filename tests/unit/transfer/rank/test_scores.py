"""Transferability scores against their definitions, written out plainly or computed another way."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import KNeighborsClassifier

from edgetl.transfer.rank.front import best_first, on_front
from edgetl.transfer.rank.scores import h_score, knn_accuracy, leep, logme, nce, probe_hits


def blobs(n: int, width: int, classes: int = 3, spread: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n, width) around one centre a class; int64 (n,), each class there at least twice."""
    rng = np.random.default_rng(seed)
    targets = np.sort(np.arange(n) % classes)
    centres = rng.normal(size=(classes, width))
    return (centres[targets] + spread * rng.normal(size=(n, width))).astype(np.float32), targets.astype(np.int64)


def largest_evidence(features: np.ndarray, y: np.ndarray) -> float:
    """max over a, b of log N(y; 0, I / b + F F^T / a), by a numeric search from several starts; a nat per row."""
    gram = features.astype(float) @ features.astype(float).T

    def negative(logs: np.ndarray) -> float:
        a, b = np.exp(np.clip(logs, -25, 25))
        covariance = np.eye(len(y)) / b + gram / a
        return -float(multivariate_normal.logpdf(y, np.zeros(len(y)), covariance, allow_singular=True))

    starts = [(la, lb) for la in (-4, 0, 4, 8) for lb in (-2, 2, 6)]
    return -min(minimize(negative, s, method="Nelder-Mead").fun for s in starts) / len(y)


@pytest.mark.parametrize(("n", "width"), [(12, 3), (9, 9), (8, 20)], ids=["N > D", "N = D", "N < D"])
def test_logme_is_the_largest_evidence(n: int, width: int) -> None:
    features, targets = blobs(n, width, seed=n)
    wanted = np.mean([largest_evidence(features, (targets == c).astype(float)) for c in range(3)])
    assert logme(features, targets) == pytest.approx(wanted, abs=2e-4)


@settings(max_examples=25)
@given(st.integers(4, 30), st.integers(1, 40), st.integers(2, 4), st.floats(0.01, 50), st.integers(0, 99))
def test_logme_does_not_depend_on_the_unit_of_the_features(n: int, d: int, c: int, unit: float, seed: int) -> None:
    features, targets = blobs(n, d, min(c, n // 2), seed=seed)
    assert logme(features * unit, targets) == pytest.approx(logme(features, targets), abs=1e-3)
    assert np.isfinite(logme(features, targets))


@pytest.mark.parametrize("score", [logme, h_score, knn_accuracy])
def test_scores_fall_as_the_classes_blur(score) -> None:
    found = [score(*blobs(120, 10, spread=spread)) for spread in (0.1, 1.0, 10.0)]
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("score", [logme, h_score, knn_accuracy])
def test_features_that_say_nothing(score) -> None:
    targets = np.arange(20) % 2
    assert np.isfinite(score(np.zeros((20, 6), np.float32), targets))
    assert np.isfinite(score(np.ones((20, 6), np.float32), targets))


@pytest.mark.parametrize(("n", "width"), [(60, 4), (12, 30)])
def test_h_score_is_its_definition(n: int, width: int) -> None:
    features, targets = blobs(n, width)
    centred = features.astype(float) - features.astype(float).mean(0)
    shrunk = LedoitWolf().fit(centred)
    means = np.stack([centred[targets == t].mean(0) for t in targets])  # one row an image
    between = means.T @ means / n
    wanted = np.trace(np.linalg.pinv(shrunk.covariance_) @ ((1 - shrunk.shrinkage_) * between))
    assert h_score(features, targets) == pytest.approx(wanted, rel=1e-5)


def said(n: int, z: int, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).gamma(0.3, size=(n, z)) + 1e-9
    return raw / raw.sum(1, keepdims=True)


@settings(max_examples=25)
@given(st.integers(2, 25), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_leep_is_its_definition(n: int, z: int, classes: int, seed: int) -> None:
    theta, targets = said(n, z, seed), np.random.default_rng(seed).integers(0, classes, n)
    joint = {(y, k): sum(theta[i, k] for i in range(n) if targets[i] == y) / n for y in set(targets) for k in range(z)}
    marginal = [sum(joint[y, k] for y in set(targets)) for k in range(z)]
    eep = [sum(joint[targets[i], k] / marginal[k] * theta[i, k] for k in range(z)) for i in range(n)]
    assert leep(theta, targets) == pytest.approx(float(np.mean(np.log(eep))), abs=1e-9)
    assert leep(theta, targets) <= 1e-12


def test_leep_with_source_classes_that_are_never_said() -> None:
    theta = np.zeros((6, 5))
    theta[np.arange(6), np.arange(6) % 2] = 1
    assert leep(theta, np.arange(6) % 2) == pytest.approx(0.0)
    assert leep(theta, np.zeros(6, np.int64)) == pytest.approx(0.0)
    assert leep(theta, np.array([0, 0, 0, 1, 1, 1])) < -0.5


@settings(max_examples=25)
@given(st.integers(2, 25), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_nce_is_its_definition(n: int, z: int, classes: int, seed: int) -> None:
    theta, targets = said(n, z, seed), np.random.default_rng(seed).integers(0, classes, n)
    source = theta.argmax(1)
    both, alone = Counter(zip(targets, source, strict=True)), Counter(source)
    entropy = -sum(count / n * np.log(count / alone[k]) for (_, k), count in both.items())
    assert nce(theta, targets) == pytest.approx(-entropy, abs=1e-9)


@pytest.mark.parametrize("n", [40, 1100])  # 1100: more than one block of rows
def test_the_nearest_neighbour_is_scikit_learns(n: int) -> None:
    features, targets = blobs(n, 6, spread=1.5)
    near = KNeighborsClassifier(2, metric="cosine", algorithm="brute").fit(features, targets)
    others = near.kneighbors(features, return_distance=False)
    first = np.where(others[:, 0] == np.arange(n), others[:, 1], others[:, 0])
    assert knn_accuracy(features, targets, 1) == pytest.approx((targets[first] == targets).mean(), abs=1.01 / n)


def test_neighbours_in_a_tie_are_won_by_the_nearer() -> None:
    angles = np.array([0.0, 0.1, 0.2, 1.0, 1.1])
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    # k = 2: image 0 has neighbours 1 (class 0) and 2 (class 1): a tie, which 1 wins.
    assert knn_accuracy(features[:3], np.array([0, 0, 1]), 2) == pytest.approx(1 / 3)


def test_more_neighbours_than_images() -> None:
    assert 0 <= knn_accuracy(*blobs(4, 3, 2), neighbours=50) <= 1


def test_the_probe_never_sees_what_it_is_asked() -> None:
    """Labels at random: features that tell each image apart are learnt by heart, and are no help with held-out ones."""
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(300, 400)).astype(np.float32), rng.integers(0, 2, 300)
    assert 0.35 < probe_hits([features], targets, None, 0)[0].mean() < 0.65
    easy, labels = blobs(120, 10, spread=0.3)
    assert probe_hits([easy], labels, None, 0)[0].mean() > 0.95


def test_layers_that_are_probed_together_come_to_what_each_comes_to_alone() -> None:
    features, targets = blobs(90, 12, 3, spread=1.5)
    layers = [features[:, :4], features, features[:, 6:]]
    together = probe_hits(layers, targets, None, 0)
    assert not (together[0] == together[1]).all()
    for layer, hits in zip(layers, together, strict=True):
        np.testing.assert_array_equal(hits, probe_hits([layer], targets, None, 0)[0])


def test_images_of_one_group_stay_in_one_fold() -> None:
    """Ten copies of each image: folds that ignore the group would ask what was learnt by heart."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(30, 100)).astype(np.float32), 10, axis=0)
    targets = np.repeat(rng.integers(0, 2, 30), 10)
    groups = np.repeat([f"burst {i}" for i in range(30)], 10)
    assert probe_hits([features], targets, None, 0)[0].mean() == 1.0
    assert probe_hits([features], targets, groups, 0)[0].mean() < 0.8


def test_a_class_with_one_image_is_missed_and_the_rest_is_not() -> None:
    features, targets = blobs(60, 5, 2, spread=0.2)
    (hits,) = probe_hits([np.vstack([features, [[50.0] * 5]])], np.append(targets, 2), None, 0)
    assert not hits[-1] and hits[:-1].mean() > 0.9


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_is_what_nobody_dominates(points: list[tuple[int, int, int]]) -> None:
    front = on_front(points)
    assert any(front)
    for point, optimal in zip(points, front, strict=True):
        better = [o for o in points if o != point and all(a <= b for a, b in zip(o, point, strict=True))]
        assert optimal == (not better)


@pytest.mark.parametrize(
    ("images", "order"),
    [
        (400, ["second", "first", "last", "blank"]),  # 95 %: 3 points, so ImageNet decides between 0.90 and 0.88
        (10_000, ["first", "second", "last", "blank"]),  # 0.6 points
        (4, ["last", "second", "first", "blank"]),  # 29 points: the probes say nothing, and random weights come last
    ],
)
def test_the_best_stage_orders_and_imagenet_decides_within_its_noise(images: int, order: list[str]) -> None:
    scored = {"first": (0.90, 0.6), "second": (0.88, 0.7), "last": (0.80, 0.8), "blank": (0.79, None)}
    rows = [
        {"weights": w, "macs": 1, "stage_accuracy": a, "imagenet_accuracy": known} for w, (a, known) in scored.items()
    ]
    for given_rows in (rows, rows[::-1]):
        assert [r["weights"] for r in best_first(given_rows, images)] == order


def test_of_equals_the_cheaper_comes_first() -> None:
    rows = [{"weights": str(m), "macs": m, "stage_accuracy": 1.0, "imagenet_accuracy": 0.7} for m in (3, 1, 2)]
    assert [r["macs"] for r in best_first(rows, 10)] == [1, 2, 3]
