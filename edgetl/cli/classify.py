"""`edgetl classify`: what a bundle says of some images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.candidates import ADOPTED, PRECISIONS, newest_graphs, open_checkpoint, open_graph
from edgetl.cli.console import JsonFlag, OutOption, session

if TYPE_CHECKING:
    from edgetl.bundle import Bundle
    from edgetl.runtime import Backend

EXAMPLES = (
    "Example:  edgetl classify models/flowers rose.jpg tulip.png\n\n"
    "          edgetl classify models/flowers *.jpg --precision int8 --json | jq -r '.predictions[].label'"
)


def classify(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")],
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8: the graph of that precision.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes listed for each image.")] = 5,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Name the class of each image.

    Runs the fp32 graph with onnxruntime, or the checkpoint with PyTorch where nothing was exported yet.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.bundle import Bundle
        from edgetl.images import read_bytes
        from edgetl.runtime.classify import classify as classify_one

        opened = Bundle.open(bundle)
        encoded = [(path, read_bytes(path)) for path in images]  # a wrong path fails before a model is loaded
        backend = open_backend(opened, precision)
        predictions: list[dict[str, Any]] = []
        try:
            for path, data in encoded:
                found = classify_one(backend, data, opened.preprocess, opened.labels, top, path)
                predictions.append({"image": str(path), **found[0], "top": found})
                run.monitor.progress("images", len(predictions), len(encoded))
        finally:
            backend.close()
        run.done({"predictions": predictions}, show=lambda console: _show(console, predictions))


def open_backend(bundle: Bundle, precision: str | None) -> Backend:
    """The newest graph of `precision` (fp32 unless asked), or what the bundle was made from, where none is fp32.

    Raises InputError for an unknown precision, BundleError for one that was not exported.
    """
    from edgetl.errors import BundleError
    from edgetl.spec import Precision, parse_enum

    wanted = str(parse_enum(Precision, precision or PRECISIONS[0], "precision"))
    graphs = newest_graphs(bundle, None, (wanted,))
    if graphs:
        return open_graph(bundle, graphs[-1])()
    if wanted == "fp32" and bundle.artifacts("checkpoint"):
        return open_checkpoint(bundle)()
    if wanted == "fp32" and bundle.artifacts(ADOPTED):
        return open_graph(bundle, bundle.artifact(ADOPTED))()
    there = ", ".join(f"{r['profile']}/{r['precision']}" for r in newest_graphs(bundle, None)) or "no graphs"
    do = f"it has: {there}; make one with `edgetl export {bundle.path} --{wanted}`"
    raise BundleError("the bundle has no graph of this precision", wanted, do)


def _show(console: Any, predictions: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table()
    for name, justify in (("image", "left"), ("class", "left"), ("probability", "right"), ("then", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]  # two literals
    for found in predictions:
        others = ", ".join(f"{o['label']} {o['probability']:.3f}" for o in found["top"][1:3])
        table.add_row(*map(_plain, (found["image"], found["label"], f"{found['probability']:.3f}", others)))
    console.print(table)


def _plain(text: str) -> str:
    """File and class names may hold brackets, which rich would read as a style."""
    from rich.markup import escape

    return escape(text)
