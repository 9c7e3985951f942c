"""`edgetl rank` and `edgetl domains` from the command line: generated weights, the embedded backbone, bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from edgetl.cli.app import app
from edgetl.cli.rank import DEFAULT_WEIGHTS, sorted_out
from edgetl.embedded.digits import write_digits
from edgetl.errors import InputError
from edgetl.transfer import backbones

ROW = {"backbone", "weights", "logme", "h_score", "probe_accuracy", "params", "macs", "latency_ms", "pareto"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits")


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smallnet that has learnt nothing, in a file whose name does not tell."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.pth"
    torch.save(backbones.build("smallnet", 4, 32).state_dict(), path)
    return path


def call(*words: object, expect: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == expect, done.output
    assert len(done.stdout.strip().splitlines()) == 1
    return dict(json.loads(done.stdout))


def refused(*words: object) -> str:
    error = call(*words, expect=1)["error"]
    assert error["what"] and error["do"], error
    return " | ".join(error.values())


def test_what_learnt_glyphs_is_ranked_before_what_learnt_nothing(digits: Path, random_weights: Path) -> None:
    words = ["rank", digits, "--weights", random_weights, "--weights", "embedded", "--images", 150]
    found = call(*words)
    assert [r["weights"] for r in found["rows"]] == ["embedded", str(random_weights)]
    first, second = found["rows"]
    assert set(first) >= ROW and first["backbone"] == second["backbone"] == "smallnet"
    for score in ("probe_accuracy", "logme", "knn_accuracy", "leep"):
        assert first[score] > second[score], score
    assert first["pareto"] and not second["pareto"]  # equally large and fast, but less accurate
    assert first["latency_ms"] == second["latency_ms"] > 0
    assert (first["params"], first["macs"]) == (second["params"], second["macs"])
    assert found["n"] == {"images": 100, "train": 100, "classes": 10}
    assert "resnet18" in found["needs_download"]
    again = call(*words)
    assert [{k: r[k] for k in ("logme", "h_score", "probe_accuracy", "leep")} for r in again["rows"]] == [
        {k: r[k] for k in ("logme", "h_score", "probe_accuracy", "leep")} for r in found["rows"]
    ]


def test_budgets_leave_out_and_name(digits: Path) -> None:
    small = call("rank", digits, "--images", 60, "--budget-mb", 2, "--precision", "int8")
    assert [r["backbone"] for r in small["rows"]] == ["smallnet"] and not small["over_budget"]
    words = ["rank", digits, "--images", 60]
    for budget in (("--budget-mb", 2), ("--budget-ms", 0.0001)):
        found = call(*words, *budget)
        assert found["rows"] == [] and [r["backbone"] for r in found["over_budget"]] == ["smallnet"]
    done = CliRunner().invoke(app, [*map(str, words), "--budget-mb", "2"])
    assert done.exit_code == 0 and done.stdout.startswith("Over budget, not scored: smallnet (embedded)")


def test_the_table_names_the_next_command(digits: Path, random_weights: Path) -> None:
    done = CliRunner().invoke(app, ["rank", str(digits), "--weights", str(random_weights), "--images", "60"])
    assert done.exit_code == 0, done.output
    assert "untrained.pth" in done.stdout and "--download" in done.stdout
    assert f"edgetl finetune {digits} --backbone smallnet --weights {random_weights}" in done.stdout


def test_each_figure_of_the_table_stands_below_its_heading(digits: Path) -> None:
    words = ["rank", str(digits), "--images", "60", "--weights", "embedded"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})  # whatever the latency is, no name is broken
    row = call("rank", digits, "--images", "60", "--weights", "embedded")["rows"][0]
    lines = [[cell.strip() for cell in re.split("[│┃]", line)] for line in done.stdout.splitlines() if line[:1] in "│┃"]
    above = lines[: next(number for number, line in enumerate(lines) if "smallnet" in line)]
    headings = [" ".join(cells).split() for cells in zip(*above, strict=True)]
    figures = next(line for line in lines if "smallnet" in line)
    said = {word: figure for words, figure in zip(headings, figures, strict=True) for word in words}
    assert said["LogME"] == f"{row['logme']:.3f}" and said["LEEP"] == f"{row['leep']:.2f}"
    assert said["best"] == f"{100 * row['stage_accuracy']:.1f}" and said["kNN"] == f"{100 * row['knn_accuracy']:.1f}"
    assert said["MACs"] == f"{row['macs'] / 1e6:.0f}" and said["front"] == "*"


@pytest.mark.parametrize("columns", [60, 80, 107, 108])
def test_no_terminal_is_too_narrow_for_the_names(digits: Path, columns: int) -> None:
    words = ["rank", str(digits), "--images", "60", "--weights", "embedded"]
    done = CliRunner().invoke(app, words, env={"COLUMNS": str(columns)})
    table = [line for line in done.stdout.splitlines() if line[:1] in "│┃"]
    assert any(line.startswith("│ smallnet ") for line in table) and any("embedded" in line for line in table)
    assert "…" not in "".join(table) and max(map(len, table)) <= columns
    assert any("LogME" in line for line in table) is (columns >= 108)


def test_data_and_weights_files_in_any_order() -> None:
    assert sorted_out("photos", [], []) == ("photos", DEFAULT_WEIGHTS)
    assert sorted_out("photos", ["b.pth", "c.safetensors"], ["a.pth"]) == (
        "photos",
        ("a.pth", "b.pth", "c.safetensors"),
    )
    assert sorted_out("b.pth", ["photos"], ["a.pth"]) == ("photos", ("a.pth", "b.pth"))
    for words in (("photos", ["more"], ["a.pth"]), ("b.pth", [], ["a.pth"]), ("photos", ["b.pth"], [])):
        with pytest.raises(InputError):
            sorted_out(*words)


def test_rank_refuses_what_it_cannot_do(digits: Path, make_folder: Any, tmp_path: Path) -> None:
    pair = make_folder(n=4)
    assert "10" in refused("rank", pair, "--val-fraction", 0, "--test-fraction", 0)
    assert "--budget-ms" in refused("rank", digits, "--budget-ms", -1)
    assert "fp32 or int8" in refused("rank", digits, "--precision", "fp16")
    assert "at most 10000" in refused("rank", digits, "--images", 100_000)
    assert "gone.pth" in refused("rank", digits, "--weights", tmp_path / "gone.pth")
    assert "--download" in refused("rank", digits, "--weights", "auto")
    assert "resnet18" in refused("rank", digits, "--backbone", "resnet81")
    assert "no such folder" in refused("rank", tmp_path / "nowhere")
    (tmp_path / "code.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "nothing in it was run" in refused("rank", digits, "--weights", tmp_path / "code.pth")


def test_a_corrupt_image_is_named_or_left_out(make_folder: Any) -> None:
    folder = make_folder(n=12)
    (folder / "left" / "000.png").write_bytes(b"not an image")
    words = ["rank", folder, "--val-fraction", 0, "--test-fraction", 0]
    assert "000.png" in refused(*words)
    found = call(*words, "--skip-corrupt")
    assert found["rows"][0]["probe_accuracy"] > 0.5
    assert found["n"] == {"images": 23, "train": 24, "classes": 2}
    whole = make_folder(n=12, name="whole", seed=1)
    assert "000.png" in refused("domains", folder, whole)
    assert call("domains", folder, whole, "--skip-corrupt")["n"] == {"source": 23, "target": 24, "in_both": 0}


def test_too_few_sound_images_and_too_few_groups_are_told(make_folder: Any) -> None:
    folder = make_folder(n=12)
    words = ["rank", folder, "--val-fraction", 0, "--test-fraction", 0, "--weights", "embedded"]
    assert "two groups of images" in refused(*words, "--group-by", "^(left|right)")  # each class in a single one
    assert call(*words, "--group-by", "([0-9])[.]png$")["rows"][0]["probe_accuracy"] > 0.5
    for image in sorted((folder / "left").iterdir())[1:]:
        image.write_bytes(b"not an image " + image.name.encode())
    assert "1 classes with two images or more" in refused(*words, "--skip-corrupt")


def test_many_classes_take_more_images(make_folder: Any) -> None:
    folder = make_folder([f"class {i:03}" for i in range(30)], n=3)
    words = ["rank", folder, "--val-fraction", 0, "--test-fraction", 0, "--weights", "embedded"]
    assert call(*words)["n"] == {"images": 90, "train": 90, "classes": 30}
    assert "--images 150" in refused(*words, "--images", 40)


def test_weights_that_are_no_numbers_are_not_ranked(digits: Path, tmp_path: Path) -> None:
    state = backbones.build("smallnet", 4, 32).state_dict()
    broken = {k: torch.full_like(v, float("nan")) if k == "stem.0.weight" else v for k, v in state.items()}
    large = {k: v * 1e30 if k.endswith("conv1.weight") else v for k, v in state.items()}
    for name, weights in (("broken.pth", broken), ("large.pth", large)):
        torch.save(weights, tmp_path / name)
        assert name in (said := refused("rank", digits, "--images", 60, "--weights", tmp_path / name))
        assert "finite numbers" in said


def test_the_next_command_has_what_the_ranking_had(digits: Path) -> None:
    words = ["rank", digits, "--images", 60, "--weights", "none", "--backbone", "mobilenet_v2", "--image-size", 32]
    also = ["--backbone-args", "width_mult=0.25", "--fit", "stretch"]
    done = CliRunner().invoke(app, [*map(str, words), *also])
    assert done.exit_code == 0, done.output
    line = next(line for line in done.stdout.splitlines() if line.startswith("Next: "))
    options = "--backbone mobilenet_v2 --backbone-args width_mult=0.25 --weights none --image-size 32 --fit stretch"
    assert options in line


def flat(folder: Path, n: int, shift: int, seed: int) -> Path:
    """`n` images without classes: noise around a grey of 100 + shift."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(n):
        pixels = np.clip(rng.normal(100 + shift, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_same_shifted_and_far(tmp_path: Path, digits: Path) -> None:
    one, other = (flat(tmp_path / str(seed), 60, 0, seed) for seed in (1, 2))
    bright = flat(tmp_path / "bright", 60, 80, 3)
    same, shifted, far = (call("domains", one, target) for target in (other, bright, digits))
    assert [found["verdict"] for found in (same, shifted, far)] == ["same", "shifted", "far"]
    assert same["mmd2"] < shifted["mmd2"] < far["mmd2"] and far["a_distance"] == 2.0
    assert same["p_value"] > 0.01 and far["p_value"] == 0.001
    assert far["features"]["backbone"] == "smallnet" and far["features"]["weights"]["source"] == "embedded"
    assert far["per_class"] is None and "Gretton" in far["estimator"] and "Gaussians" in far["kernel"]
    assert same["coral"] < far["coral"]


@pytest.mark.slow
def test_photographs_paintings_and_sketches(samples: Path, mobilenet_weights: Path, tmp_path: Path) -> None:
    """Two halves of the photographs are one domain, paintings are a shift away, and sketches are far."""
    pacs = samples / "data/pacs_mini"
    halves = [tmp_path / "even", tmp_path / "odd"]
    for number, photo in enumerate(sorted((pacs / "photo").rglob("*.*"))):
        if photo.is_file():
            link = halves[number % 2] / photo.parent.name / photo.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photo)
    features = ["--backbone", "mobilenet_v2", "--weights", mobilenet_weights, "--image-size", 96, "--images", 200]
    pairs = [halves, (pacs / "photo", pacs / "art_painting"), (pacs / "photo", pacs / "sketch")]
    found = [call("domains", *pair, *features) for pair in pairs]
    assert [f["verdict"] for f in found] == ["same", "shifted", "far"]
    assert set(found[1]["per_class"]) == {"dog", "elephant", "giraffe", "guitar", "horse", "house", "person"}


def test_by_class_and_the_picture(make_folder: Any, tmp_path: Path) -> None:
    names = ("left", "$right$", "_third")
    source, target = make_folder(names, n=10, name="a"), make_folder(names[:2], n=10, name="b", seed=5)
    pictures = [tmp_path / "p.png", tmp_path / "p.svg"]
    found = [call("domains", source, target, "--picture", p, "--projection", "tsne") for p in pictures]
    assert set(found[0]["per_class"]) == {"left", "$right$"}
    assert all(v["n_source"] == 10 and v["mmd2"] is not None for v in found[0]["per_class"].values())
    assert found[0]["picture"] == str(pictures[0])
    with Image.open(pictures[0]) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(1 << 24) or []) > 50
    svg = pictures[1].read_bytes()
    assert svg.lstrip().startswith(b"<?xml") and svg.count(b"<use") >= 50  # a mark an image
    call("domains", source, target, "--picture", pictures[1], "--projection", "tsne")
    assert pictures[1].read_bytes() == svg


