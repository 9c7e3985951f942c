from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgetl.errors import GraphError, InputError
from edgetl.graph.ranges import BINS, METHODS, Histogram, by_entropy, by_mse, by_percentile, ranges

values = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32))


def filled(data: np.ndarray) -> Histogram:
    out = Histogram()
    out.add(np.asarray(data, dtype=np.float32))
    return out


@settings(max_examples=60, deadline=None)
@given(values, st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_a_histogram_does_not_depend_on_how_the_values_are_batched(data: np.ndarray, sizes: list[int]) -> None:
    whole, parts, start, turn = filled(data), Histogram(), 0, 0
    while start < len(data):
        step = sizes[turn % len(sizes)]
        parts.add(data[start : start + step])
        start, turn = start + step, turn + 1
    assert np.array_equal(whole.counts, parts.counts)
    assert (whole.exponent, whole.peak, whole.signed) == (parts.exponent, parts.peak, parts.signed)


@settings(max_examples=60, deadline=None)
@given(values)
def test_no_value_is_lost_and_the_peak_is_exact(data: np.ndarray) -> None:
    found = filled(data)
    assert found.counts.sum() == data.size
    assert found.peak == float(np.abs(data).max())
    assert Histogram.from_json(found.to_json()).to_json() == found.to_json()


@settings(max_examples=40, deadline=None)
@given(values, st.sampled_from(sorted(METHODS)))
def test_every_method_stays_within_the_peak(data: np.ndarray, method: str) -> None:
    amax = ranges({"x": filled(data)}, method)["x"]
    assert 0 <= amax <= float(np.abs(data).max()) * (1 + 1e-6)


def test_percentile_is_numpys_to_a_bin() -> None:
    data = np.random.default_rng(0).normal(size=200_000).astype(np.float32)
    found = filled(data)
    assert by_percentile(found, 99.0) == pytest.approx(np.percentile(np.abs(data), 99.0), abs=2 * found.width)


def test_mse_and_entropy_cut_off_a_lone_outlier_and_max_does_not() -> None:
    data = np.append(np.random.default_rng(0).normal(size=100_000), 100.0).astype(np.float32)
    found = filled(data)
    assert METHODS["max"](found) == 100.0
    assert by_mse(found) < 80
    assert by_entropy(found) < 50
    assert by_percentile(found) < 6


def test_mse_has_the_least_error_of_all_methods_on_the_values_themselves() -> None:
    data = np.abs(np.random.default_rng(1).laplace(size=50_000)).astype(np.float32)
    found = filled(data)

    def error(amax: float) -> float:
        scale = amax / 127
        return float(np.mean((data - np.clip(np.rint(data / scale), -127, 127) * scale) ** 2))

    best = error(METHODS["mse"](found))
    assert all(best <= error(read(found)) * 1.02 for read in METHODS.values())


def test_entropy_ignores_the_zeros_of_a_relu() -> None:
    rng = np.random.default_rng(2)
    dense = np.abs(rng.normal(size=50_000)).astype(np.float32)
    sparse = np.concatenate([dense, np.zeros(500_000, dtype=np.float32)])
    assert by_entropy(filled(sparse)) == pytest.approx(by_entropy(filled(dense)), rel=0.25)


def test_zeros_before_anything_else_are_counted() -> None:
    found = Histogram()
    found.add(np.zeros(5, dtype=np.float32))
    found.add(np.ones(3, dtype=np.float32))
    assert found.counts[0] == 5
    assert found.counts.sum() == 8
    assert ranges({"dead": filled(np.zeros(4))}, "entropy") == {"dead": 0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_by_name(bad: float) -> None:
    with pytest.raises(GraphError, match="conv7"):
        Histogram().add(np.array([1.0, bad], dtype=np.float32), "conv7")


def test_a_group_shares_the_largest_range() -> None:
    found = {"a": filled(np.ones(3)), "b": filled(np.full(3, 4.0)), "c": filled(np.full(3, 9.0))}
    assert ranges(found, "max", (("a", "b"),)) == {"a": 4.0, "b": 4.0, "c": 9.0}


def test_an_unknown_method_is_refused_and_not_taken_for_max() -> None:
    with pytest.raises(InputError, match="percentil"):
        ranges({}, "percentil")


def test_widening_joins_bins_exactly() -> None:
    found = filled(np.linspace(0, 0.999, BINS, dtype=np.float32))
    before = found.counts.copy()
    found.add(np.array([3.9], dtype=np.float32))
    assert np.array_equal(found.counts[: BINS // 4], before.reshape(-1, 4).sum(axis=1))


def test_a_large_tensor_is_thinned_but_its_ends_are_known() -> None:
    values = np.random.default_rng(0).normal(size=(40, 50, 50)).astype(np.float32)
    values[17, 3, 4] = -90.0
    whole, thin = Histogram(), Histogram()
    whole.add(values)
    thin.add(values, most=20_000)
    assert (thin.low, thin.high, thin.exponent) == (whole.low, whole.high, whole.exponent)
    assert thin.counts.sum() == -(-values.size // 5) and whole.counts.sum() == values.size
    assert by_percentile(thin, 99.0) == pytest.approx(by_percentile(whole, 99.0), rel=0.03)
    few = Histogram()
    few.add(values[:3], most=20_000)
    assert few.counts.sum() == values[:3].size
