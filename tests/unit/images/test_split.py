"""Splits and draws as properties: no image lost or twice, shares kept, nothing depends on names or order."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.bundle import sha256_bytes
from edgetl.errors import DataError
from edgetl.images import Dataset, Sample, draw_balanced, split_digest, with_calibration
from edgetl.images.split import drop_train_copies, stratified, units


def sample(number: int, target: int, group: str = "", content: int | None = None) -> Sample:
    return Sample(
        f"{target}/{number}.jpg", target, sha256_bytes(b"%d" % (number if content is None else content)), group
    )


def alone(sizes: list[int]) -> list[Sample]:
    """Different images without groups, sizes[c] of class c."""
    numbers = iter(range(10_000))
    return [sample(next(numbers), c) for c, n in enumerate(sizes) for _ in range(n)]


@st.composite
def crowds(draw: st.DrawFn) -> list[Sample]:
    """Any samples: copies, groups, classes of any size."""
    n = draw(st.integers(1, 60))
    return [
        sample(
            i,
            draw(st.integers(0, 3)),
            draw(st.sampled_from(["", "", "", "g1", "g2", "g3"])),
            draw(st.one_of(st.none(), st.integers(0, 20))),
        )
        for i in range(n)
    ]


FRACTIONS = st.fixed_dictionaries({"val": st.floats(0, 0.45), "test": st.floats(0, 0.45)})


@given(samples=crowds(), fractions=FRACTIONS, seed=st.integers(0, 9))
def test_every_image_is_in_exactly_one_split_with_its_copies_and_group(samples, fractions, seed):
    splits = stratified(samples, fractions, seed)
    assert Counter(s for found in splits.values() for s in found) == Counter(samples)
    for key in ("digest", "group"):
        where: dict[str, set[str]] = {}
        for name, found in splits.items():
            for s in found:
                where.setdefault(getattr(s, key), set()).add(name)
        where.pop("", None)
        assert all(len(names) == 1 for names in where.values())
    assert splits["train"]


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5), fractions=FRACTIONS, seed=st.integers(0, 9))
def test_shares_hold_within_one_image_in_every_class(sizes, fractions, seed):
    splits = stratified(alone(sizes), fractions, seed)
    for target, total in enumerate(sizes):
        counts = {name: sum(s.target == target for s in splits.get(name, ())) for name in ("train", "val", "test")}
        assert counts["train"] >= 1
        left = total
        for name, fraction in fractions.items():
            if fraction == 0:
                assert counts[name] == 0
            elif left > 1:  # one is always kept for train, so the last split of a tiny class may go short
                assert counts[name] >= 1
                assert abs(counts[name] - total * fraction) <= 1 or counts["train"] == 1
            left -= counts[name]


@given(samples=crowds(), seed=st.integers(0, 5), shuffle=st.integers(0, 99))
def test_neither_listing_order_nor_file_names_matter(samples, seed, shuffle):
    mixed = list(samples)
    random.Random(shuffle).shuffle(mixed)
    renamed = [Sample(f"other/{i}.png", s.target, s.digest, s.group) for i, s in enumerate(mixed)]
    fractions = {"val": 0.2, "test": 0.2}
    first, second, third = (stratified(x, fractions, seed) for x in (samples, mixed, renamed))
    assert first == second
    assert {k: split_digest(v) for k, v in first.items()} == {k: split_digest(v) for k, v in third.items()}


def test_seeds_differ_and_new_images_move_few_old_ones():
    samples = alone([100, 100])
    fractions = {"val": 0.2, "test": 0.2}
    first = stratified(samples, fractions, 0)
    assert set(first["val"]) != set(stratified(samples, fractions, 1)["val"])
    more = stratified(samples + [sample(5000 + i, i % 2) for i in range(10)], fractions, 0)
    assert len(set(first["val"]) & set(more["val"])) >= 34


def test_a_big_group_does_not_swallow_the_class():
    big = [sample(i, 0, "session") for i in range(90)]
    rest = [sample(100 + i, 0) for i in range(10)]
    for seed in range(20):
        splits = stratified(big + rest, {"val": 0.1}, seed)
        assert len(splits["val"]) == 10
        assert {s.group for s in splits["val"]} == {""}


def test_a_unit_of_many_classes_counts_as_its_most_frequent():
    mixed = [sample(100, 0, "g"), sample(101, 1, "g"), sample(102, 1, "g")]
    for seed in range(20):  # it is all that class 1 has, so it stays in train
        splits = stratified(mixed + alone([4]), {"val": 0.5}, seed)
        assert set(mixed) <= set(splits["train"])
        assert len(splits["val"]) == 2


def test_units_join_copies_and_groups_transitively():
    chain = [sample(0, 0, "g"), sample(1, 0, "g", content=7), sample(2, 0, "h", content=7), sample(3, 0, "h")]
    assert [len(u) for u in units([*chain, sample(9, 0)])] == [4, 1]


@given(train=crowds(), held=crowds())
def test_only_train_loses_its_copies(train, held):
    splits, dropped = drop_train_copies({"train": train, "test": held})
    assert not {s.digest for s in splits["train"]} & {s.digest for s in held}
    assert Counter(splits["test"]) == Counter(held)
    assert len(splits["train"]) + dropped == len(train)


# --- draws


@given(samples=crowds(), small=st.integers(0, 30), more=st.integers(0, 30), seed=st.integers(0, 9))
def test_draws_are_prefixes_balanced_and_without_copies(samples, small, more, seed):
    drawn = draw_balanced(samples, small + more, seed)
    assert draw_balanced(samples, small, seed) == drawn[:small]
    assert len({s.digest for s in drawn}) == len(drawn)
    assert len(drawn) == min(small + more, len({s.digest for s in samples}))
    everything = Counter(s.target for s in draw_balanced(samples, 10_000, seed))
    counts = Counter(s.target for s in drawn)
    top = max(counts.values(), default=0)
    for target, there in everything.items():  # a class is behind only where it has no more
        assert counts[target] >= min(there, top - 1)
    mixed = list(samples)
    random.Random(seed).shuffle(mixed)
    assert draw_balanced(mixed, small, seed) == drawn[:small]


def dataset(tmp_path, **splits: list[Sample]) -> Dataset:
    return Dataset(tmp_path, ("a", "b"), {name: tuple(found) for name, found in splits.items()})


def test_calibration_comes_from_train_alone(tmp_path):
    everything = alone([30, 30])
    data = dataset(tmp_path, train=everything[:50], val=everything[50:])
    drawn = with_calibration(data, 12, seed=3)
    assert set(drawn.split("calibration")) <= set(drawn.split("train"))
    assert drawn.counts("calibration") == {"a": 6, "b": 6}
    assert drawn.splits["train"] == data.splits["train"]
    with pytest.raises(DataError, match="no training images to calibrate on"):
        with_calibration(dataset(tmp_path, val=everything), 12, seed=3)


@settings(max_examples=50)
@given(samples=crowds())
def test_a_dataset_comes_back_from_json(samples, tmp_path_factory):
    root = tmp_path_factory.getbasetemp()
    data = Dataset(root, ("a", "b", "c", "d"), {"train": tuple(samples), "calibration": tuple(samples[:2])})
    again = Dataset.from_json(data.to_json(), root, data.labels)
    assert again.splits == data.splits
    assert again.labels == data.labels
