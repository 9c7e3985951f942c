"""What people are shown: names may hold anything, and a command that is shown can be pasted."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgetl.cli import adopt, export, inspect, pretrain
from edgetl.cli.console import shell


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_a_path_that_is_shown_is_one_word_of_a_shell_and_no_option(path: str) -> None:
    (word,) = shlex.split(shell(path))
    assert word.removeprefix("./") == path.removeprefix("./")
    assert not word.startswith("-")


def shown(show: Any, *arguments: Any) -> str:
    console = Console(file=io.StringIO(), width=300, color_system=None)
    show(console, *arguments)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


ODD = "my [red]flowers[/]"
MANIFEST: dict[str, Any] = {
    **{"format": 1, "generation": 1, "made_by": "finetune", "labels": ["[bold]rose", "[/]"], "model": {}},
    "preprocess": {"size": 32, "fit": "crop", "resize": 32, "interpolation": "bilinear"},
    **{"splits": {}, "training": {}, "artifacts": []},
}


def test_inspect_shows_names_with_brackets_as_they_are() -> None:
    text = shown(inspect._show, Path(ODD), MANIFEST)
    assert "[bold]rose, [/]" in text
    assert f"next: edgetl export '{ODD}' --int8" in text


@pytest.mark.parametrize(
    ("show", "arguments"),
    [
        (adopt._show, ({"bundle": ODD, "labels": [], "opset": 13, "n": {}}, True)),
        (
            pretrain._show,
            ({"val": None, "test": None, "bytes": 1, "seconds": 1.0, "backbone": "b", "labels": [], "file": ODD},),
        ),
    ],
)
def test_the_next_command_can_be_pasted(show: Any, arguments: tuple[Any, ...]) -> None:
    assert f" '{ODD}'" in shown(show, *arguments)


def test_a_backbone_that_was_there_already_has_no_seconds_to_show() -> None:
    known = {"val": None, "test": None, "bytes": 3_600_000, "backbone": "smallnet", "labels": ["a", "b"], "file": "f"}
    assert "smallnet, 2 classes: f  (3.6 MB, made before). " in shown(pretrain._show, {**known, "seconds": None})


def test_export_shows_a_bundle_with_brackets_as_it_is() -> None:
    assert f"Graphs in {ODD}" in shown(
        export._show, Path(ODD), {"artifacts": [{"kind": "engine", **ENGINE}], "guard": None}
    )


ENGINE = {"file": "e.plan", "bytes": 1, "runs_on": "here"}