def test_domains_refuses_what_it_cannot_do(tmp_path: Path, make_folder: Any) -> None:
    good, empty, single = make_folder(n=10), tmp_path / "empty", flat(tmp_path / "single", 1, 0, 0)
    empty.mkdir()
    assert "no images" in refused("domains", good, empty)
    assert "1 different images" in refused("domains", good, single)
    assert "no such folder" in refused("domains", tmp_path / "gone", good)
    assert "FILE.png or FILE.svg" in refused("domains", good, good, "--picture", tmp_path / "p.gif")
    assert "pca or tsne" in refused("domains", good, good, "--projection", "umap")
    assert "at least 8" in refused("domains", good, good, "--images", 3)
    assert "smallnet" in refused("domains", good, good, "--backbone", "resnet18")


def test_one_class_however_its_name_is_composed(make_folder: Any) -> None:
    """A file system may keep an umlaut as one character or as two."""
    source = make_folder(("M\u00f6we", "left"), n=10, name="a")
    target = make_folder(("Mo\u0308we", "left"), n=10, name="b", seed=5)
    assert set(call("domains", source, target)["per_class"]) == {"M\u00f6we", "left"}


def test_the_same_pixels_in_other_files_are_the_same_domain(tmp_path: Path) -> None:
    """Features of equal pictures differ in their last bits by their place in a batch: that is no shift."""
    sides = [tmp_path / "a", tmp_path / "b"]
    for number, side in enumerate(sides):
        side.mkdir()
        for i in range(40):
            image = Image.new("RGB", (32 + i + 40 * number, 32 + i + 40 * number), (200, 30, 30))
            image.save(side / f"{i}.png")
    found = call("domains", *sides)
    assert found["verdict"] == "same" and found["a_distance"] < 1


