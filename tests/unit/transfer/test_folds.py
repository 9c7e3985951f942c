"""Folds: each image held out once, groups whole, classes in proportion; the interval against its formula."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from edgetl.errors import InputError
from edgetl.images import Dataset, Sample
from edgetl.transfer.folds import divisions, interval


def dataset(counts: dict[str, int], groups: dict[str, int] | None = None, given: bool = False) -> Dataset:
    """`counts` images of each class, `groups[label]` at a time in one group; 4 of 7 in train, 1 in val, 2 in test."""
    splits: dict[str, list[Sample]] = {"train": [], "val": [], "test": []}
    for target, (label, n) in enumerate(counts.items()):
        size = (groups or {}).get(label, 0)
        for i in range(n):
            group = f"{label}-{i // size}" if size else ""
            name = ("train", "train", "val", "train", "test", "train", "test")[i % 7]
            splits[name].append(Sample(f"{label}/{i}.png", target, f"{label}{i}", group))
    return Dataset(Path("root"), tuple(counts), {k: tuple(v) for k, v in splits.items()}, given)


@given(st.integers(2, 6), st.lists(st.integers(12, 40), min_size=2, max_size=4), st.integers(0, 3), st.integers(0, 99))
@settings(max_examples=40)
def test_each_image_is_held_out_once_and_groups_stay_whole(k: int, sizes: list[int], size: int, seed: int) -> None:
    if size and min(sizes) // size < k:
        size = 0
    data = dataset({chr(97 + i): n for i, n in enumerate(sizes)}, {"a": size})
    found = divisions(data, k, seed)
    held = [sample for division in found for sample in division.split("test")]
    assert sorted(s.path for s in held) == sorted(s.path for s in data.all())
    for division in found:
        assert sorted(s.path for s in division.all()) == sorted(s.path for s in data.all())
        sides = {name: {s.group for s in division.split(name) if s.group} for name in ("train", "val", "test")}
        assert not sides["train"] & sides["test"] and not sides["val"] & sides["test"]
        assert not sides["train"] & sides["val"]
        assert {s.target for s in division.split("train")} == set(range(len(sizes)))
    for target in range(len(sizes)):
        here = [Counter(s.target for s in division.split("test"))[target] for division in found]
        assert max(here) - min(here) <= max(1, size if target == 0 else 1), "as even as the groups allow"


def test_the_same_seed_deals_the_same_folds_and_names_do_not_matter() -> None:
    data = dataset({"a": 20, "b": 15})
    first, again, other = (divisions(data, 4, seed) for seed in (0, 0, 1))
    assert first == again
    assert [d.split("test") for d in first] != [d.split("test") for d in other]


def test_a_given_test_split_is_not_touched() -> None:
    data = dataset({"a": 21, "b": 21}, given=True)
    test = {s.path for s in data.split("test")}
    for division in divisions(data, 3, 0):
        assert not test & {s.path for s in division.all()}


@pytest.mark.parametrize(
    ("counts", "groups", "said"),
    [
        ({"rose": 30, "tulip": 4}, {}, "tulip has 4 .*use --folds 4"),
        ({"rose": 30, "tulip": 1}, {}, "tulip has 1 .*add images"),
        ({"rose": 30, "tulip": 30}, {"tulip": 10}, "tulip has 3 "),
        ({"rose": 2, "tulip": 2}, {}, "cannot be fitted"),
    ],
)
def test_more_folds_than_the_smallest_class_allows_are_refused(
    counts: dict[str, int], groups: dict[str, int], said: str
) -> None:
    data = dataset(counts, groups)
    if "fitted" in said:  # two folds of two images a class leave none to validate on
        data = Dataset(data.root, data.labels, {"train": tuple(data.all()[:2]), "val": tuple(data.all()[2:])})
    with pytest.raises(InputError, match=said):
        divisions(data, 2 if "fitted" in said else 5, 0)


def test_a_copy_of_an_image_is_in_the_same_fold() -> None:
    data = dataset({"a": 12, "b": 12})
    twin = Sample("a/again.png", 0, "a0")
    data = Dataset(data.root, data.labels, {**data.splits, "train": (*data.split("train"), twin)})
    for division in divisions(data, 4, 0):
        places = {name for name in ("train", "val", "test") for s in division.split(name) if s.digest == "a0"}
        assert len(places) == 1


def test_linked_images_are_in_the_same_fold_and_not_in_its_val() -> None:
    data = dataset({"a": 12, "b": 12})
    links = [("a0", "a1"), ("a1", "a5"), ("b2", "b3")]
    for division in divisions(data, 4, 0, links):
        for joined in ({"a0", "a1", "a5"}, {"b2", "b3"}):
            assert len({n for n in ("train", "val", "test") for s in division.split(n) if s.digest in joined}) == 1
    with pytest.raises(InputError, match="a has 10 "):
        divisions(data, 12, 0, links)


def test_the_interval_is_the_corrected_t_interval_or_wilsons_where_that_is_wider() -> None:
    accuracies = [0.5, 0.7, 0.6, 0.9, 0.8]
    half = reference.t.ppf(0.975, 4) * np.std(accuracies, ddof=1) * (1 / 5 + 1 / 4) ** 0.5
    assert interval(accuracies, 70_000, 100_000) == pytest.approx((0.7 - half, 0.7 + half))
    low, high = interval([1.0, 1.0, 1.0], 30, 30)
    assert (low, high) == pytest.approx((reference.binomtest(30, 30).proportion_ci(method="wilson").low, 1.0))
