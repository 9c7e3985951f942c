"""`edgetl rank`: which pretrained backbone to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, session, shell, tune_for_training
from edgetl.cli.finetune import (
    BackboneArgsOption,
    DataArgument,
    DataRootOption,
    DeviceOption,
    FitOption,
    GroupByOption,
    ImageSizeOption,
    SeedOption,
    SkipCorruptOption,
    TestFractionOption,
    ValFractionOption,
    folder_of,
)
from edgetl.errors import InputError
from edgetl.spec import Fit

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "Of files:      edgetl rank photos --weights a.pth b.pth --image-size 128\n\n"
    "Of this disk:  edgetl rank photos --budget-ms 20 --budget-mb 15\n\n"
    "Of the web:    edgetl rank photos --download --backbone resnet18"
)
STATE_DICTS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".tar")
DEFAULT_WEIGHTS = ("embedded", "auto")
# The table's columns: heading, and what stands below it.
_FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "best\n(probe)\n%": lambda row: f"{100 * row['stage_accuracy']:.1f}\n({100 * row['probe_accuracy']:.1f})",
    "LogME": lambda row: f"{row['logme']:.3f}",
    "H-\nscore": lambda row: f"{row['h_score']:.2f}",
    "kNN\n%": lambda row: f"{100 * row['knn_accuracy']:.1f}",
    "LEEP": lambda row: "-" if row["leep"] is None else f"{row['leep']:.2f}",
    "params\nM": lambda row: f"{row['params'] / 1e6:.2f}",
    "MACs\nM": lambda row: f"{row['macs'] / 1e6:.0f}",
    "MB\n(int8)": lambda row: f"{row['size_fp32_mb']:.1f}\n({row['size_int8_mb']:.1f})",
    "ms": lambda row: f"{row['latency_ms']:.1f}",
}
_WIDE = 108  # columns of a terminal that takes all of them beside the names
_NARROW = ("best\n(probe)\n%", "MACs\nM", "MB\n(int8)", "ms")  # what decides; rich would squeeze the names to nothing


MoreArgument = Annotated[
    list[str] | None, typer.Argument(help="More weights files, after --weights FILE.", metavar="FILE")
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="State dict FILEs (.pth, .safetensors), embedded, auto (torchvision's on this disk) or none; "
        "repeatable. Default: embedded and auto.",
        metavar="W...",
    ),
]
BackboneOption = Annotated[
    list[str] | None, typer.Option(help="Only these networks, or what a file is of. Repeatable.", metavar="NAME")
]
BudgetMsOption = Annotated[float | None, typer.Option(help="Leave out what is slower here.", metavar="MS")]
BudgetMbOption = Annotated[float | None, typer.Option(help="Leave out larger files (10^6 bytes).", metavar="MB")]
PrecisionOption = Annotated[str, typer.Option(help="Of the file that --budget-mb speaks of: fp32 or int8.")]
DownloadOption = Annotated[
    bool, typer.Option("--download", help="Fetch torchvision's weights: --backbone's, or of small networks.")
]
ImagesOption = Annotated[
    int | None, typer.Option(help="At most this many training images, class-balanced. Default: 1000, or 5 a class.")
]


def rank(
    ctx: typer.Context,
    data: DataArgument,
    more: MoreArgument = None,
    weights: WeightsOption = None,
    backbone: BackboneOption = None,
    backbone_args: BackboneArgsOption = "",
    budget_ms: BudgetMsOption = None,
    budget_mb: BudgetMbOption = None,
    precision: PrecisionOption = "fp32",
    download: DownloadOption = False,
    images: ImagesOption = None,
    image_size: ImageSizeOption = None,
    fit: FitOption = Fit.CROP,
    val_fraction: ValFractionOption = 0.15,
    test_fraction: TestFractionOption = 0.15,
    group_by: GroupByOption = "",
    skip_corrupt: SkipCorruptOption = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    data_root: DataRootOption = None,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Rank pretrained backbones for your images before any training, and say what each costs.

    Scores come from one pass over training images: cross-validated linear probes of the features and of the maps
    at five depths (the best one ranks), LogME, H-score, kNN, and LEEP and NCE where the weights have their
    classifier. Val and test are not looked at.
    """
    with session(ctx, as_json, out) as run:
        tune_for_training()
        from edgetl.images import ReadOptions, read_data
        from edgetl.transfer.rank import RankOptions, Search
        from edgetl.transfer.rank import rank as stage

        source, chosen = sorted_out(data, more or [], weights or [])
        named = tuple(backbone or ())
        search = Search(chosen, named, backbone_args, image_size, fit, device, seed, download)
        options = RankOptions(search, images, budget_ms, budget_mb, precision, skip_corrupt)
        source = folder_of(source, data_root, run.monitor)
        reading = ReadOptions(seed, val_fraction, test_fraction, group_by)
        result = stage(read_data(source, reading, run.monitor), options, run.monitor)
        also = f" --fit {fit}" * (fit is not Fit.CROP) + f" --group-by {shell(group_by)}" * bool(group_by)
        run.done(result, show=lambda console: _show(console, result, source, also))


