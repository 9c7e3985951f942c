"""`edgetl demo`: the whole line in a minute or two, on data and a backbone that ship with edgetl."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgetl.cli.console import JsonFlag, OutOption, session, tune_for_training

EXAMPLES = "Run it:     edgetl demo\n\nElsewhere:  edgetl demo --to try --json"


def demo(
    ctx: typer.Context,
    to: Annotated[Path, typer.Option("--to", help="Where everything is put.", metavar="DIR")] = Path("edgetl-demo"),
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Run the whole line on embedded data: fine-tune, export, quantise, build, bench.

    Handwritten digits (scikit-learn's load_digits), ten labelled images a class, and a small backbone
    pretrained on glyphs of machine fonts. No download, no GPU. May be run again in the same folder.
    """
    tune_for_training()
    # Before torch loads. One thread adds up in one order, so the figures are the same on any number of cores, and a
    # network this small gains next to nothing from a second one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with session(ctx, as_json, out) as run:
        from edgetl.cli.line import run_line, show_line

        result = run_line(run, to)
        run.done(result, show=lambda console: show_line(console, result))
