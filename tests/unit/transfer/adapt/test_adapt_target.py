"""Which unlabelled images are adapted to."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetl.errors import DataError
from edgetl.images import Dataset, Sample
from edgetl.monitor import Monitor
from edgetl.transfer.adapt import target

LABELS = ("cat", "dog", "été")


class Told(Monitor):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    warn = say


def _samples(*paths: str) -> list[Sample]:
    return [Sample(path, -1, path) for path in paths]


def _kept(paths: list[str], adapt_classes: str = "same") -> tuple[list[str], str]:
    told = Told()
    kept = target.of_source_classes(Path("pool"), _samples(*paths), LABELS, adapt_classes, told)
    return [s.path for s in kept], " ".join(told.lines)


def test_a_flat_folder_is_taken_as_it_is() -> None:
    assert _kept(["a.png", "b.png"]) == (["a.png", "b.png"], "")


@pytest.mark.parametrize("top", ["", "train/"])
def test_class_folders_are_not_labels_and_that_is_said(top: str) -> None:
    paths = [top + name + "/x.png" for name in ("cat", "dog", "e\u0301te\u0301")]
    kept, said = _kept(paths)
    assert kept == paths
    assert "not used as labels" in said


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["cat/a.png", "dog/a.png"], "only in DATA: été"),
        (["cat/a.png", "dog/a.png", "été/a.png", "zebra/a.png"], "only there: zebra"),
        (["monday/a.png"], "only there: monday"),
    ],
)
def test_other_classes_are_refused_by_name(paths: list[str], named: str) -> None:
    with pytest.raises(DataError, match="--adapt-classes source") as raised:
        _kept(paths)
    assert named in str(raised.value)


def test_the_sources_classes_leave_foreign_folders_out_but_take_folders_that_are_no_classes() -> None:
    kept, said = _kept(["cat/a.png", "zebra/a.png", "zebra/b.png", "c.png"], "source")
    assert kept == ["cat/a.png", "c.png"]
    assert "2 unlabelled images of other classes are left out: zebra" in said
    assert "no unlabelled images of 2 classes: dog, été" in said
    assert _kept(["monday/a.png", "tuesday/b.png"], "source")[0] == ["monday/a.png", "tuesday/b.png"]


def test_what_data_holds_too_is_told_and_held_out_images_are_left_out() -> None:
    samples = _samples(*(f"{i}.png" for i in range(12)))
    data = Dataset(
        Path(), LABELS, {"train": tuple(samples[:2]), "val": tuple(samples[2:3]), "test": tuple(samples[3:4])}
    )
    told = Told()
    assert target.apart_from(samples, data, told) == samples[:2] + samples[4:]
    assert "4 of 12 unlabelled images are also in DATA (2 in train, 1 in val, 1 in test)" in told.lines[0]
    with pytest.raises(DataError, match="too few"):
        target.apart_from(samples[:9], data)
