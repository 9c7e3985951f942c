"""`edgetl export`: graphs from the bundle's checkpoint, INT8 under an accuracy contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, Session, session
from edgetl.errors import ContractUnmet
from edgetl.spec import InputKind

if TYPE_CHECKING:
    from rich.console import Console

    from edgetl.engine import BuildOptions
    from edgetl.graph import ExportOptions
    from edgetl.monitor import Monitor

EXAMPLES = (
    "Jetson:     edgetl export models/flowers --int8\n\n"
    "Older one:  edgetl export models/flowers --int8 --target jetpack5 --max-drop 1\n\n"
    "CPU:        edgetl export models/flowers --int8 --target cpu\n\n"
    "A gate:     edgetl export models/flowers --int8 --confident --guard-data more"
)


class Target(StrEnum):
    """Where the graphs will run."""

    JETPACK5 = "jetpack5"
    JETPACK60 = "jetpack6.0"
    JETPACK6 = "jetpack6"
    JETPACK7 = "jetpack7"
    TENSORRT = "tensorrt"
    CPU = "cpu"


class OutputKind(StrEnum):
    """What the graph gives."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


class GuardKind(StrEnum):
    """What the drop is measured by."""

    LABELS = "labels"
    AGREEMENT = "agreement"


class RescueKind(StrEnum):
    """How far the search for an INT8 graph that keeps the contract may go."""

    NONE = "none"
    EXCLUDE = "exclude"
    QAT = "qat"


Bundle = Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")]
Calib = Annotated[
    str | None, typer.Option(help="Images to calibrate on. Default: the bundle's calibration set.", metavar="DATA")
]
CalibSize = Annotated[str, typer.Option(help="How many; auto stops when the ranges have settled.", metavar="N|auto")]
Method = Annotated[str, typer.Option(help="auto, max, entropy, percentile or mse; auto keeps what agrees best.")]
MaxDrop = Annotated[float, typer.Option(help="Accuracy that INT8 may cost.", metavar="POINTS")]
MaxClassDrop = Annotated[float | None, typer.Option(help="The same for the worst class.", metavar="POINTS")]
Confident = Annotated[bool, typer.Option("--confident", help="The interval's upper end must meet it too.")]
Guard = Annotated[GuardKind, typer.Option(help="Measure against labels, or agreement on unlabelled photos.")]
GuardData = Annotated[str | None, typer.Option(help="Images to judge on. Default: the val split.", metavar="DATA")]
Rescue = Annotated[
    RescueKind,
    typer.Option(help="none: the plain graph; exclude: also leave harmful layers in float; qat: also train."),
]
Input = Annotated[InputKind, typer.Option("--input", help="float32 NCHW 0-255, or uint8 NHWC.")]
Output = Annotated[OutputKind, typer.Option(help="probabilities puts a Softmax at the end.")]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="With probabilities: the bundle's temperature goes into the graph.")
]
Engine = Annotated[bool, typer.Option("--engine", help="Also build the engine of the last graph made.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 takes all.", min=0)]
AllowUnmet = Annotated[bool, typer.Option("--allow-unmet", help="Exit 0 although the contract is missed.")]


