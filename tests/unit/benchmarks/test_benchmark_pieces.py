"""What the benchmarks are run on and with."""

from __future__ import annotations

import json
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import data, memory_child, strategies
from benchmarks.child import cores, run_module
from benchmarks.rows import Case, row
from edgetl.images import ReadOptions, read_data

STARTUP = {"runs": 3, "median_s": 0.31, "worst_s": 0.4, "limit_s": 0.5, "heavy_modules": ""}
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")


def test_split_layout_gives_imagefolder_the_splits_that_edgetl_draws(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_folder(n=20)
    there = data.split_layout(source, tmp_path / "links")
    drawn = read_data(str(source), ReadOptions())
    for split in ("train", "val", "test"):
        assert {s.digest for s in there.split(split)} == {s.digest for s in drawn.split(split)}
    assert there.given and there.labels == drawn.labels


def test_split_layout_takes_at_most_so_many_evenly(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    few = data.split_layout(make_folder(n=20), tmp_path / "links", at_most=4)
    assert few.counts("train") == {"left": 2, "right": 2}
    assert len(few.split("test")) <= 4


def test_few_labels_are_few_in_train_and_val_and_the_test_split_is_whole(
    make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_folder(n=40)
    few = strategies.linked(source, tmp_path / "few", 3, seed=1)
    drawn = read_data(str(source), ReadOptions(seed=1))
    assert few.counts("train") == few.counts("val") == {"left": 3, "right": 3}
    assert {s.digest for s in few.split("test")} == {s.digest for s in drawn.split("test")}
    for split in ("train", "val"):
        assert {s.digest for s in few.split(split)} < {s.digest for s in drawn.split(split)}


def test_there_is_always_something_to_measure_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SAMPLES", tmp_path / "nowhere")
    (only,) = data.materials(tmp_path)
    assert (only.backbone, only.weights) == ("smallnet", "embedded")
    assert (only.source / "train/0").is_dir()


def test_a_child_answers_in_json_and_a_failed_one_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="exited"):
        run_module("benchmarks.memory_child", "no such work", threads=1)
    assert cores() >= 1


@linux
def test_peak_memory_is_that_of_the_work_and_not_of_what_was_there_before() -> None:
    import numpy as np

    before = memory_child.baseline()
    # Mapped, not from the heap: a command that ran earlier in this process may have told malloc to keep its pages.
    block = mmap.mmap(-1, 60_000_000)
    np.frombuffer(block, np.uint8)[:] = 1
    block.close()
    first = memory_child.taken(before)["peak_mb"]
    assert 50 < first < 120
    again = memory_child.taken(memory_child.baseline())["peak_mb"]
    assert again < first / 2  # the older peak is forgotten


def test_modelopt_is_handed_the_same_images_in_batches(make_folder: Callable[..., Path]) -> None:
    folder = str(make_folder(n=8, size=32))
    reader = memory_child._Reader("image", folder, 32, 10, 4)
    shapes = []
    while (batch := reader.get_next()) is not None:
        shapes.append(batch["image"].shape)
    assert shapes == [(4, 3, 32, 32), (4, 3, 32, 32), (2, 3, 32, 32)]
    assert reader.get_first()["image"].shape == (4, 3, 32, 32)
    reader.rewind()
    assert sum(1 for _ in iter(reader.get_next, None)) == 3


def test_command_line_runs_the_suites_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = row(Case("startup", "edgetl --help", True), 1, STARTUP)
    asked: list[bool] = []

    def suite(quick: bool) -> list[dict[str, object]]:
        asked.append(quick)
        return [one]

    monkeypatch.setitem(command.SUITES, "startup", suite)
    assert command.main(["startup", "--quick", "--results", str(tmp_path)]) == 0
    assert asked == [True]
    assert json.loads((tmp_path / "startup.jsonl").read_text()) == one
    assert "median_s 0.31" in capsys.readouterr().out


def test_command_line_refuses_an_unknown_suite(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["speed"])
    assert ended.value.code == 2
    assert "unknown suite: speed" in capsys.readouterr().err
    assert sys.modules["benchmarks.__main__"] is command


@linux
@pytest.mark.slow  # imports all that edgetl ever does
def test_a_command_that_fails_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exited 1"):
        run_module("benchmarks.memory_child", "cli", "bench", str(tmp_path / "no bundle"), threads=1)
