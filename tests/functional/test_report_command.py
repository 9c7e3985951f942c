"""`edgetl report` as users run it: the whole line behind it, exit codes, and a page made of a real network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from edgetl.cli.app import app


def edgetl(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_a_bundle_of_nothing_but_a_graph_has_a_page(graph_bundle: Callable[..., Path], tiny_graph, tmp_path):
    path = graph_bundle({("cpu", "fp32"): tiny_graph(classes=5)})
    done = edgetl("report", path, "--html", tmp_path / "page.html", "--card", tmp_path / "card.md", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["ship"]["precision"] == "fp32" and found["html"]["bytes"] == (tmp_path / "page.html").stat().st_size
    assert any("edgetl bench bundle" in note for note in found["notes"])
    assert "edgetl bench bundle" in done.stderr
    assert (tmp_path / "card.md").is_file()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--html", "nowhere/page.html"), "folder that is not there"),
        ((), "nothing is asked for"),
    ],
)
def test_bad_places_are_one_line_and_exit_1(args, said, graph_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = edgetl("report", graph_bundle({}), *args)
    assert done.exit_code == 1
    assert said in done.stderr and done.stderr.count("error:") == 1
    assert not list(tmp_path.glob("**/*.html"))


def test_damage_is_one_line_or_a_note(graph_bundle, tiny_graph, tmp_path):
    path = graph_bundle({("cpu", "fp32"): tiny_graph(classes=5)})
    (path / "runs").mkdir()
    (path / "runs/bench.jsonl").write_text('{"at": "2026-01-01T00:00:00Z", "id": "torch')
    done = edgetl("report", path, "--html", tmp_path / "page.html")
    assert done.exit_code == 0 and "runs/bench.jsonl is damaged: line 1" in done.stderr.replace("\n", " ")
    assert "runs/bench.jsonl is damaged" in (tmp_path / "page.html").read_text()
    (path / "runs/answers.npz").write_bytes(b"PK\x03\x04 cut")
    done = edgetl("report", path, "--html", tmp_path / "second.html")
    assert done.exit_code == 1 and "answers are damaged" in done.stderr and "edgetl bench" in done.stderr
    assert not (tmp_path / "second.html").exists()


@pytest.mark.slow
def test_the_line_ends_in_a_page_with_maps_curves_and_layers(make_folder, tmp_path):
    photos = make_folder(classes=("left", "right", "wide"), n=40, size=48)
    bundle, page = tmp_path / "bundle", tmp_path / "page.html"
    for args in (
        ("finetune", photos, "--to", bundle, "--backbone", "smallnet", "--weights", "embedded", "--epochs", 2),
        ("export", bundle, "--int8", "--max-drop", 50),
        ("bench", bundle, "--seconds", 0.2),
        ("report", bundle, "--html", page, "--card", tmp_path / "card.md", "--tensorboard", tmp_path / "runs"),
    ):
        done = edgetl(*args)
        assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert len(text) < 5_000_000 and str(tmp_path) not in text and "Ship INT8" in text
    for name in ("losses", "accuracies", "probe", "matrix", "recalls", "reliability", "drops", "layers", "counts"):
        assert f'id="{name}-t"' in text, name
    assert text.count("warm colours mark what spoke") >= 1
    assert text.count("a training photo of") > 5
    assert (tmp_path / "runs/bundle/training").is_dir()
