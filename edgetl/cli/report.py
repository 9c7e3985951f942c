"""`edgetl report`: one page that says what to ship, what it costs, how sure that is, and how to make it again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, session

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "A page:    edgetl report models/flowers --html flowers.html\n\n"
    "And more:  edgetl report models/flowers --card CARD.md --tensorboard runs"
)

HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="The page; one file that needs no network.", metavar="FILE")
]
CardOption = Annotated[
    Path | None, typer.Option("--card", help="A model card in Markdown (Hugging Face's sections).", metavar="FILE.md")
]
TensorboardOption = Annotated[
    Path | None, typer.Option("--tensorboard", help="Training and bench figures as TensorBoard runs.", metavar="DIR")
]
MapsOption = Annotated[bool, typer.Option("--maps/--no-maps", help="Class-activation maps of some photos.")]


def report(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")],
    html: HtmlOption = None,
    card: CardOption = None,
    tensorboard: TensorboardOption = None,
    maps: MapsOption = True,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Write what the bundle knows as one page: which variant to ship, what it costs, how sure, measured on what.

    Light and dark, on a phone and printed; photos only as thumbnails, no path of this machine. Works with what
    there is, and says which command adds the rest.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.bundle import Bundle

        opened = Bundle.open(bundle)
        from edgetl.report.stage import ReportOptions
        from edgetl.report.stage import report as write

        result = write(opened, ReportOptions(html, card, tensorboard, maps), run.monitor)
        run.done(result, show=lambda console: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    for name, word in (("html", "page"), ("card", "card")):
        if result[name]:
            size = result[name]["bytes"] / 1e6
            console.print(
                f"{word:<6} {result[name]['file']}  ({size:.2f} MB)", soft_wrap=True, highlight=False, markup=False
            )
    if result["tensorboard"]:
        found = result["tensorboard"]
        line = f"runs   {found['folder']}  ({found['runs']}); tensorboard --logdir {found['folder']}"
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    ship = result["ship"]
    line = f"ship   {ship['precision']} ({ship['profile']})" if ship else "ship   nothing yet; the page says why"
    console.print(f"{line}  ({result['seconds']:.1f} s)", highlight=False, markup=False)
