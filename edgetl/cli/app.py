"""The `edgetl` command: parse, call one function, print. Heavy modules load inside the commands."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Annotated

import typer

from edgetl import __version__
from edgetl.cli.launch import hush

app = typer.Typer(
    name="edgetl",
    help="Image folder in, proven engine out: fine-tune a pretrained vision backbone, export it, "
    "quantise it without losing accuracy unnoticed, build engines, measure everything.",
    epilog="Start here:  edgetl demo    then:  edgetl finetune photos --to models/mine",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# One row a command, in the order of --help; each module holds a function of the command's name.
COMMANDS = (
    "demo",
    "finetune",
    "adopt",
    "export",
    "build",
    "bench",
    "report",
    "pretrain",
    "rank",
    "domains",
    "classify",
    "inspect",
    "verify",
    "deploy",
    "doctor",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo("edgetl " + __version__)
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Tracebacks and more lines.")] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Warnings and errors only.")] = False,
) -> None:
    ctx.obj = {"verbosity": -1 if quiet else verbose}


def _help(command: Callable[..., object]) -> str:
    """The docstring, a line a paragraph: a terminal breaks lines where it is wide, and not where the source was."""
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


for _name in COMMANDS:
    _module = importlib.import_module("edgetl.cli." + _name)
    _command = getattr(_module, _name)
    app.command(_name, help=_help(_command), epilog=getattr(_module, "EXAMPLES", None))(_command)


def main() -> None:
    """Entry point of the `edgetl` script."""
    hush()
    app()
