"""`edgetl build`: an engine from the bundle's graph, and the proof of what its layers run in."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, session
from edgetl.spec import Precision

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "Here:    edgetl build models/flowers --precision int8\n\n"
    "No GPU:  edgetl build models/flowers --precision int8 --with tensorrt-rtx"
)


class Builder(StrEnum):
    """Whose builder."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


def build(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")],
    precision: Annotated[Precision, typer.Option("--precision", help="Of the graph to build; made by `export`.")],
    builder: Annotated[
        Builder, typer.Option("--with", help="tensorrt-rtx builds ahead of time for RTX GPUs, without a GPU here.")
    ] = Builder.TENSORRT,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Which graph: jetpack5, jetpack6.0, jetpack6, jetpack7, tensorrt.", metavar="T"),
    ] = None,
    batch: Annotated[
        str, typer.Option("--batch", help="MIN,OPT,MAX images at a time.", metavar="MIN,OPT,MAX")
    ] = "1,1,8",
    workspace: Annotated[
        int, typer.Option("--workspace", help="Scratch memory limit; 0: TensorRT's own.", metavar="MIB", min=0)
    ] = 0,
    level: Annotated[
        int | None,
        typer.Option("--level", help="Builder optimisation level; higher takes longer.", metavar="0-5", min=0, max=5),
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="Read, and written back.", metavar="FILE", dir_okay=False)
    ] = None,
    allow_unmet: Annotated[
        bool, typer.Option("--allow-unmet", help="Build a graph that missed its accuracy contract.")
    ] = False,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Build an engine on this machine, or reuse the one with an identical key.

    The precision is the graph's; the builder is never asked for another. What each layer really runs in
    is read back and recorded. An engine fits one TensorRT version, GPU and platform: build on the device.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.engine import BuildOptions
        from edgetl.engine import build as build_engine
        from edgetl.spec import BatchProfile

        options = BuildOptions(
            precision=precision,
            flavour=builder.value.replace("-", "_"),
            target=target,
            batch=BatchProfile.parse(batch),
            workspace_mib=workspace,
            level=-1 if level is None else level,
            timing_cache=timing_cache,
            allow_unmet=allow_unmet,
        )
        result = build_engine(bundle, options, run.monitor)
        run.done(result, show=lambda console: _show(console, bundle, result["artifacts"][0]))


def _show(console: Console, bundle: Path, engine: dict[str, Any]) -> None:
    from rich.table import Table

    layers = ", ".join(f"{count} {precision}" for precision, count in engine["layers"].items() if count)
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("engine", f"{bundle / engine['file']}  ({engine['bytes'] / 1e6:.1f} MB)"),
        ("graph", f"{engine['profile']} {engine['precision']}, batch {engine['key']['batch']}"),
        ("runs on", engine["runs_on"]),
        ("layers", f"{layers}  (those that multiply)"),
        ("reused", "yes, its key is identical" if engine["reused"] else "no, built now"),
    ):
        table.add_row(f"[bold]{name}[/]", value)
    console.print(table)
