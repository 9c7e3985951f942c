"""The learning curve: nested draws, intervals that hold, the power law found again, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl.errors import InputError
from edgetl.images import Dataset, Sample, draw_balanced
from edgetl.transfer.budget import Point, answer, check, last_gain, mean_interval, power_law
from edgetl.transfer.options import FinetuneOptions, budgets_of


def point(labels: int, accuracy: float, draws: int = 3, n: int = 400, seed: int = 0) -> Point:
    """Nested as budgets are: an image that is right with few labels is right with more."""
    places = np.random.default_rng(seed).random((draws, n))
    return Point(labels, (places < accuracy).astype(float))


def exact(labels: int, accuracy: float, n: int = 10_000) -> Point:
    return Point(labels, np.tile(np.arange(n) < round(accuracy * n), (2, 1)).astype(float))


def test_a_smaller_budget_is_part_of_a_larger_one_and_has_as_many_of_each_class() -> None:
    samples = [Sample(f"{c}/{i}", c, f"{c}-{i}") for c in range(3) for i in range(10 + 5 * c)]
    small, large = (draw_balanced(samples, labels * 3, seed=4) for labels in (2, 10))
    assert large[: len(small)] == small
    assert np.bincount([s.target for s in large]).tolist() == [10, 10, 10]


def test_a_budget_above_what_there_is_is_refused_with_the_class() -> None:
    samples = tuple(Sample(f"{c}/{i}", c, f"{c}-{i % 7}") for c in range(2) for i in range(9))
    data = Dataset(Path("root"), ("rose", "tulip"), {"train": samples, "val": samples[:1]})
    check(data, (5, 7))
    with pytest.raises(InputError, match=r"8 labels a class, and rose has 7 different .*ask for 7 at most"):
        check(data, (5, 8))


def test_budgets_are_whole_numbers_ascending() -> None:
    assert budgets_of("25, 5,10,5") == (5, 10, 25)
    assert budgets_of("") == ()
    for text in ("5,,10", "five", "-5", "2.5", ","):
        with pytest.raises(InputError, match="--label-budget"):
            budgets_of(text)
    with pytest.raises(InputError, match="--label-budget must be at least 1"):
        FinetuneOptions(label_budget=(0, 5))


def test_the_interval_holds_the_true_accuracy_about_as_often_as_it_says() -> None:
    """400 curves: each draw of labels shifts the accuracy (sd .04), each val set is another 200 images."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        hard = rng.random(200)
        drawn = 0.7 + 0.04 * rng.normal(size=(5, 1))
        low, high = mean_interval((hard < drawn).astype(float))
        inside += low <= 0.7 <= high
    assert 0.93 <= inside / 400 <= 1.0


def test_an_interval_of_nothing_but_right_answers_has_a_width() -> None:
    low, high = mean_interval(np.ones((3, 20)))
    assert 0.8 < low < 0.9
    assert high == 1.0


def test_a_power_law_is_found_again_and_drawn_on_to_twice_the_labels() -> None:
    law = power_law([exact(b, 1 - 0.8 * b**-0.5) for b in (4, 16, 64)])
    assert law is not None
    assert (law["a"], law["b"]) == pytest.approx((0.8, 0.5), rel=1e-3)
    assert (law["labels"], law["accuracy"]) == (128, pytest.approx(1 - 0.8 * 128**-0.5, abs=1e-4))
    assert power_law([exact(5, 0.5), exact(10, 0.6)]) is None, "two points always fit"
    assert power_law([exact(5, 0.8), exact(10, 0.7), exact(20, 0.6)]) is None, "it falls"
    assert power_law([exact(5, 0.8), exact(10, 0.9), exact(20, 1.0)]) is None, "no error has no logarithm"


def test_the_gain_is_paired_over_the_same_images_and_draws() -> None:
    gain = last_gain(point(10, 0.60), point(20, 0.65))
    assert gain["points"] == pytest.approx(100 * (point(20, 0.65).accuracy - point(10, 0.60).accuracy))
    low, high = gain["points_ci"]
    assert low < gain["points"] < high
    apart = last_gain(point(10, 0.60), point(20, 0.65, seed=1))
    assert apart["points_ci"][1] - apart["points_ci"][0] > 1.5 * (high - low), "unpaired answers say less"
    none = last_gain(exact(10, 0.9, n=50), exact(20, 0.9, n=50))
    assert none["points"] == 0.0 and none["points_ci"][0] < -2 and none["points_ci"][1] > 2


@pytest.mark.parametrize(
    ("points", "verdict"),
    [
        ([exact(10, 0.5), exact(20, 0.6), exact(40, 0.7)], "more"),
        ([exact(10, 0.900), exact(20, 0.901), exact(40, 0.902)], "enough"),
        ([point(10, 0.70, n=40), point(20, 0.71, n=40)], "unclear"),
        ([exact(10, 0.7)], "unclear"),
    ],
)
def test_the_question_is_answered(points: list[Point], verdict: str) -> None:
    found = answer(points, "lp-ft")
    assert found["verdict"] == verdict
    assert f"{points[-1].labels} labels a class: lp-ft is right on {points[-1].accuracy:.1%}" in found["answer"]
    assert (found["last_gain"] is None) == (len(points) == 1)
