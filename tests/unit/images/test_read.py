"""DATA in all its forms, and every way in which it can be wrong."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgetl.errors import DataError
from edgetl.images import Dataset, ReadOptions, Sample, read_data
from edgetl.monitor import Monitor

PLAIN = ReadOptions(val_fraction=0.25, test_fraction=0.25)


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Files by path; the images here are never decoded, so any bytes do."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def folder(root: Path, *classes: str, n: int = 8, tag: str = "") -> Path:
    return write(root, {f"{label}/{i:02}.jpg": f"{tag}{label}{i}" for label in classes for i in range(n)})


def paths(data: Dataset, split: str) -> set[str]:
    return {sample.path for sample in data.split(split)}


def test_class_folders_in_any_script_in_code_point_order(tmp_path):
    labels = ["Zebra", "apfel", "étoile", "وردة", "雛菊", "🌼"]
    on_disk = [unicodedata.normalize("NFD", "étoile") if label == "étoile" else label for label in reversed(labels)]
    data = read_data(str(folder(tmp_path / "photos", *on_disk)), PLAIN)
    assert data.labels == tuple(labels) == tuple(sorted(labels))
    assert all(unicodedata.is_normalized("NFC", label) for label in data.labels)
    for sample in data.all():  # the path is the one on disk, so that the file is found
        assert (data.root / sample.path).is_file()
        assert unicodedata.normalize("NFC", sample.path.split("/")[0]) == data.labels[sample.target]
    assert {name: len(data.split(name)) for name in data.splits} == {"train": 24, "val": 12, "test": 12}
    assert data.counts("val") == dict.fromkeys(labels, 2)
    assert not data.given


def test_the_same_class_in_two_normal_forms_is_one_class(tmp_path):
    root = folder(tmp_path, unicodedata.normalize("NFC", "rosé"), unicodedata.normalize("NFD", "rosé"), "x")
    assert read_data(str(root)).labels == ("rosé", "x")


def test_hidden_files_archive_leavings_and_files_outside_classes_are_ignored(tmp_path):
    root = folder(tmp_path, "a", "b")
    write(root, {"__MACOSX/a/x.jpg": "x", ".git/x.jpg": "x", "stray.jpg": "x", "a/._00.jpg": "x", "a/.cache/y": "y"})
    data = read_data(str(root))
    assert data.labels == ("a", "b")
    assert len(data.all()) == 16
    assert data.warnings == ()


def test_files_that_are_no_images_by_name_are_counted(tmp_path):
    root = write(folder(tmp_path, "a", "b"), {"a/x.heic": "", "b/y.heic": "", "b/labels.txt": "", "b/README": ""})
    (line,) = read_data(str(root)).warnings
    assert line.startswith("4 files in class folders are left out by their names (2 .heic, ")


def test_extensions_in_any_case(tmp_path):
    names = ["a.JPG", "b.jpeg", "c.PnG", "d.bmp", "e.webp", "f.tif", "g.TIFF"]
    root = write(folder(tmp_path, "x"), {f"y/{name}": name for name in names})
    assert read_data(str(root)).counts("train")["y"] + 2 == len(names)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no class folders with images: .*; put the images in"),
        ({"a.jpg": "x"}, "no class folders with images"),
        ({"only/a.jpg": "1", "only/b.jpg": "2"}, r"one class only: only in .*; a classifier wants at least two"),
        ({"a/1.jpg": "1", "b/notes.txt": "2"}, r"a class without images: .*b; add images \(\.jpg"),
        ({"a/1.jpg": "1", "b/deep/2.jpg": "2"}, r"folders inside a class folder: .*b holds deep; the levels must be"),
        ({"train/a/1.jpg": "1", "valid/a/2.jpg": "2"}, r"valid beside train.*; rename it to val"),
        ({"train/a/1.jpg": "1", "rose/2.jpg": "2"}, r"rose beside train.*use a CSV"),
        ({"train/a/1.jpg": "1", "val/b/2.jpg": "2"}, r"val or test holds classes that train lacks: b; add them"),
        ({"test/a/1.jpg": "1", "test/b/2.jpg": "2"}, r"nothing to train on: no train split"),
        ({"train/1.jpg": "1", "val/a/2.jpg": "2"}, r"no class folders with images: .*train"),
        ({"a/1.jpg": "1", "b/2.jpg": "2"}, "too few different images for a val split"),
        ({"train/a/1.jpg": "1", "train/b/2.jpg": "2", "val/b/2.jpg": "2"}, r"no training images of its own.*: b in"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, files, message):
    write(tmp_path, files)
    with pytest.raises(DataError, match=message):
        read_data(str(tmp_path))


def test_an_empty_class_folder(tmp_path):
    folder(tmp_path, "a", "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"a class without images: .*c; add images .* or remove the folder"):
        read_data(str(tmp_path))


def test_sources_that_are_nothing(tmp_path):
    with pytest.raises(DataError, match=r"no such folder or CSV file: .*nowhere; check the path"):
        read_data(str(tmp_path / "nowhere"))
    write(tmp_path, {"photo.jpg": "x"})
    with pytest.raises(DataError, match=r"DATA must be a folder or a \.csv file"):
        read_data(str(tmp_path / "photo.jpg"))


def test_a_dead_link_and_a_name_that_is_not_unicode(tmp_path):
    root = folder(tmp_path, "a", "b")
    (root / "a/dead.jpg").symlink_to("gone")
    with pytest.raises(DataError, match=r"a link to an image that is gone: .*dead\.jpg.*; remove it"):
        read_data(str(root))
    (root / "a/dead.jpg").unlink()
    Path(f"{root}/a/\udcff.jpg").write_text("x")
    with pytest.raises(DataError, match=r"not UTF-8: .*\\udcff\.jpg; rename it"):
        read_data(str(root))


# --- split layouts


def layout(root: Path, **splits: int) -> Path:
    for name, n in splits.items():
        folder(root / name, "a", "b", n=n, tag=name)
    return root


def test_given_splits_are_kept_and_a_missing_val_is_carved_from_train(tmp_path):
    data = read_data(str(layout(tmp_path, train=8, val=2, test=3)), PLAIN)
    assert data.given
    assert {name: len(found) for name, found in data.splits.items()} == {"train": 16, "val": 4, "test": 6}
    assert all(path.startswith("val/") for path in paths(data, "val"))
    assert read_data(str(layout(tmp_path / "no-test", train=8, val=2))).split("test") == ()

    carved = read_data(str(layout(tmp_path / "no-val", train=8, test=3)), PLAIN)
    assert {name: len(found) for name, found in carved.splits.items()} == {"train": 12, "val": 4, "test": 6}
    assert all(path.startswith("train/") for path in paths(carved, "val"))
    kept = read_data(str(tmp_path / "no-val"), ReadOptions(val_fraction=0))
    assert set(kept.splits) == {"train", "test"}


def test_across_given_splits_the_train_copy_is_dropped(tmp_path):
    root = layout(tmp_path, train=8, val=2, test=2)
    write(root, {"train/a/copy.jpg": "test-image", "test/a/x.jpg": "test-image", "val/b/y.jpg": "twin"})
    write(root, {"test/b/y.jpg": "twin"})
    data = read_data(str(root))
    assert "train/a/copy.jpg" not in paths(data, "train")
    assert "test/a/x.jpg" in paths(data, "test")
    assert data.warnings == (
        "1 training images are also in val or test; the training copies are left out",
        "1 images are in both val and test",
    )


def test_a_bundles_labels_bind(tmp_path):
    """Calibration or bench data: in the bundle's order, any subset of its classes, nothing foreign."""
    root = folder(tmp_path, "cat")
    bound = ReadOptions(labels=("dog", "cat"), val_fraction=0, test_fraction=0)
    data = read_data(str(root), bound)
    assert data.labels == ("dog", "cat")
    assert {s.target for s in data.all()} == {1}
    folder(tmp_path, "mouse")
    with pytest.raises(DataError, match=r"classes that the bundle does not know: mouse; known: dog, cat"):
        read_data(str(root), bound)
    only_test = layout(tmp_path / "x", test=2)
    assert read_data(str(only_test), ReadOptions(labels=("a", "b"))).counts("test") == {"a": 2, "b": 2}


