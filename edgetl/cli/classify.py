"""`edgetl classify`: what a bundle says of some images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.candidates import ADOPTED, PRECISIONS, Record, newest_graphs, open_checkpoint, open_graph
from edgetl.cli.console import JsonFlag, OutOption, session
from edgetl.cli.explanations import Explanations

if TYPE_CHECKING:
    from rich.console import Console

    from edgetl.bundle import Bundle
    from edgetl.runtime import Backend

EXAMPLES = (
    "Name them:  edgetl classify models/flowers rose.jpg tulip.png\n\n"
    "Scripts:    edgetl classify models/flowers *.jpg --precision int8 --json\n\n"
    "Why:        edgetl classify models/flowers rose.jpg --explain maps\n\n"
    "When sure:  edgetl classify models/flowers rose.jpg --min-precision 0.95"
)

ExplainOption = Annotated[
    Path | None, typer.Option(help="Save class-activation maps as pictures (PNG) in this folder.", metavar="DIR")
]
MinPrecision = Annotated[
    float | None,
    typer.Option(help="Abstain where fewer answers would be right (default: as fine-tuned).", metavar="SHARE"),
]


def classify(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")],
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8: the graph of that precision.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes listed for each image.")] = 5,
    min_precision: MinPrecision = None,
    explain: ExplainOption = None,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Name the class of each image.

    Runs the fp32 graph with onnxruntime, or the checkpoint with PyTorch where nothing was exported yet.
    Probabilities are calibrated where the bundle knows its temperature, whatever the graph's own output is.
    The maps of --explain are the PyTorch checkpoint's, of the class that was named.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.bundle import Bundle
        from edgetl.images import read_bytes
        from edgetl.measure.confidence import abstain_below, temperature_left, why_not
        from edgetl.runtime.classify import classify as classify_one

        opened = Bundle.open(bundle)
        abstain = abstain_below(opened.manifest, min_precision)
        encoded = [(path, read_bytes(path)) for path in images]  # a wrong path fails before a model is loaded
        record = answering(opened, precision)
        temperature = temperature_left(opened.manifest, record)
        threshold = (abstain or {}).get("threshold") or 0.0
        if abstain and abstain["threshold"] is None:
            run.monitor.warn(f"every image is answered: {why_not(abstain)}")
        explanations = Explanations(opened, explain, run.monitor) if explain else None
        backend = open_record(opened, record)
        predictions: list[dict[str, Any]] = []
        try:
            for path, data in encoded:
                found = classify_one(backend, data, opened.preprocess, opened.labels, top, path, temperature)
                abstained = found[0]["probability"] < threshold
                prediction = {"image": str(path), **found[0], "abstained": abstained, "top": found}
                if explanations:
                    prediction["explanation"] = str(explanations.save(path, data, found[0]["label"]))
                predictions.append(prediction)
                run.monitor.progress("images", len(predictions), len(encoded))
        finally:
            backend.close()
        result = {"predictions": predictions, "confidence": _applied(opened.manifest, abstain)}
        run.done(result, show=lambda console: _show(console, result))


def answering(bundle: Bundle, precision: str | None) -> Record:
    """The newest graph of `precision` (fp32 unless asked), or what the bundle was made from, where none is fp32.

    Raises InputError for an unknown precision, BundleError for one that was not exported.
    """
    from edgetl.errors import BundleError
    from edgetl.spec import Precision, parse_enum

    wanted = str(parse_enum(Precision, precision or PRECISIONS[0], "precision"))
    graphs = newest_graphs(bundle, None, (wanted,))
    if graphs:
        return graphs[-1]
    for origin in ("checkpoint", ADOPTED):
        if wanted == "fp32" and bundle.artifacts(origin):
            return bundle.artifact(origin)
    there = ", ".join(f"{r['profile']}/{r['precision']}" for r in newest_graphs(bundle, None)) or "no graphs"
    do = f"it has: {there}; make one with `edgetl export {bundle.path} --{wanted}`"
    raise BundleError("the bundle has no graph of this precision", wanted, do)


def open_record(bundle: Bundle, record: Record) -> Backend:
    """The backend that runs a graph of the bundle, or its checkpoint."""
    return open_checkpoint(bundle)() if record["kind"] == "checkpoint" else open_graph(bundle, record)()


def _applied(manifest: Record, abstain: Record | None) -> Record | None:
    """What the probabilities and abstentions rest on; None where the bundle says nothing of them."""
    known = manifest.get("confidence")
    if not known:
        return None
    return {"temperature": known["temperature"], "n": known["val"]["n"], "abstain": abstain}


def _show(console: Console, result: Record) -> None:
    from rich.table import Table

    table = Table()
    for name, justify in (("image", "left"), ("class", "left"), ("probability", "right"), ("then", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]  # two literals
    for found in result["predictions"]:
        others = ", ".join(f"{o['label']} {o['probability']:.3f}" for o in found["top"][1:3])
        label = f"abstained ({found['label']})" if found["abstained"] else found["label"]
        table.add_row(*map(_plain, (found["image"], label, f"{found['probability']:.3f}", others)))
    console.print(table)
    if any("explanation" in found for found in result["predictions"]):
        folder = Path(result["predictions"][0]["explanation"]).parent
        console.print(f"what spoke for each class: {folder}", highlight=False, markup=False, soft_wrap=True)
    applied = result["confidence"]
    if applied:
        said = f"calibrated on {applied['n']} validation images, temperature {applied['temperature']:.2f}"
        console.print(f"(probabilities: {said})", highlight=False)
        _show_abstention(console, applied["abstain"])


def _show_abstention(console: Console, row: Record | None) -> None:
    if row is None or row["threshold"] is None:
        return
    promise = f"so that {row['precision']:.1%} of the answers are right"
    line = f"(abstains below {row['threshold']:.3f}, {promise}; on val it answered {row['coverage']:.0%})"
    console.print(line, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """File and class names may hold brackets, which rich would read as a style."""
    from rich.markup import escape

    return escape(text)