def test_copies_of_one_image_are_one_image(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    for i in range(20):
        Image.new("RGB", (32, 32), (200, 30, 30)).save(folder / f"{i}.png")
    assert "1 different images" in refused("domains", folder, folder)


def test_a_set_and_itself_are_the_same_domain(digits: Path) -> None:
    found = call("domains", digits, digits, "--images", 100)
    assert found["verdict"] == "same" and found["n"]["in_both"] == found["n"]["source"]


def test_a_report_in_words_says_which_features(tmp_path: Path) -> None:
    one, other = (flat(tmp_path / str(seed), 20, 0, seed) for seed in (1, 2))
    done = CliRunner().invoke(app, ["domains", str(one), str(other)])
    assert done.exit_code == 0, done.output
    for word in ("smallnet", "glyphs", "Verdict", "same", "permutations", "unbiased"):
        assert word in done.stdout, word


@pytest.mark.slow
def test_a_killed_rank_leaves_features_that_the_next_one_uses(digits: Path, tmp_path: Path) -> None:
    """Killed while it computes features; the same command then gives what an undisturbed one gives."""
    words = [sys.executable, "-m", "edgetl", "rank", str(digits), "--json"]
    environment = {**os.environ, "EDGETL_CACHE": str(tmp_path / "killed"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    features = tmp_path / "killed" / "features"
    while process.poll() is None and not list(features.glob("*/index.bin")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    after = call("rank", digits)
    os.environ["EDGETL_CACHE"] = str(tmp_path / "killed")
    assert call("rank", digits)["rows"][0]["logme"] == pytest.approx(after["rows"][0]["logme"], abs=1e-4)
