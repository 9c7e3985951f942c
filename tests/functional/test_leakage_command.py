"""Leakage between splits as a user meets it: near-duplicates, groups, and splits that were given."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from edgetl.bundle import Bundle
from edgetl.cli.app import app

FAST = ("--backbone", "smallnet", "--weights", "embedded", "--strategy", "linear-probe", "--device", "cpu")
BURSTS, FRAMES = 8, 4


def edgetl(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight bursts: four frames each, recompressed and cut a little, named <burst>-<frame>.jpg."""
    folder = tmp_path_factory.mktemp("leakage")
    rng = np.random.default_rng(0)
    for label in ("left", "right"):
        (folder / "photos" / label).mkdir(parents=True)
        for burst in range(BURSTS):
            coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
            scene = coarse.resize((96, 72), Image.Resampling.BICUBIC)
            for frame in range(FRAMES):
                cut = scene.crop((frame, frame % 2, 96 - frame % 3, 72))
                cut.save(folder / "photos" / label / f"{burst}-{frame}.jpg", quality=60 + 10 * frame)
    return folder / "photos"


def splits(bundle: Path) -> dict[str, set[str]]:
    """Burst names by split."""
    opened = Bundle.open(bundle)
    rows = json.loads(opened.file(opened.artifact("splits")).read_text())
    return {
        name: {row[0].rpartition("-")[0] for row in rows[name]} for name in ("train", "val", "test") if name in rows
    }


def result(ran: Result) -> dict[str, Any]:
    assert ran.exit_code == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_frames_of_a_burst_across_splits_are_told_with_names_and_remedy(photos: Path, tmp_path: Path) -> None:
    ran = edgetl("finetune", photos, "--to", tmp_path / "b", *FAST, "--json")
    found = result(ran)["near_duplicates"]
    places = splits(tmp_path / "b")
    assert places["train"] & places["val"], "a plain split tears bursts"
    assert found["n"] == len(found["pairs"]) >= 10
    for pair in found["pairs"]:
        assert Path(pair["image"]).name[0] == Path(pair["like"]).name[0]
        assert Path(pair["image"]).parent == Path(pair["like"]).parent
        assert (pair["split"], pair["like_split"]) in (("val", "train"), ("test", "train"), ("test", "val"))
    warning = next(line for line in ran.stderr.splitlines() if "near-duplicates" in line)
    assert found["pairs"][0]["image"] in warning and "--group-by" in warning and "--near-duplicates together" in warning
    rows = [json.loads(line) for line in (tmp_path / "b/runs/near-duplicates.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "generation"} for row in rows] == found["pairs"]
    again = edgetl("finetune", photos, "--to", tmp_path / "b", *FAST, "--json", "--resume")
    assert result(again)["near_duplicates"] == found


@pytest.mark.parametrize("remedy", [("--near-duplicates", "together"), ("--group-by", r"(.*)-\d")])
def test_each_remedy_keeps_bursts_whole(photos: Path, tmp_path: Path, remedy: tuple[str, str]) -> None:
    ran = edgetl("finetune", photos, "--to", tmp_path / "b", *FAST, *remedy, "--json")
    assert result(ran)["near_duplicates"] == {"n": 0, "pairs": []}
    places = splits(tmp_path / "b")
    assert set(places) == {"train", "val", "test"}
    assert not places["train"] & places["val"] and not (places["train"] | places["val"]) & places["test"]
    assert "near-duplicates of images" not in ran.stderr
    assert not (tmp_path / "b/runs/near-duplicates.jsonl").exists()


def test_they_can_be_ignored_and_the_bundle_says_that_nobody_looked(photos: Path, tmp_path: Path) -> None:
    ran = edgetl("finetune", photos, "--to", tmp_path / "b", *FAST, "--near-duplicates", "ignore", "--json")
    assert result(ran)["near_duplicates"] is None
    assert "near-duplicates" not in ran.stderr
    refused = edgetl("finetune", photos, "--to", tmp_path / "b2", *FAST, "--near-duplicates", "perhaps")
    assert refused.exit_code == 1 and "warn, together, ignore" in refused.stderr


def test_given_splits_whose_groups_span_are_told_and_never_redrawn(photos: Path, tmp_path: Path) -> None:
    rows = ["path,label,split,group"]
    for label in ("left", "right"):
        for burst in range(BURSTS):
            for frame in range(FRAMES):
                split = ("train", "train", "val", "test")[(burst + frame) % 4]
                rows.append(f"{photos / label / f'{burst}-{frame}.jpg'},{label},{split},{label}{burst}")
    (tmp_path / "data.csv").write_text("\n".join(rows))
    ran = edgetl("finetune", tmp_path / "data.csv", "--to", tmp_path / "b", *FAST, "--json")
    found = result(ran)
    assert found["n"]["train"] == BURSTS * FRAMES and found["near_duplicates"]["n"] >= BURSTS * FRAMES * 0.9
    assert "16 groups are in train and in val or test" in ran.stderr
    assert "move or remove them" in ran.stderr
    refused = edgetl("finetune", tmp_path / "data.csv", "--to", tmp_path / "b2", *FAST, "--near-duplicates", "together")
    assert refused.exit_code == 1 and "they are given" in refused.stderr
    assert not (tmp_path / "b2").exists() and not (tmp_path / "b2.work").exists()


def test_different_pictures_of_one_kind_are_not_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for label, low in (("dark", 0), ("bright", 90)):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(30):
            coarse = Image.fromarray(rng.integers(low, low + 160, (6, 6, 3), dtype=np.uint8))
            stream = io.BytesIO()
            coarse.resize((64, 64), Image.Resampling.BICUBIC).save(stream, "PNG")
            (tmp_path / "photos" / label / f"{i}.png").write_bytes(stream.getvalue())
    ran = edgetl("finetune", tmp_path / "photos", "--to", tmp_path / "b", *FAST, "--json")
    assert result(ran)["near_duplicates"]["n"] == 0