def sorted_out(data: str, more: list[str], weights: list[str]) -> tuple[str, tuple[str, ...]]:
    """(DATA, weights): `--weights a.pth b.pth` leaves b.pth among the arguments, before or after DATA.

    Raises InputError where no argument, or more than one, is DATA.
    """
    arguments = [data, *more]
    files = [a for a in arguments if weights and a.lower().endswith(STATE_DICTS)]
    rest = [a for a in arguments if a not in files]
    if len(rest) != 1:
        do = "DATA is one folder, CSV or torchvision:NAME; weights files follow --weights"
        raise InputError("one DATA is wanted", ", ".join(rest) or "none", do)
    return rest[0], (*weights, *files) or DEFAULT_WEIGHTS


def _show(console: Console, result: dict[str, Any], source: str, also: str) -> None:
    if result["rows"]:
        _show_rows(console, result)
    if result["over_budget"]:
        names_over = ", ".join(f"{r['backbone']} ({_short(r['weights'])})" for r in result["over_budget"])
        console.print(f"Over budget, not scored: {names_over}", markup=False, highlight=False)
    missing = result["needs_download"]
    if missing:
        console.print(
            f"{len(missing)} networks of torchvision need a download and were not ranked, such as "
            f"{', '.join(missing[:3])}: --download (with --backbone NAME) fetches.",
            highlight=False,
        )
    if result["rows"]:
        best = result["rows"][0]
        given = ",".join(f"{name}={value!r}" for name, value in best["backbone_args"].items())
        arguments = f" --backbone-args {shell(given)}" if given else ""
        size = f" --image-size {best['image_size']}{also}"
        words = f"--backbone {best['backbone']}{arguments} --weights {shell(best['weights'])}{size} --to BUNDLE"
        line = f"edgetl finetune {shell(source)} {words}"
        console.print(f"Next: {line}", markup=False, highlight=False, soft_wrap=True)


def _show_rows(console: Console, result: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    n = result["n"]
    table = Table(title=f"On {n['images']} training images of {n['classes']} classes", title_justify="left")
    table.add_column("backbone\nweights", overflow="fold", min_width=24)
    shown = [name for name in _FIGURES if console.width >= _WIDE or name in _NARROW]
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("front", justify="center", no_wrap=True)
    for row in result["rows"]:
        name = f"{row['backbone']}\n[dim]{escape(_short(row['weights']))}[/]"
        table.add_row(name, *(_FIGURES[figure](row) for figure in shown), "*" if row["pareto"] else "")
    console.print(table)
    clock = "this machine's GPU" if result["latency_evidence"] == "host-gpu" else "one thread of this machine's CPU"
    said = (
        f"best: of the probes at several depths; it ranks (95 %: ± {_half_width(result['rows'])} points).",
        "Within that the architecture decides, by its published accuracy on ImageNet. probe: of what the head sees.",
        f"ms: one image, PyTorch fp32, {clock}. int8: estimated from the layers.",
        "front: no other is as accurate, as fast and as small.",
    )
    console.print(*said, highlight=False)
    if len(shown) < len(_FIGURES):
        console.print("LogME, H-score, kNN, LEEP and parameters: with --json, or in a wider terminal.", highlight=False)


def _short(weights: str) -> str:
    return Path(weights).name if weights not in ("auto", "embedded", "none") else weights


def _half_width(rows: list[dict[str, Any]]) -> str:
    widths = sorted({f"{50 * (row['probe_ci'][1] - row['probe_ci'][0]):.1f}" for row in rows}, key=float)
    return " to ".join(dict.fromkeys((widths[0], widths[-1])))
