"""`edgetl adopt`: bring your own ONNX model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, session, shell

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "Adopt:   edgetl adopt m.onnx --labels l.txt --preprocess p.json --to models/x\n\n"
    'p.json:  {"size": 224, "resize": 256, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
)


def adopt(
    ctx: typer.Context,
    model: Annotated[Path, typer.Argument(help="An fp32 ONNX classifier, float32 NCHW in.", metavar="MODEL.onnx")],
    labels: Annotated[Path, typer.Option(help="One label a line in class order, or a JSON list.", metavar="FILE")],
    preprocess: Annotated[Path, typer.Option(help="JSON: size, resize, mean, std, ...", metavar="FILE")],
    to: Annotated[Path, typer.Option("--to", help="The bundle to make.", metavar="BUNDLE")],
    data: Annotated[
        str | None, typer.Option(help="Images for calibration, guard and golden cases.", metavar="DATA")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="A new generation of a bundle that is there.")] = False,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Make a bundle of an ONNX model from elsewhere; its FP32 graph becomes the reference.

    The normalisation of the Preprocess is folded into the graph, so that it takes 0-255 as every graph here.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.graph import AdoptOptions
        from edgetl.graph import adopt as adopt_graph

        options = AdoptOptions(model, labels, preprocess, data, overwrite)
        result = adopt_graph(to, options, run.monitor)
        run.done(result, show=lambda console: _show(console, result, data is not None))


def _show(console: Console, result: dict[str, Any], has_data: bool) -> None:
    counts = ", ".join(f"{name} {n}" for name, n in result["n"].items() if n) or "no images"
    line = f"{result['bundle']}  {len(result['labels'])} classes, opset {result['opset']}, {counts}"
    console.print(line, soft_wrap=True, markup=False)
    more = "" if has_data else " --calib DATA --guard-data DATA"
    line = f"Next: edgetl export {shell(result['bundle'])} --int8{more}"
    console.print(line, highlight=False, soft_wrap=True, markup=False)
