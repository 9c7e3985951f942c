"""The GitHub Actions example of docs/ci.md: its commands are run, on a small bundle of our own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no stubs
from click.testing import Result
from typer.testing import CliRunner

from edgetl.bench import parse
from edgetl.cli.app import app

PAGE = (Path(__file__).parents[2] / "docs/ci.md").read_text(encoding="utf-8")
QUICK = {"10": "0.25"}  # seconds; a tenth is a turn, and a ratio wants six of them


def workflow() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])
    return found


def commands() -> list[list[str]]:
    """The words of each edgetl command, as a shell on the runner splits them."""
    steps = workflow()["jobs"]["gate"]["steps"]
    words = [shlex.split(step["run"]) for step in steps if "edgetl" in step.get("run", "")]
    assert [w[0] for w in words] == [".venv/bin/edgetl"] * 3
    return [w[1:] for w in words]


def here(words: list[str], places: dict[str, str], extra: dict[str, str]) -> list[str]:
    """The same command with places and seconds of the test's own, and some values changed."""
    return [places.get(word, extra.get(word, QUICK.get(word, word))) for word in words]


def edgetl(words: list[str]) -> Result:
    return CliRunner().invoke(app, words)


@pytest.fixture
def places(make_bundle: Callable[..., Path], make_folder: Callable[..., Path], tmp_path: Path) -> dict[str, str]:
    bundle = make_bundle(profile="cpu")
    images = make_folder(("a", "b", "c"), n=6, size=20, name="more", seed=3)
    names = ("bench.json", "report.html", "models/flowers.bench.json")
    return {
        "models/flowers": str(bundle),
        "test-images": str(images),
        **{name: str(tmp_path / Path(name).name) for name in names},
    }


def test_the_example_gates_and_compares(places: dict[str, str]) -> None:
    verify, gate, compare = commands()
    assert edgetl(here(verify, places, {})).exit_code == 0
    strict = edgetl(here(gate, places, {}))
    assert strict.exit_code == 3  # untrained weights: below 0.9
    assert "int8.accuracy<0.9: it is" in " ".join(strict.stderr.split())
    loose = {"int8.accuracy<0.9": "int8.accuracy<0", "int8.ratio_p50.hi>0.6": "int8.ratio_p50>1e6"}
    loose["int8.drop_pp>0.5"] = "int8.drop_pp>100"
    passed = edgetl(here(gate, places, loose))
    assert passed.exit_code == 0, passed.stderr
    Path(places["models/flowers.bench.json"]).write_text(Path(places["bench.json"]).read_text())
    compared = edgetl(here(compare, places, {}))
    assert compared.exit_code == 0, compared.stderr
    assert "Since" in compared.stdout
    page = Path(places["report.html"]).read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert len(json.loads(Path(places["bench.json"]).read_text())["rows"]) == 2


def test_every_condition_of_the_table_is_one() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(lines) == 7
    for line in lines:
        assert parse(line.split("`")[1])
