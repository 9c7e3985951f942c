"""The page, the card and the runs as files: complete, escaped, small, and of nothing that is not the bundle's."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

from edgetl.bundle import Bundle
from edgetl.errors import InputError
from edgetl.measure import answers as kept
from edgetl.report.card import card, markdown
from edgetl.report.facts import gather
from edgetl.report.photos import BYTES, MAP_SIDE, SIDE, small
from edgetl.report.stage import ReportOptions, report

from .conftest import ODD_LABELS, row, write_rows

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Text, tags that do not close, links and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def written(path: Path, tmp_path: Path, **how) -> tuple[str, dict]:
    options = ReportOptions(html=tmp_path / "page.html", **how)
    result = report(Bundle.open(path), options)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert result["html"]["bytes"] == len(text.encode())
    return text, result


def check(text: str, home: Path) -> Page:
    """What holds of every page."""
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    assert not page.of("script") and not page.of("link")
    for attrs in page.of("a"):
        assert attrs["href"].startswith("#") and attrs["href"][1:] in ids
    for attrs in page.of("img"):
        assert attrs["src"].startswith("data:image/jpeg;base64,") and attrs["alt"]
    for attrs in page.of("svg"):
        assert attrs["role"] == "img" and all(name in ids for name in attrs["aria-labelledby"].split())
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        tree = ElementTree.fromstring(svg)
        assert tree.find("title").text and tree.find("desc").text
    for private in (str(home), "/home/", "zoes-pc", "zoe@", os.path.sep + "tmp" + os.path.sep):
        assert private not in text
    return page


def test_the_page_answers_what_a_manager_asks(make_bundle, tmp_path):
    text, result = written(make_bundle(wrong=0), tmp_path)
    page = check(text, tmp_path)
    for said in ("Ship INT8, with TensorRT", "met, not yet proven", "95 %", "60 test images", "edgetl deploy flowers"):
        assert said in page.text
    assert "edgetl finetune 'photos of Zoë' --to flowers" in page.text
    assert result["ship"]["precision"] == "int8"
    assert text.count("<svg") >= 8


def test_two_reports_of_one_bundle_are_the_same_bytes(make_bundle, tmp_path):
    path = make_bundle()
    assert written(path, tmp_path)[0] == written(path, tmp_path)[0]


@pytest.mark.parametrize(
    "how",
    [
        {"test": False},
        {"bench": False},
        {"bench": False, "graphs": []},
        {"graphs": [("trt10", "fp32")]},
        {"trained": False},
        {"trained": False, "bench": False, "graphs": []},
        {"labels": ["one", "two"]},
        {"labels": ["a", "b", "c", "never seen"], "n": 3},
        {"wrong": 0},
        {"n": 1},
    ],
    ids=str,
)
def test_a_page_of_what_there_is(how, make_bundle, tmp_path):
    text, result = written(make_bundle(**how), tmp_path, card=tmp_path / "card.md", tensorboard=tmp_path / "runs")
    page = check(text, tmp_path)
    assert "Which variant to ship" in page.text
    assert (tmp_path / "card.md").read_text().startswith("---\n")
    assert all(note.replace("`", "") in page.text.replace("`", "") for note in result["notes"])


def test_labels_in_any_script_are_text_and_nothing_else(make_bundle, tmp_path):
    text, _ = written(make_bundle(labels=ODD_LABELS, n=70, wrong=30), tmp_path, card=tmp_path / "card.md")
    page = check(text, tmp_path)
    for label in ODD_LABELS:
        assert label in page.text
    assert "<script" not in text and 'onload="' not in text
    assert "<bdi>وردة بيضاء</bdi>" in text
    said = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "<script" not in said.split("---")[2] and "\\| md \\`x\\` \\[y\\](z)" in said


def test_a_bundle_whose_name_is_a_command_is_quoted_where_it_is_to_be_copied(make_bundle, tmp_path):
    text, _ = written(make_bundle(name="a; rm -rf ~ <b>", bench=False), tmp_path, card=tmp_path / "card.md")
    page = check(text, tmp_path)
    assert "edgetl bench 'a; rm -rf ~ <b>'" in page.text and "<b>'" not in text
    assert "edgetl classify 'a; rm -rf ~ <b>' photo.jpg" in (tmp_path / "card.md").read_text()


def test_a_thousand_classes_are_a_small_page(make_bundle, tmp_path):
    labels = [f"class {i:04}" for i in range(1000)]
    text, _ = written(make_bundle(labels=labels, n=2500), tmp_path)
    page = check(text, tmp_path)
    assert "1,000 classes: the matrix would not be readable" in page.text
    assert "24 of 1,000 classes" in page.text and "24 classes with the fewest" in page.text
    assert len(text) < 300_000


def test_five_thousand_test_images_are_a_small_page(make_bundle, tmp_path):
    path = make_bundle(labels=[f"c{i}" for i in range(20)], n=5000, photos=False, wrong=900)
    text, _ = written(path, tmp_path)
    assert len(text) < 1_000_000


def test_photos_are_thumbnails_within_their_bounds(make_bundle, tmp_path):
    text, _ = written(make_bundle(n=40, photos=True, wrong=30), tmp_path)
    page = check(text, tmp_path)
    found = [base64.b64decode(attrs["src"].partition(",")[2]) for attrs in page.of("img")]
    assert 10 < len(found) <= 24
    for data in found:
        with Image.open(io.BytesIO(data)) as image:
            assert max(image.size) <= SIDE and not image.getexif()
        assert len(data) <= BYTES
    assert "no class-activation maps" in page.text.lower()  # this bundle has no checkpoint


def test_photos_that_are_gone_or_changed_are_told(make_bundle, tmp_path):
    path = make_bundle(n=40, photos=True, wrong=30)
    folder = Path(Bundle.open(path).local["data"])
    (folder / "class0/00000.jpg").write_bytes(b"another photo")
    before = Page(written(path, tmp_path)[0])
    shown = [attrs["alt"] for attrs in before.of("img")]
    assert "photo not here" in before.text and "not where they were, or have changed" in before.text
    folder.rename(folder.with_name("elsewhere"))
    after = Page(written(path, tmp_path)[0])
    assert shown and not after.of("img") and "24 of these photos are not where they were" in after.text


@pytest.mark.parametrize("size", [(4000, 3000), (3, 2000), (1, 1), (96, 96)])
def test_a_thumbnail_is_never_larger_than_it_may_be(size):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    for side, most in ((SIDE, BYTES), (MAP_SIDE, 2000)):
        found = small(Image.fromarray(noise), "noise", side, most)
        assert max(found.width, found.height) <= min(side, max(size))
        assert len(base64.b64decode(found.uri.partition(",")[2])) <= most


POINT = {"accuracy": 0.6, "accuracy_ci": [0.5, 0.7], "draws": [0.6]}
RECORDED = {
    "near_duplicates": {"n": 2, "pairs": []},
    "adaptation": {
        "n_unlabelled": 50,
        "mmd2": 0.1234,
        "p_value": 0.005,
        "a_distance": 1.5,
        "kept": "cdan",
        "why": "far",
    },
    "label_budget": {
        "answer": "10 labels a class: more",
        "rows": [{"labels": n, "images": 3 * n, "linear_probe": POINT, "strategy": POINT} for n in (5, 10)],
    },
    "folds": {"k": 5, "n": 60, "accuracy": 0.61, "accuracy_ci": [0.5, 0.7]},
    "selection": {"why": "lp-ft is best on val"},
}
LAYER = {"op": "Conv", "amax": 5.5, "clipped": 0.001, "sqnr_db": 21.5, "kl_regained": 0.001, "macs_share": 0.5}
LAYER |= {"precision": "int8", "kept_float": None, "sqnr_n": 8, "effect_n": 8}


def test_what_training_and_export_recorded_is_told(make_bundle, tmp_path):
    unknown = {
        **LAYER,
        "sqnr_db": None,
        "kl_regained": None,
        "precision": None,
        "kept_float": "a reason",
        "effect_n": None,
    }
    layers = [
        {"node": "/a/conv", **LAYER},
        {"node": "/b/conv", **unknown},
        {"node": "/c/conv", **LAYER, "sqnr_db": -3.0},
    ]
    path = make_bundle(result=RECORDED, layers=layers)
    pair = {"image": "x/1.jpg", "split": "test", "like": "/home/zoe/2.jpg", "like_split": "train", "how": "plain"}
    Bundle.open(path).append_rows("near-duplicates", [json.dumps({**pair, "generation": 1})])
    page = check(written(path, tmp_path)[0], tmp_path)
    for said in ("2 val and test images look like", "x/1.jpg (test) is like 2.jpg (train)", "MMD² 0.1234 (p 0.005)"):
        assert said in page.text
    for said in ("Adaptation kept: cdan", "10 labels a class: more", "in 5 folds", "lp-ft is best on val", "3 layers"):
        assert said in page.text
    assert "A temperature of 1.30" in page.text and "from 0.250 to 0.120 on 60 test images" in page.text
    assert "How many labels are needed" in page.text and "c: -3.0 dB" in page.text


def test_a_failed_row_says_so_without_a_path(make_bundle, tmp_path):
    path = make_bundle()
    made = Bundle.open(path)
    record = made.artifact("graph", precision="int8")
    dead = row("tensorrt-trt10-int8", "tensorrt", "trt10", "int8", record["sha256"], 60, "test")
    dead = replace(
        dead, status="failed", error="no memory for /home/zoe/e.plan", latency_ms=None, latency_evidence=None
    )
    write_rows(made, [dead])
    page = check(written(path, tmp_path)[0], tmp_path)
    assert "failed: no memory for .../e.plan" in page.text


def test_fields_that_a_newer_bench_adds_are_shown(make_bundle, tmp_path):
    path = make_bundle()
    file = path / "runs/bench.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    ends = {"p50": [4.1, 5.2], "p90": None, "p95": None, "p99": None}
    lines[1] |= {"latency_ci_ms": ends, "ratio_p50": [0.5, 0.4, 0.6], "ratio_to": "torch-cpu-fp32-b1"}
    lines[1] |= {"noise": {"noisy": True, "why": ["a hypervisor took 9 % of the time"]}}
    lines[1] |= {"throughput_by_streams": {"4": {"throughput_ips": 777.0, "p50_ms": 5.0, "p99_ms": None, "n": 90}}}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = check(written(path, tmp_path)[0], tmp_path)
    assert "4.10 to 5.20" in page.text and "x 0.50 (0.40 to 0.60)" in page.text and "4 callers: 777" in page.text
    assert (
        "1 of 2 times were taken on a noisy machine (a hypervisor took 9 % of the time): trust the ratio" in page.text
    )
    lines[1]["noise"] |= {"waited": 0.9}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "not even ratios hold; measure again" in check(written(path, tmp_path)[0], tmp_path).text


def test_the_card_has_hugging_faces_sections_and_yaml_that_reads(make_bundle, tmp_path):
    made = Bundle.open(make_bundle(labels=ODD_LABELS, n=70))
    text = card(gather(made))
    _, front, body = text.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found["pipeline_tag"] == "image-classification" and "int8" in found["tags"]
    result = found["model-index"][0]["results"][0]
    assert result["task"]["type"] == "image-classification" and result["dataset"]["name"] == "photos of Zoë"
    assert 0 <= result["metrics"][0]["value"] <= 1
    sections = ("Model Details", "Uses", "Bias, Risks, and Limitations", "How to Get Started with the Model")
    for name in (*sections, "Training Details", "Evaluation", "Technical Specifications", "How to Reproduce"):
        assert f"\n## {name}\n" in body
    for name in ("Direct Use", "Out-of-Scope Use", "Training Data", "Training Procedure", "Results"):
        assert f"\n### {name}\n" in body
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {9} and len(table) == 2 + 4
    assert str(tmp_path) not in text and "/home/" not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a*b_c", "a\\*b\\_c"), ("<b>&", "&lt;b&gt;&amp;"), ("x\n# y", "x \\# y"), ("[l](u)|", "\\[l\\](u)\\|")],
)
def test_markdown_is_escaped(text, shown):
    assert markdown(text) == shown


def test_tensorboard_reads_the_runs_back(make_bundle, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = Bundle.open(make_bundle())
    result = report(made, ReportOptions(tensorboard=tmp_path / "runs"))
    report(made, ReportOptions(tensorboard=tmp_path / "runs"))  # a second export replaces the first
    assert result["tensorboard"]["runs"] == 5
    training = EventAccumulator(str(tmp_path / "runs/flowers/training")).Reload()
    assert [(e.step, e.value) for e in training.Scalars("training/val_accuracy")] == [
        (e["epoch"], pytest.approx(e["val_accuracy"])) for e in made.manifest["training"]["history"]
    ]
    int8 = EventAccumulator(str(tmp_path / "runs/flowers/onnxruntime-cpu-trt10-int8")).Reload()
    assert "bench/latency_ms/p50" not in int8.Tags()["scalars"]
    fp32 = EventAccumulator(str(tmp_path / "runs/flowers/onnxruntime-cpu-trt10-fp32")).Reload()
    assert fp32.Scalars("bench/latency_ms/p50")[0].value == pytest.approx(4.5995)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "nothing is asked for"),
        ({"html": "nowhere/page.html"}, "folder that is not there"),
        ({"card": "nowhere/card.md"}, "folder that is not there"),
        ({"html": "."}, "wants a file"),
        ({"html": "home of Zoë/flowers/manifest.json"}, "overwrite a file of the bundle"),
        ({"card": "linked/local.json"}, "overwrite a file of the bundle"),
        ({"html": "home of Zoë/flowers/runs/bench.jsonl"}, "overwrite a file of the bundle"),
        ({"tensorboard": "home of Zoë/flowers/manifest.json"}, "wants a folder"),
    ],
    ids=str,
)
def test_a_place_that_cannot_be_written_is_told_before_any_work(options, what, make_bundle, tmp_path):
    real = make_bundle()
    (tmp_path / "linked").symlink_to(real)
    before = {path: path.read_bytes() for path in real.rglob("*") if path.is_file()}
    for made in (Bundle.open(real), Bundle.open(tmp_path / "linked")):
        with pytest.raises(InputError, match=what):
            report(made, ReportOptions(**{name: tmp_path / place for name, place in options.items()}))
    assert {path: path.read_bytes() for path in real.rglob("*") if path.is_file()} == before


def test_a_bundle_that_travelled_has_a_page_all_the_same(make_bundle, tmp_path):
    path = make_bundle()
    (path / "local.json").unlink()
    page = check(written(path, tmp_path)[0], tmp_path)
    assert "edgetl finetune ... --to flowers" in page.text
    assert kept.read(Bundle.open(path)) is not None