# --- CSV


def table(root: Path, *rows: str, head: str = "path,label", encoding: str = "utf-8") -> str:
    folder(root, "a", "b")
    (root / "list.csv").write_text("\n".join((head, *rows)) + "\n", encoding=encoding)
    return str(root / "list.csv")


def test_a_csv_with_all_columns_a_bom_and_spaces(tmp_path):
    rows = [f" a/{i:02}.jpg , rosé ,{'train' if i < 6 else 'val'}, g{i // 2}" for i in range(8)]
    rows += [f'"b/{i:02}.jpg","tulip, red",{"train" if i < 6 else "val"},' for i in range(8)]
    data = read_data(table(tmp_path, *rows, head="path, label ,split,group", encoding="utf-8-sig"))
    assert data.labels == ("rosé", "tulip, red")
    assert data.given
    assert data.counts("val") == {"rosé": 2, "tulip, red": 2}
    assert data.split("train")[0] == Sample("a/00.jpg", 0, data.split("train")[0].digest, "g0")
    assert data.root == tmp_path


def test_a_csv_may_name_images_above_itself(tmp_path):
    folder(tmp_path, "a", "b")
    write(
        tmp_path,
        {"lists/all.csv": "label,path\n" + "".join(f"{c},../{c}/{i:02}.jpg\n" for c in "ab" for i in range(8))},
    )
    data = read_data(str(tmp_path / "lists/all.csv"))
    assert "../a/00.jpg" in {s.path for s in data.all()}
    assert all((data.root / s.path).is_file() for s in data.all())
    assert data.root.is_absolute()


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("path,class", ["a/00.jpg,a"], r"a CSV wants the columns path,label\[,split\]\[,group\]: path,class in"),
        ("path,label,path", ["a/00.jpg,a,b"], "a CSV wants the columns"),
        ("path;label", ["a/00.jpg;a"], "a CSV wants the columns"),
        ("path,label", [], "the CSV has no rows"),
        ("", [], r"no first line in .*list\.csv; name them in its first line"),
        ("path,label", ["a/00.jpg,"], r"a row lacks its path or label: .*list\.csv line 2"),
        ("path,label", ["a/00.jpg"], "a row lacks its path or label"),
        ("path,label", ["a/00.jpg,a,b"], "a row has more columns than the first line"),
        ("path,label", ["a/00.jpg,a", "a/nope.jpg,a"], r"no such image: .*nope\.jpg .*line 3.*relative to the CSV"),
        ("path,label", ["list.csv,a"], "not an image file name"),
        ("path,label", ["a/00.jpg,a", "a/../a/00.jpg,b"], r"the CSV names a file twice: .*00\.jpg"),
        ("path,label,split", ["a/00.jpg,a,validation"], "split must be train, val or test: 'validation' in"),
        ("path,label,split", ["a/00.jpg,a,"], "split must be train, val or test"),
        ("path,label", ['"a/00.jpg,a'], "the CSV cannot be read.*quote a whole value"),
        ("path,label", ['"a/00.jpg" x,a'], "the CSV cannot be read.*quote a whole value"),
    ],
)
def test_csvs_that_cannot_be_used(tmp_path, head, rows, message):
    with pytest.raises(DataError, match=message):
        read_data(table(tmp_path, *rows, head=head))


