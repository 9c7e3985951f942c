"""`edgetl domains`: how far apart two sets of images are, and whether to adapt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, session, tune_for_training
from edgetl.cli.finetune import (
    DataRootOption,
    DeviceOption,
    FitOption,
    ImageSizeOption,
    SkipCorruptOption,
    folder_of,
)
from edgetl.spec import Fit

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "Embedded:    edgetl domains scans/old scans/new\n\n"
    "For photos:  edgetl domains a b --backbone mobilenet_v2 --weights FILE.pth\n\n"
    "A picture:   edgetl domains lab field --picture domains.png --projection tsne"
)


def domains(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="Images one has labels for: DATA, or a folder.", metavar="SOURCE")],
    target: Annotated[str, typer.Argument(help="Images the model will meet: DATA, or a folder.", metavar="TARGET")],
    backbone: Annotated[
        str | None, typer.Option(help="Whose features (default: the embedded one's).", metavar="NAME")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="embedded, auto (torchvision's, downloaded), none, or a state dict FILE.", metavar="W")
    ] = "embedded",
    image_size: ImageSizeOption = None,
    fit: FitOption = Fit.CROP,
    images: Annotated[int, typer.Option(help="At most this many of each side, drawn by content.")] = 1000,
    picture: Annotated[
        Path | None, typer.Option(help="Both sets in two dimensions: a .png or .svg.", metavar="FILE")
    ] = None,
    projection: Annotated[str, typer.Option(help="Of the picture: pca or tsne.")] = "pca",
    skip_corrupt: SkipCorruptOption = False,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the draw, the permutations and the halves.")] = 0,
    data_root: DataRootOption = None,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Measure how far apart two sets of images are: same domain, shifted (adapt), or far (transfer may hurt).

    MMD^2 with a permutation test, proxy A-distance and CORAL distance, on features of a pretrained backbone. Labels
    are not needed; class folders on both sides add distances by class.
    """
    with session(ctx, as_json, out) as run:
        tune_for_training()
        from edgetl.transfer import domains as stage
        from edgetl.transfer.pretrained import Wish

        wish = Wish(backbone, weights, image_size, fit, device, seed)
        options = stage.DomainOptions(wish, images, skip_corrupt, picture, projection)
        sides = [stage.read_side(folder_of(side, data_root, run.monitor), run.monitor) for side in (source, target)]
        result = stage.domains(sides[0], sides[1], options, run.monitor)
        run.done(result, show=lambda console: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    n, null, features = result["n"], result["null"], result["features"]
    table = Table(title=f"{n['source']} source and {n['target']} target images", title_justify="left")
    table.add_column("distance")
    table.add_column("value", justify="right")
    table.add_column("how to read it", overflow="fold")
    halves = f"two halves of the source stay below {null['halves_of_source_p95']:.4f} (95 %, {null['n']} images each)"
    table.add_row("MMD^2", f"{result['mmd2']:.4f}", f"{halves}; far from {result['far_from_mmd2']:g}")
    table.add_row("p", f"{result['p_value']:.3f}", f"of MMD^2, {null['permutations']} permutations")
    said = f"0: not to be told apart; 2: without error, however far (it saturates); p = {result['a_distance_p']:.2g}"
    table.add_row("A-distance", f"{result['a_distance']:.2f}", said)
    table.add_row("CORAL", f"{result['coral']:.3g}", "of the covariances; only for comparing on the same features")
    console.print(table)
    for name, found in (result["per_class"] or {}).items():
        value = "too few images" if found["mmd2"] is None else f"MMD^2 {found['mmd2']:.4f}"
        console.print(f"  {name}: {value} ({found['n_source']}, {found['n_target']})", markup=False, highlight=False)
    if n["in_both"]:
        console.print(f"{n['in_both']} images are in both sets.")
    origin = features["weights"].get("name") or features["weights"]["source"]
    said = f"Features: {features['backbone']} ({origin}) at {features['preprocess']['size']} px. "
    if features["weights"]["source"] == "embedded":
        said += "It has only ever seen glyphs: for photos, --backbone NAME --weights FILE (or auto) sees more. "
    console.print(f"{said}\nKernel: {result['kernel']}; {result['estimator']}.", markup=False, highlight=False)
    if "picture" in result:
        console.print(f"Picture: {result['picture']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"Verdict: [bold]{result['verdict']}[/]: {result['why']}", highlight=False, soft_wrap=True)
