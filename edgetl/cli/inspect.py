"""`edgetl inspect`: what is in this bundle, and how it came to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, session, shell
from edgetl.cli.layers import show as show_layers
from edgetl.cli.layers import to_csv
from edgetl.errors import InputError
from edgetl.report.xray import xray_of
from edgetl.spec import Profile
from edgetl.target import parse_target

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "Look:     edgetl inspect models/flowers\n\n"
    "Scripts:  edgetl inspect models/flowers --json | jq .artifacts\n\n"
    "X-ray:    edgetl inspect models/flowers --layers --top 10"
)

ProfileOption = Annotated[Profile | None, typer.Option(help="With --layers: the int8 graph of this profile.")]
TargetOption = Annotated[
    str | None, typer.Option(help="With --layers: the int8 graph for this target (jetpack5, ...).", metavar="NAME")
]


def inspect(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")],
    layers: Annotated[bool, typer.Option("--layers", help="The int8 graph layer by layer, the worst first.")] = False,
    profile: ProfileOption = None,
    target: TargetOption = None,
    top: Annotated[int | None, typer.Option(help="With --layers: so many rows.", min=1, metavar="N")] = None,
    csv: Annotated[Path | None, typer.Option(help="With --layers: write the rows here.", metavar="FILE")] = None,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Show a bundle: model, labels, preprocessing, data splits, training result, graphs and engines.

    `--json` prints the manifest itself. `--layers` is the X-ray of the newest int8 graph: per layer its range,
    what that clips, its quantisation noise, what the network regains if it stays in float, and what it runs in.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.bundle import Bundle, atomic_write

        wish = {"--profile": profile, "--target": target, "--top": top, "--csv": csv}
        if not layers:
            _refuse(wish)
            opened = Bundle.open(bundle)
            run.done(opened.manifest, show=lambda console: _show(console, opened.path, opened.manifest))
            return
        result = xray_of(Bundle.open(bundle), _profile(profile, target), top)
        if csv is not None:
            atomic_write(csv, to_csv(result["layers"]).encode("utf-8"))
        run.done(result, show=lambda console: show_layers(console, result))


def _refuse(wish: Mapping[str, object]) -> None:
    for option, value in wish.items():
        if value is not None:
            raise InputError(option + " speaks of the layers of an int8 graph", value, "say --layers too")


def _profile(profile: Profile | None, target: str | None) -> str | None:
    if target is None:
        return None if profile is None else profile.value
    named = parse_target(target).profile
    if profile is not None and profile.value != named:
        do = "give one of them"
        raise InputError("--profile and --target name two graphs", f"{profile}, {target} ({named})", do)
    return named


def _show(console: Console, path: Path, manifest: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(path, manifest):
        facts.add_row(f"[bold]{name}[/]", escape(value))
    console.print(facts)
    graphs, files = Table(title="Graphs and engines", title_justify="left"), []
    for column in ("kind", "profile", "precision", "input", "size", "opset", "met"):
        graphs.add_column(column, justify="right" if column == "size" else "left")
    for record in manifest["artifacts"]:
        if record["kind"] in ("graph", "engine"):
            graphs.add_row(*_artifact_cells(record), style="dim" if record.get("stale") else "")
            files.append(f"{record.get('precision') or '':9} {record['file']}")
    if graphs.row_count:
        console.print(graphs)
        for line in files:  # below the table, where no terminal is too narrow for a path
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    else:
        console.print(f"No graph yet; next: edgetl export {shell(path)} --int8", soft_wrap=True, markup=False)


def _facts(path: Path, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    from edgetl.measure.confidence import most_promised

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
    confidence = manifest.get("confidence")
    if confidence:
        promised = most_promised(confidence["abstain"])
        most = f"; abstaining, a precision of {promised:g} at most" if promised else ""
        facts.append(
            ("confidence", f"temperature {confidence['temperature']:.3f}, on {confidence['val']['n']} images{most}")
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
    ]
