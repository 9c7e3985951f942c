"""Which images are calibrated on, searched with and judged on: never the same content twice, in any form of DATA."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl.bundle import Bundle, NewArtifact, create, locked
from edgetl.errors import DataError, InputError
from edgetl.graph import ExportOptions
from edgetl.graph.sets import SEARCH_IMAGES, ImageSets, image_sets
from edgetl.images import Dataset, Sample, with_calibration

LABELS = ("ash", "birch", "cedar", "elm")
Split = list[tuple[int, str]]  # (class index, content) of each image


def recorded(folder: Path, splits: dict[str, Split], labels: tuple[str, ...] = LABELS, drawn: int = 512) -> Bundle:
    """A bundle that remembers these splits and nothing else; its images need not lie anywhere."""
    samples = {
        name: tuple(Sample(f"{name}/{labels[t]}/{i}.png", t, content) for i, (t, content) in enumerate(found))
        for name, found in splits.items()
    }
    data = with_calibration(Dataset(folder, labels, samples), drawn, 0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits").write_text(json.dumps(data.to_json()))
    preprocess = {"size": 8, "resize": 8, "fit": "crop", "mean": [0, 0, 0], "std": [1, 1, 1]}
    manifest = {
        "task": "classification",
        "made_by": "finetune",
        "labels": list(labels),
        "preprocess": {**preprocess, "interpolation": "bilinear"},
        "splits": {name: {"n": len(found), "digest": "0" * 64} for name, found in splits.items()},
        "model": {},
        "training": {},
        "tolerances": {},
    }
    new = [NewArtifact(folder / "splits", "splits-{sha12}.json", {"kind": "splits", "made_by": "finetune"})]
    with locked(folder / "bundle"):
        create(folder / "bundle", manifest, new, {"data": str(folder)})
    return Bundle.open(folder / "bundle")


def images(name: str, each: int, classes: int = 4) -> Split:
    return [(t, f"{name}-{t}-{i}") for t in range(classes) for i in range(each)]


def on_disk(folder: Path, split: Split) -> Path:
    """DATA with these contents. It is hashed and never decoded, so any bytes will do."""
    for i, (target, content) in enumerate(split):
        (folder / LABELS[target]).mkdir(parents=True, exist_ok=True)
        (folder / LABELS[target] / f"{i:04}.png").write_bytes(content.encode())
    return folder


def by_content(folder: Path, split: Split) -> Split:
    """The same as recorded() needs it: content known by its sha256."""
    from edgetl.bundle import sha256_bytes

    return [(target, sha256_bytes(content.encode())) for target, content in split]


def apart(sets: ImageSets) -> dict[str, list[str]]:
    """The digests of each set, after checking that no two sets share one and the drawn ones hold none twice."""
    named = {"calibration": sets.calibration, "search": sets.search, "guard": sets.guard, "test": sets.test}
    found = {name: [s.digest for s in one.samples] for name, one in named.items() if one is not None}
    for (one, left), (other, right) in itertools.combinations(found.items(), 2):
        assert not set(left) & set(right), (one, other)
    if sets.training is not None:  # it may hold what is calibrated on, and nothing that is chosen or judged by
        trained = {s.digest for s in sets.training.samples}
        assert trained and not trained & {d for name in ("search", "guard", "test") for d in found.get(name, ())}
    for name in ("calibration", "search"):
        assert len(found[name]) == len(set(found[name])) > 0, name
    return found


def balance(samples: object) -> set[int]:
    return set(Counter(s.target for s in samples).values())  # type: ignore[attr-defined]


INT8 = ExportOptions(int8=True)


@pytest.mark.parametrize("rescue", ["exclude", "qat"])
def test_from_the_bundle_alone(tmp_path: Path, rescue: str) -> None:
    splits = {"train": images("t", 300), "val": images("v", 20), "test": images("x", 20)}
    sets = image_sets(recorded(tmp_path, splits), ExportOptions(int8=True, rescue=rescue))
    assert (sets.training is not None) == (rescue == "qat")
    found = apart(sets)
    assert {name: len(s) for name, s in found.items()} == {
        "calibration": 512,
        "search": SEARCH_IMAGES,
        "guard": 80,
        "test": 80,
    }
    assert SEARCH_IMAGES == 256
    assert sets.calibration is not None and sets.search is not None
    assert balance(sets.calibration.samples) == {128} and balance(sets.search.samples) == {64}
    assert all(d.startswith("t-") for d in found["calibration"] + found["search"])
    assert sets.remarks == ()


def test_copies_within_train_are_drawn_once(tmp_path: Path) -> None:
    splits = {"train": images("t", 30) * 3, "val": images("v", 5)}
    found = apart(image_sets(recorded(tmp_path, splits), ExportOptions(int8=True, calib_size="64")))
    assert (len(found["calibration"]), len(found["search"])) == (64, 56)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_small_train_split_is_shared_out_in_balance(tmp_path: Path, classes: int) -> None:
    """All of train is drawn for calibration: the search gets a quarter of it, and no class is left with neither."""
    splits = {"train": images("t", 12, classes), "val": images("v", 5, classes)}
    sets = image_sets(recorded(tmp_path, splits, LABELS[:classes]), INT8)
    apart(sets)
    assert sets.calibration is not None and sets.search is not None
    assert balance(sets.calibration.samples) == {9} and balance(sets.search.samples) == {3}
    assert sets.remarks == ()


def test_the_remark_is_on_what_is_calibrated_on_in_the_end(tmp_path: Path) -> None:
    splits = {"train": [(0, "a"), (0, "b"), (1, "c"), (2, "d")], "val": images("v", 5)}
    sets = image_sets(recorded(tmp_path, splits), INT8)  # the quarter that goes to the search is class 0's second
    assert sets.remarks == ("the calibration set has no image of 1 of 4 classes: elm",)
    assert sets.search is not None and [s.target for s in sets.search.samples] == [0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_to_share_out(tmp_path: Path, n: int) -> None:
    bundle = recorded(tmp_path, {"train": images("t", 1, n), "val": images("v", 2)})
    with pytest.raises(DataError, match=rf"too few images to calibrate on: {n}; .*--calib"):
        image_sets(bundle, INT8)
    assert image_sets(bundle, ExportOptions(fp16=True)).calibration is not None


def test_more_than_the_bundle_drew_are_drawn_from_train(tmp_path: Path) -> None:
    splits = {"train": images("t", 100), "val": images("v", 5)}
    bundle = recorded(tmp_path, splits, drawn=40)
    small, large = (image_sets(bundle, ExportOptions(int8=True, calib_size=n)) for n in ("40", "120"))
    assert small.calibration is not None and large.calibration is not None
    assert len(apart(large)["calibration"]) == 120
    assert list(large.calibration.samples[:40]) == list(small.calibration.samples)
    assert balance(large.calibration.samples) == {30}


def test_calibration_data_that_holds_the_judges_images_gives_way_to_nobody_twice(tmp_path: Path) -> None:
    """--calib DATA with val and test images among it: what is calibrated on is not judged on, what is judged on
    is not searched with."""
    val, test = images("v", 40), images("x", 10)
    splits = {"train": images("t", 10), "val": by_content(tmp_path, val), "test": by_content(tmp_path, test)}
    data = on_disk(tmp_path / "calib", [*images("new", 40), *val, *test, *val])
    found = apart(image_sets(recorded(tmp_path, splits), ExportOptions(int8=True, calib=str(data), calib_size="100")))
    assert len(found["calibration"]) == 100
    assert 0 < len(found["guard"]) < 160  # some were drawn for calibration


def test_guard_data_that_holds_training_images(tmp_path: Path) -> None:
    train = images("t", 60)
    splits = {"train": by_content(tmp_path, train), "val": images("v", 5)}
    data = on_disk(tmp_path / "guard", [*images("new", 5), *train])
    options = ExportOptions(int8=True, guard_data=str(data), calib_size="64")
    found = apart(image_sets(recorded(tmp_path, splits), options))
    assert (len(found["calibration"]), len(found["guard"])) == (48, 260 - 64)  # a quarter went to the search
    assert len(found["search"]) == 16


@pytest.mark.parametrize("flat", [False, True])
def test_a_guard_on_nothing_but_the_calibration_images_is_refused(tmp_path: Path, flat: bool) -> None:
    train = images("t", 8)
    bundle = recorded(tmp_path, {"train": by_content(tmp_path, train), "val": images("v", 5)})
    data = on_disk(tmp_path / "guard", train)
    if flat:
        data = tmp_path / "flat"
        data.mkdir()
        for i, path in enumerate(sorted((tmp_path / "guard").rglob("*.png"))):
            path.rename(data / f"{i}.png")
    options = ExportOptions(int8=True, guard="agreement", guard_data=str(data))
    with pytest.raises(InputError, match="those of the calibration set"):
        image_sets(bundle, options)


@settings(max_examples=25)
@given(
    train=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=60),
    val=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=20),
    test=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=20),
    size=st.integers(1, 60),
)
def test_whatever_the_splits_no_content_has_two_uses(
    tmp_path_factory: pytest.TempPathFactory, train: Split, val: Split, test: Split, size: int
) -> None:
    """Contents overlap at random, as in a split layout that somebody made by hand."""
    given_ = {"train": train, "val": val, "test": test}
    splits = {name: [(t, f"c{content}") for t, content in found] for name, found in given_.items() if found}
    bundle = recorded(tmp_path_factory.mktemp("sets"), splits)  # type: ignore[arg-type]  # contents are text now
    try:
        sets = image_sets(bundle, ExportOptions(int8=True, calib_size=str(size), rescue="qat"))
    except (DataError, InputError):
        return  # too few, or the judge has nothing of its own: said, not worked around
    apart(sets)
    assert sets.guard is not None and sets.guard.samples
