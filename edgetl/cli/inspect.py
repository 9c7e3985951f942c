"""`edgetl inspect`: what is in this bundle, and how it came to be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, session

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = "Example:  edgetl inspect models/flowers        edgetl inspect models/flowers --json | jq .artifacts"


def inspect(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")],
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Show a bundle: model, labels, preprocessing, data splits, training result, graphs and engines.

    `--json` prints the manifest itself.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.bundle import Bundle

        opened = Bundle.open(bundle)
        run.done(opened.manifest, show=lambda console: _show(console, opened.path, opened.manifest))


def _show(console: Console, path: Path, manifest: dict[str, Any]) -> None:
    from rich.table import Table

    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(path, manifest):
        facts.add_row(f"[bold]{name}[/]", value)
    console.print(facts)
    graphs = Table(title="Graphs and engines", title_justify="left")
    for column in ("kind", "profile", "precision", "input", "size", "opset", "met", "file"):
        graphs.add_column(column, justify="right" if column == "size" else "left")
    for record in manifest["artifacts"]:
        if record["kind"] in ("graph", "engine"):
            graphs.add_row(*_artifact_cells(record), style="dim" if record.get("stale") else "")
    console.print(graphs if graphs.row_count else f"No graph yet; next: edgetl export {path} --int8")


def _facts(path: Path, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    labels = manifest["labels"]
    spec, training = manifest["preprocess"], manifest["training"]
    shown = ", ".join(labels[:8]) + (f", ... ({len(labels)} in all)" if len(labels) > 8 else "")
    splits = ", ".join(f"{name} {facts['n']}" for name, facts in manifest["splits"].items())
    facts = [
        ("bundle", f"{path}  (format {manifest['format']}, generation {manifest['generation']})"),
        ("made by", f"edgetl {manifest['made_by']}"),
        (
            "model",
            f"{manifest['model'].get('backbone') or 'adopted graph'} {manifest['model'].get('backbone_args') or ''}",
        ),
        ("labels", shown),
        ("input", f"{spec['size']} px, {spec['fit']} after resize to {spec['resize']} ({spec['interpolation']})"),
        ("images", splits or "none recorded"),
    ]
    if training.get("chosen"):
        facts.append(("strategy", f"{training.get('strategy')}, kept: {training['chosen']}"))
    for name in ("linear_probe", "val", "test"):
        metrics = (training.get("metrics") or {}).get(name)
        if metrics:
            low, high = metrics["accuracy_ci"]
            facts.append(
                (f"{name} accuracy", f"{metrics['accuracy']:.4f}  [{low:.4f}, {high:.4f}]  n = {metrics['n']}")
            )
    return facts


def _artifact_cells(record: dict[str, Any]) -> list[str]:
    met = record.get("met")
    return [
        record["kind"] + (" (stale)" if record.get("stale") else ""),
        str(record.get("profile") or ""),
        str(record.get("precision") or ""),
        str(record.get("input") or ""),
        f"{record['bytes'] / 1e6:.2f} MB",
        str(record.get("opset") or ""),
        "" if met is None else ("yes" if met else "NO"),
        str(record["file"]),
    ]