def export(
    ctx: typer.Context,
    bundle: Bundle,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also write the FP16 graph.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Also write FP16 and INT8 and judge the loss.")] = False,
    target: Annotated[Target, typer.Option(help="Chooses the graph profile.")] = Target.JETPACK6,
    calib: Calib = None,
    calib_size: CalibSize = "512",
    method: Method = "auto",
    max_drop: MaxDrop = 0.5,
    max_class_drop: MaxClassDrop = None,
    confident: Confident = False,
    guard: Guard = GuardKind.LABELS,
    guard_data: GuardData = None,
    rescue: Rescue = RescueKind.EXCLUDE,
    input_kind: Input = InputKind.FLOAT32,
    output: Output = OutputKind.LOGITS,
    calibrated: Calibrated = False,
    engine: Engine = False,
    threads: Threads = 0,
    allow_unmet: AllowUnmet = False,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Write the graphs: fp32 always, fp16 and int8 as asked, checked against PyTorch.

    Normalisation is inside, the batch is free, labels and Preprocess travel in the file. The INT8 graph's
    loss is measured on val against PyTorch fp32; above --max-drop the exit code is 3 and the graph is kept
    as not meeting its contract.
    """
    given = {**locals(), "input": input_kind}
    with session(ctx, as_json, out) as run:
        from edgetl import bundle as bundles

        bundles.Bundle.open(bundle)  # a wrong path is heard of before torch is imported (5 s)
        from edgetl.graph import ExportOptions
        from edgetl.graph import export as export_graphs

        options = ExportOptions(**_named(ExportOptions, given))
        wanted = _engine_of(options) if engine else None  # first, since graphs take minutes
        with _shown_when_unmet(run, bundle):
            result = export_graphs(bundle, options, run.monitor)
        if wanted is not None:
            result["artifacts"] += _build(bundle, wanted, run.monitor)
        run.done(result, show=lambda console: _show(console, bundle, result))


def _named(kind: type, given: dict[str, Any]) -> dict[str, Any]:
    """The command's options that a dataclass of options has by the same name; names out of a list as plain text."""
    plain = {k: v.value if isinstance(v, Target | OutputKind | GuardKind | RescueKind) else v for k, v in given.items()}
    return {field.name: plain[field.name] for field in fields(kind) if field.name in plain}


@contextmanager
def _shown_when_unmet(run: Session, bundle: Path) -> Iterator[None]:
    """A missed contract still shows its tables to people; `session` prints the object for scripts."""
    try:
        yield
    except ContractUnmet as unmet:
        run.monitor.close()
        if not run.as_json and run.verbosity >= 0:
            _show(run.stdout, bundle, unmet.result)
        raise


def _engine_of(options: ExportOptions) -> BuildOptions:
    """What to build of the last graph made. Raises BackendError and its kin where this machine cannot."""
    from edgetl.engine import BuildOptions, check_machine
    from edgetl.spec import Precision

    precision = Precision.INT8 if options.int8 else Precision.FP16 if options.fp16 else Precision.FP32
    wanted = BuildOptions(precision=precision, target=options.target, allow_unmet=options.allow_unmet)
    check_machine(wanted)
    return wanted


def _build(bundle: Path, wanted: BuildOptions, monitor: Monitor) -> list[dict[str, Any]]:
    from edgetl.engine import build

    artifacts: list[dict[str, Any]] = build(bundle, wanted, monitor)["artifacts"]
    return artifacts


def _show(console: Console, bundle: Path, result: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"Graphs in {bundle}"), title_justify="left")
    for column in ("graph", "opset", "MB", "largest difference", "top-1 agrees", "n"):
        table.add_column(column, justify="left" if column == "graph" else "right")
    for graph in (a for a in result["artifacts"] if a["kind"] == "graph"):
        parity = graph["parity"]
        table.add_row(
            f"{graph['profile']} {graph['precision']}" + (" uint8 input" if graph["input"] == "uint8" else ""),
            str(graph["opset"]),
            f"{graph['bytes'] / 1e6:.1f}",
            f"{parity['max_abs']:.2g}",
            f"{parity['agreement']:.3f}",
            str(parity["n"]),
        )
    console.print(table)
    console.print("(difference to the reference's logits on the golden images; INT8's contract is the drop below)")
    if result["guard"] is not None:
        _show_guard(console, result)
    for made in (a for a in result["artifacts"] if a["kind"] == "engine"):
        console.print(f"engine  {made['file']}  ({made['bytes'] / 1e6:.1f} MB, runs on {made['runs_on']})")


def _show_rungs(console: Console, guard: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title="The search, on training images that were not calibrated on", title_justify="left")
    for column in ("step", "KL to fp32", "top-1 agrees", "expected drop", "seconds", "kept"):
        table.add_column(column, justify="left" if column in ("step", "kept") else "right")
    for rung in guard["rungs"]:
        table.add_row(
            rung["name"],
            f"{rung['kl']:.4f}",
            f"{rung['agreement']:.3f}",
            f"{rung['expected_drop_pp']:.2f}",
            f"{rung['seconds']:.1f}",
            "yes" if rung["kept"] else "",
        )
    console.print(table)
    n = guard["rungs"][-1]["n"]
    console.print(f"(n {n}; expected drop: what such noise would cost on the verdict's images, in points)")


def _show_guard(console: Console, result: dict[str, Any]) -> None:
    guard = result["guard"]
    _show_rungs(console, guard)
    if guard["excluded_nodes"]:
        shown = ", ".join(guard["excluded_nodes"][:4]) + (", ..." if len(guard["excluded_nodes"]) > 4 else "")
        console.print(f"Left in float: {len(guard['excluded_nodes'])} nodes ({shown})", highlight=False)
    low, high = guard["drop_ci_pp"]
    colour = {"met": "green", "unresolved": "yellow"}.get(guard["verdict"], "red")
    console.print(
        f"INT8 drop [bold]{guard['drop_pp']:+.2f}[/] points on {guard['split']} "
        f"(95 % interval {low:+.2f} to {high:+.2f}, n {guard['n']}, {guard['flips']} flips, "
        f"p {guard['p_mcnemar']:.2g}); allowed {guard['max_drop']:g}: [bold {colour}]{guard['verdict']}[/]",
        highlight=False,
    )
    if guard["test"] is not None:
        test = guard["test"]
        low, high = test["drop_ci_pp"]
        console.print(
            f"On test, beside it: {test['drop_pp']:+.2f} points ({low:+.2f} to {high:+.2f}, n {test['n']})",
            highlight=False,
        )
    worst = guard["worst_class"]
    line = f"Worst class {worst['label']} {worst['drop_pp']:+.1f} points; evidence: {guard['evidence']}"
    console.print(line, markup=False)
    # None: a drop of nothing at all, which no number of images can tell from a little.
    if guard["verdict"] == "unresolved" and guard["n_needed"] is not None:
        console.print(f"about {guard['n_needed']} images would resolve it (--guard-data)")
    graph = next((a for a in result["artifacts"] if a["kind"] == "graph" and a["precision"] == "int8"), None)
    if graph is not None and graph["int8_macs_share"] is not None:
        cpu = "onnxruntime's int8 kernels on this CPU"
        by = cpu if graph["profile"] == "cpu" else "TensorRT for RTX's builder, ahead of time"
        console.print(f"{graph['int8_macs_share']:.1%} of the multiply-accumulates run in INT8 ({by})")
