"""Distances between two sets of features: against their definitions written out, on small arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.transfer.adapt import discrepancy
from edgetl.transfer.distance import Separation, a_distance, coral, discrepancy_of, mmd2, separation_of
from edgetl.transfer.verdict import ALPHA, SURE, TRIVIAL, far_from, verdict


def normal(seed: int, n: int, width: int, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, scale, (n, width)).astype(np.float32)


def mmd2_by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton et al. 2012, eq. 3, pair by pair; the kernel as distance.KERNEL says it."""
    both = np.concatenate([x, y]).astype(float)
    mean = np.mean([np.sum((a - b) ** 2) for a, b in itertools.permutations(both, 2)])

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([np.exp(-np.sum((a - b) ** 2) / (s * mean)) for s in (0.25, 0.5, 1, 2, 4)]))

    rows_x, rows_y = x.astype(float), y.astype(float)
    within = [np.mean([k(a, b) for a, b in itertools.permutations(rows, 2)]) for rows in (rows_x, rows_y)]
    return float(sum(within) - 2 * np.mean([k(a, b) for a in rows_x for b in rows_y]))


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 5), st.floats(0, 3), st.integers(0, 99))
def test_mmd2_is_its_definition(m: int, n: int, width: int, shift: float, seed: int) -> None:
    x, y = normal(seed, m, width), normal(seed + 1000, n, width, shift)
    assert mmd2(x, y) == pytest.approx(mmd2_by_pairs(x, y), abs=1e-9)


def test_the_training_loss_measures_the_same() -> None:
    x, y = normal(0, 30, 7), normal(1, 20, 7, 0.5)
    loss = discrepancy.mk_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double())
    assert mmd2(x, y) == pytest.approx(float(loss), abs=1e-12)


def test_two_samples_of_one_distribution_are_told_apart_no_more_often_than_alpha_says() -> None:
    p_values = [discrepancy_of(normal(2 * s, 30, 5), normal(2 * s + 1, 20, 5), s, 99).p_value for s in range(100)]
    assert 0.01 <= np.mean(np.array(p_values) <= 0.1) <= 0.2
    assert 0.4 <= np.mean(p_values) <= 0.6


def test_a_shift_is_found_and_grows() -> None:
    source = normal(0, 80, 10)
    found = [discrepancy_of(source, normal(1, 60, 10, shift), 0, 199) for shift in (0.5, 1.0, 2.0)]
    assert [f.p_value for f in found] == [1 / 200] * 3
    assert found[0].mmd2 < found[1].mmd2 < found[2].mmd2
    assert all(0 < f.halves_p95 < f.mmd2 for f in found)


def test_permutations_are_the_same_for_the_same_seed() -> None:
    x, y = normal(0, 20, 3), normal(1, 20, 3, 0.2)
    assert discrepancy_of(x, y, 3, 99) == discrepancy_of(x, y, 3, 99)
    assert discrepancy_of(x, y, 3, 99).p_value != discrepancy_of(x, y, 4, 99).p_value


def test_the_fewest_rows_there_can_be() -> None:
    with np.errstate(all="raise"):
        found = discrepancy_of(normal(0, 2, 3), normal(1, 8, 3, 5.0), 0, 199)
    assert found.p_value > ALPHA, "two rows can be drawn in 45 ways: no evidence"
    assert np.isnan(found.halves_p95)
    assert discrepancy_of(normal(0, 4, 3), normal(1, 8, 3), 0, 19).halves_p95 > -2


def test_equal_sets_are_no_distance_apart() -> None:
    x = normal(0, 60, 8)
    found = discrepancy_of(x, x, 0, 199)
    assert found.mmd2 <= 0 and found.p_value > 0.9
    assert a_distance(x, x, 0) < 0.3
    assert coral(x, x) == 0


def test_a_distance_saturates_where_mmd2_does_not() -> None:
    source = normal(0, 100, 10)
    near, far = normal(1, 100, 10, 4.0), normal(1, 100, 10, 40.0)
    assert a_distance(source, near, 0) == a_distance(source, far, 0) == 2.0
    assert mmd2(source, near) < mmd2(source, far)


