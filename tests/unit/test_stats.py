"""Every interval and test against scipy, an exact count, or a closed form worked out elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from edgetl.stats import (
    at_least,
    bootstrap_mean,
    images_needed,
    mcnemar,
    paired_difference,
    percentiles,
    student,
    wilson,
)

counts = st.integers(0, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_is_scipys(case: tuple[int, int]) -> None:
    successes, n = case
    lo, hi = wilson(successes, n)
    assert 0 <= lo <= hi <= 1
    if n:
        want = reference.binomtest(successes, n).proportion_ci(method="wilson")
        assert (lo, hi) == pytest.approx((want.low, want.high), abs=1e-12)
        assert lo <= successes / n <= hi


@given(counts, st.floats(0.01, 0.99))
def test_at_least_is_scipys_binomial_tail(case: tuple[int, int], share: float) -> None:
    successes, n = case
    assert at_least(successes, n, share) == pytest.approx(reference.binom.sf(successes - 1, n, share), abs=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 30, 101])
def test_student_is_scipys_t(freedom: int) -> None:
    assert student(freedom) == pytest.approx(reference.t.ppf(0.975, freedom), rel=1e-9)


def test_wilson_without_observations_knows_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("case", [(-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(case: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(*case)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(b: int, c: int) -> None:
    want = reference.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(want, rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_of_many_pairs_neither_overflows_nor_rounds_to_zero_early() -> None:
    assert 0 < mcnemar(4000, 5000) < 1e-20
    with pytest.raises(ValueError, match="counts"):
        mcnemar(-1, 4)


@given(st.lists(st.floats(-1e6, 1e6), max_size=1200))
def test_percentiles_are_numpys_where_ten_observations_lie_beyond(values: list[float]) -> None:
    found = percentiles(values)
    assert found["n"] == len(values)
    for p in (50, 90, 95, 99):
        if found[f"p{p}"] is None:
            assert len(values) * (100 - p) < 1000
        else:
            assert found[f"p{p}"] == pytest.approx(np.percentile(values, p))
            assert sum(v >= found[f"p{p}"] for v in values) >= 10


@pytest.mark.parametrize(("p", "needed"), [("p50", 20), ("p90", 100), ("p95", 200), ("p99", 1000)])
def test_a_percentile_appears_with_its_tenth_observation_beyond(p: str, needed: int) -> None:
    assert percentiles(range(needed - 1))[p] is None
    assert percentiles(range(needed))[p] is not None


def test_percentiles_of_nothing() -> None:
    assert percentiles([]) == {"p50": None, "p90": None, "p95": None, "p99": None, "mean": None, "n": 0}


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 2000))
def test_paired_difference_holds_its_estimate_and_mirrors(lost: int, won: int, more: int) -> None:
    n = lost + won + more
    lo, hi = paired_difference(lost, won, n)
    assert -1 <= lo < hi <= 1
    assert lo <= (lost - won) / n <= hi
    assert paired_difference(won, lost, n) == pytest.approx((-hi, -lo))


def test_paired_difference_of_no_discordant_pair_is_not_certainty() -> None:
    lo, hi = paired_difference(0, 0, 100)
    assert lo < -0.01
    assert hi > 0.01


def test_paired_difference_refuses_more_discordant_pairs_than_pairs() -> None:
    with pytest.raises(ValueError, match="lost"):
        paired_difference(3, 3, 5)


@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.04, 0.01), (0.0, 0.02)])
@pytest.mark.parametrize("n", [60, 300])
def test_paired_difference_covers_the_truth_as_often_as_it_says(rates: tuple[float, float], n: int) -> None:
    draws = np.random.default_rng(1).multinomial(n, [*rates, 1 - sum(rates)], size=3000)
    truth = rates[0] - rates[1]
    covered = [lo <= truth <= hi for lo, hi in (paired_difference(int(a), int(b), n) for a, b, _ in draws)]
    assert np.mean(covered) > 0.93


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=60), st.integers(0, 5))
def test_bootstrap_is_seeded_and_stays_within_the_values(values: list[float], seed: int) -> None:
    lo, hi = bootstrap_mean(values, seed, resamples=200)
    assert (lo, hi) == bootstrap_mean(values, seed, resamples=200)
    assert min(values) - 1e-9 <= lo <= hi <= max(values) + 1e-9


def test_bootstrap_agrees_with_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=4000)
    half = 1.96 * values.std() / np.sqrt(values.size)
    lo, hi = bootstrap_mean(values, seed=1)
    assert (lo, hi) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    with pytest.raises(ValueError, match="one value"):
        bootstrap_mean([])


def test_images_needed_is_the_figure_of_the_literature() -> None:
    assert images_needed(0.5, 0.02) == 3074  # "a 0.5-point drop at 2 % flips wants about 3,000 images"
    assert images_needed(0.0, 0.02) is None
    assert images_needed(-1.0, 0.02) is None
    with pytest.raises(ValueError, match="share"):
        images_needed(0.5, 2.0)


@given(st.floats(0.1, 5), st.floats(0.001, 0.3))
def test_that_many_images_give_that_margin(margin_pp: float, rate: float) -> None:
    n = images_needed(margin_pp, rate)
    assert n is not None
    half = 1.959964 * np.sqrt(rate / n) * 100
    assert half <= margin_pp * 1.0001
    assert n == 1 or 1.959964 * np.sqrt(rate / (n - 1)) * 100 > margin_pp * 0.9999
