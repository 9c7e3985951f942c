"""docs/cli.md beside the commands themselves: what scripts may rely on is all there, and is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from edgetl.cli.app import COMMANDS, app
from edgetl.measure.rows import ADDED, FIELDS
from edgetl.transfer.stage import FIELDS as OF_FINETUNE

PAGE = (Path(__file__).parents[3] / "docs/cli.md").read_text(encoding="utf-8")
OF_ALL = {"--json", "--out", "--help"}
OPTION = re.compile(r"--[a-z][a-z0-9-]*")


def section(command: str) -> str:
    """The page from the command's heading to the next one."""
    (found,) = re.findall(rf"^## {command}\b(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def options(command: str) -> set[str]:
    """Long names of a command's options, as typer has them."""
    group = typer.main.get_command(app)
    known = group.commands[command].params  # type: ignore[attr-defined]  # get_command's type is the plainer one
    return {name for option in known for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_on_the_page(command: str) -> None:
    assert options(command) - OF_ALL - set(OPTION.findall(section(command))) == set()


def test_the_page_names_no_command_and_no_option_that_is_not_there() -> None:
    assert set(re.findall(r"^## ([a-z]+)", PAGE, re.MULTILINE)) == set(COMMANDS)
    there = {name for command in COMMANDS for name in options(command)} | {"--version"}
    of_torchrun = {"--nproc-per-node"}
    assert set(OPTION.findall(PAGE)) - there - OF_ALL == of_torchrun


def test_a_commands_help_breaks_its_lines_where_the_terminal_ends() -> None:
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]  # as above
        paragraphs = command.help.split("\n\n")
        assert not [text for text in paragraphs if "\n" in text or not text.strip()]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_command_are_whole_lines_of_a_terminal_with_options_that_it_has(command: str) -> None:
    shown = typer.main.get_command(app).commands[command].epilog.split("\n\n")  # type: ignore[attr-defined]
    assert any(f"edgetl {command} " in f"{line} " for line in shown)
    for line in shown:
        assert len(line) <= 78 or "edgetl" not in line, line
        for called in re.findall(r"edgetl ([a-z]+)([^&|>]*)", line):
            assert set(OPTION.findall(called[1])) <= options(called[0]), line


@pytest.mark.parametrize(("command", "fields"), [("finetune", OF_FINETUNE), ("bench", (*FIELDS, *ADDED))])
def test_every_field_of_the_objects_is_on_the_page(command: str, fields: tuple[str, ...]) -> None:
    assert [name for name in fields if f'"{name}"' not in section(command)] == []