def test_a_csv_in_another_encoding(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read.*save it as UTF-8"):
        read_data(table(tmp_path, "a/00.jpg,rosé", encoding="latin-1"))


# --- groups, copies, two labels


def test_groups_by_pattern_stay_together(tmp_path):
    root = write(tmp_path, {f"{c}/p{i // 4}_{i}.jpg": f"{c}{i}" for c in "ab" for i in range(40)})
    options = ReadOptions(group_by=r"(\w)/p(\d+)_", val_fraction=0.2, test_fraction=0.2)
    data = read_data(str(root), options)
    assert {s.group for s in data.all()} == {f"{c}/{i}" for c in "ab" for i in range(10)}
    whole = read_data(str(root), ReadOptions(group_by=r"\w/p\d+_", val_fraction=0.2, test_fraction=0.2))
    assert {name: paths(whole, name) for name in whole.splits} == {name: paths(data, name) for name in data.splits}
    sides: dict[str, set[str]] = {}
    for name in data.splits:
        for sample in data.split(name):
            sides.setdefault(sample.group, set()).add(name)
    assert len(sides) == 20
    assert all(len(names) == 1 for names in sides.values())
    assert data.counts("val") == {"a": 8, "b": 8}


class Said(Monitor):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    ("pattern", "said", "warned"),
    [
        (r"\w/p\d+_", "16 images in 4 groups", ()),
        (r"p(\d+)_", "16 images in 2 groups; 2 hold several classes, such as 0 (a, b), and stay in one split too", ()),
        (r".*", "16 images in 16 groups: no two share one, so nothing is kept together", ()),
        (r"a/p\d", "8 images in 2 groups", ("--group-by leaves 8 of 16 images in no group, such as b/p0_0.jpg",)),
    ],
)
def test_what_a_group_pattern_catches_is_told(tmp_path, pattern, said, warned):
    root = write(tmp_path, {f"{c}/p{i // 4}_{i}.jpg": f"{c}{i}" for c in "ab" for i in range(8)})
    monitor = Said()
    data = read_data(str(root), ReadOptions(group_by=pattern, val_fraction=0.25, test_fraction=0), monitor)
    assert [line for line in monitor.lines if "group" in line] == [said]
    assert tuple(line for line in data.warnings if "group" in line) == warned


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", r"--group-by is not a regular expression: \( "), ("zzz", r"matches no path: zzz; .*such as a/00\.jpg")],
)
def test_group_patterns_that_cannot_be_used(tmp_path, pattern, message):
    with pytest.raises(DataError, match=message):
        read_data(str(folder(tmp_path, "a", "b")), ReadOptions(group_by=pattern))