@settings(max_examples=15)
@given(st.integers(8, 40), st.integers(8, 40), st.floats(0, 2), st.integers(0, 50))
def test_a_distance_stays_between_0_and_2(m: int, n: int, shift: float, seed: int) -> None:
    assert 0 <= a_distance(normal(seed, m, 6), normal(seed + 1, n, 6, shift), seed) <= 2


def test_a_distance_counts_both_domains_alike() -> None:
    """One that always says "source" errs on half, however few target images there are."""
    source, target = normal(0, 400, 3), normal(1, 10, 3)
    assert a_distance(source, target, 0) < 1.0


def test_a_classifier_does_not_tell_one_distribution_apart_more_often_than_its_p_says() -> None:
    sides = ((normal(2 * seed, 24, 5), normal(2 * seed + 1, 15, 5)) for seed in range(150))
    p_values = np.array([separation_of(*pair, seed).p_value for seed, pair in enumerate(sides)])
    assert np.mean(p_values <= 0.1) <= 0.1 + 3 * (0.09 / 150) ** 0.5
    assert np.mean(p_values <= 0.3) <= 0.3 + 3 * (0.21 / 150) ** 0.5
    assert p_values.min() < 0.5, "it can be small"


def test_fishers_p_is_a_count_of_arrangements() -> None:
    """Four of each, all told apart: one arrangement of 70 in each half."""
    rows = np.concatenate([normal(0, 8, 2), normal(1, 8, 2, 50.0)])
    assert separation_of(rows[:8], rows[8:], 0) == Separation(2.0, pytest.approx(2 / 70))


def test_a_shift_within_classes_that_lie_far_apart_is_no_one_domain() -> None:
    """The kernels are as wide as the classes are apart: MMD alone lets the shift within them pass for chance."""
    centres = 40 * np.eye(3, 12)
    source = np.concatenate([normal(i, 24, 12) + centre for i, centre in enumerate(centres)])
    target = np.concatenate([normal(9 + i, 14, 12, 0.8) + centre for i, centre in enumerate(centres)])
    found, apart = discrepancy_of(source, target, 0), separation_of(source, target, 0)
    assert found.p_value > ALPHA and apart.p_value < SURE
    assert verdict(max(found.mmd2, 0.01), found.p_value, 0.15, apart.p_value)[0] == "shifted"


def test_coral_is_its_definition() -> None:
    x, y = normal(0, 30, 4), normal(1, 50, 4, scale=2.0)
    difference = np.cov(x.astype(float), rowvar=False) - np.cov(y.astype(float), rowvar=False)
    assert coral(x, y) == pytest.approx(np.sum(difference**2) / (4 * 4**2), rel=1e-9)


@pytest.mark.parametrize(
    ("mmd2_value", "p_value", "expected"),
    [
        (0.3, 0.5, "same"),
        (0.0, ALPHA + 1e-6, "same"),
        (TRIVIAL - 1e-6, 0.001, "same"),
        (TRIVIAL, 0.001, "shifted"),
        (0.149, 0.001, "shifted"),
        (0.15, 0.001, "far"),
        (0.5, 0.001, "far"),
    ],
)
def test_verdicts(mmd2_value: float, p_value: float, expected: str) -> None:
    word, why = verdict(mmd2_value, p_value, far_from("mobilenet_v2"))
    assert word == expected and why


@pytest.mark.parametrize(("mmd2_value", "expected"), [(0.001, "same"), (0.016, "shifted"), (0.2, "far")])
def test_what_a_classifier_tells_apart_is_not_the_same_by_chance(mmd2_value: float, expected: str) -> None:
    word, why = verdict(mmd2_value, 0.12, far_from("mobilenet_v2"), 1e-6)
    assert word == expected
    assert ("classifier" in why) is (expected == "shifted")
    assert verdict(mmd2_value, 0.12, far_from("mobilenet_v2"), 2 * SURE)[0] == "same"


def test_same_is_not_said_as_if_known_where_a_real_difference_may_hide() -> None:
    few, many = (verdict(mmd2, 0.03, far_from("mobilenet_v2"))[1] for mmd2 in (0.02, 0.0001))
    assert "more would tell" in few and "more would tell" not in many


def test_the_embedded_backbone_has_a_limit_of_its_own() -> None:
    assert far_from("smallnet") < far_from("resnet18")