def test_groups_that_span_classes_and_starve_one_are_refused(tmp_path):
    """Every image is of one shoot, so a split would have to tear the shoot apart."""
    rows = [f"a/{i:02}.jpg,a,shoot1" for i in range(8)] + [f"b/{i:02}.jpg,b,shoot{1 + i // 4}" for i in range(8)]
    with pytest.raises(DataError, match=r"use finer groups|too few different images"):
        read_data(table(tmp_path, *rows, head="path,label,group"))


def test_given_splits_that_tear_a_group_are_told(tmp_path):
    rows = [f"{c}/{i:02}.jpg,{c},{'train' if i < 6 else 'val'},g{i % 5}" for c in "ab" for i in range(8)]
    (line,) = read_data(table(tmp_path, *rows, head="path,label,split,group")).warnings
    assert line == "2 groups are in train and in val or test, such as g1"


def test_one_image_with_two_labels_is_told_or_refused(tmp_path):
    root = write(folder(tmp_path, "a", "b"), {"a/twin.jpg": "same", "b/twin.jpg": "same"})
    data = read_data(str(root))
    assert data.warnings == ("one image with two labels: a/twin.jpg (a) = b/twin.jpg (b)",)
    assert sum(paths(data, name) >= {"a/twin.jpg", "b/twin.jpg"} for name in data.splits) == 1
    with pytest.raises(DataError, match=r"one image with two labels: a/twin\.jpg .*; 1 in all"):
        read_data(str(root), ReadOptions(strict=True))


@pytest.mark.parametrize(("val", "test"), [(1.0, 0), (-0.1, 0), (0, float("nan")), (0.5, 0.5)])
def test_fractions_that_leave_nothing(val, test):
    with pytest.raises(DataError, match=r"fraction|nothing is left"):
        ReadOptions(val_fraction=val, test_fraction=test)


def test_real_photos_read_as_their_folder_says(samples):
    data = read_data(str(samples / "data/flowers5_small"))
    assert len(data.labels) == 5
    assert all((data.root / s.path).is_file() for s in data.all())
    assert {name: len(data.split(name)) > 0 for name in data.splits}


def test_classes_that_val_or_test_lack_are_named(tmp_path: Path) -> None:
    write(folder(tmp_path, "a", "b"), {"lonely/0.jpg": "alone"})
    data = read_data(str(tmp_path))
    assert [s.target for s in data.split("train")].count(2) == 1
    assert [line.partition(" ")[0] for line in data.warnings] == ["val", "test"]
    assert all("lonely" in line for line in data.warnings)


def test_listing_tells_how_far_it_is(tmp_path: Path) -> None:
    told = []

    class Watching(Monitor):
        def progress(self, what: str, done: int, total: int) -> None:
            told.append((what, done, total))

    read_data(str(folder(tmp_path, "a", "b", n=150)), monitor=Watching())
    assert told == [("listing", 256, 300), ("listing", 300, 300)]
