"""`edgetl deploy`: a bundle onto a Jetson over SSH, built, proven and measured there; or files to serve it with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.console import JsonFlag, OutOption, Session, session
from edgetl.errors import ContractUnmet, InputError
from edgetl.spec import Precision

if TYPE_CHECKING:
    from rich.console import Console

    from edgetl.deploy.stage import DeployOptions

EXAMPLES = (
    "Look:      edgetl deploy models/flowers user@orin --dry-run\n\n"
    "Deploy:    edgetl deploy models/flowers user@orin\n\n"
    "Go back:   edgetl deploy models/flowers user@orin --rollback\n\n"
    "Many:      edgetl deploy models/flowers --inventory hosts.toml\n\n"
    "Serve:     edgetl deploy models/flowers --emit triton,deepstream --to serving"
)
EXIT_FAILED = 1

BundleArgument = Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")]
HostArgument = Annotated[
    str | None, typer.Argument(help="As ssh takes it; your own config counts.", metavar="[USER@]HOST")
]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="This one (default: the fastest there that keeps its contract).")
]
BackendOption = Annotated[str, typer.Option(help="What runs it there: tensorrt or onnxruntime (CPU).")]
NameOption = Annotated[str | None, typer.Option(help="Folder on the device (default: the bundle's name).", metavar="N")]
PortOption = Annotated[int | None, typer.Option(help="Of sshd (default: your ssh config's).", min=1, max=65535)]
TimeoutOption = Annotated[float, typer.Option(help="Seconds to wait for a connection.", min=1)]
ProveOption = Annotated[str, typer.Option(help="Images for accuracy there: test, val (512 at most), golden or none.")]
DataOption = Annotated[str | None, typer.Option(help="Where the images are, if not where they were.", metavar="DATA")]
BatchOption = Annotated[str, typer.Option(help="Batches the engine takes.", metavar="MIN,OPT,MAX")]
SecondsOption = Annotated[float, typer.Option(help="Timed for each variant, at least.", min=0.1)]
KeepOption = Annotated[int, typer.Option(help="Releases kept on the device.", min=1)]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only probe, and show what would be done.")]
RollbackOption = Annotated[bool, typer.Option("--rollback", help="Serve the release before the current one.")]
StatusOption = Annotated[bool, typer.Option("--status", help="Show what the device is and holds.")]
ModesOption = Annotated[
    str | None, typer.Option(help="Time it in these power modes too (sudo), then back.", metavar="all|ID,...")
]
RestartOption = Annotated[str | None, typer.Option(help="systemd unit to restart after the switch.", metavar="UNIT")]
AllowOption = Annotated[bool, typer.Option("--allow-unmet", help="Deploy a graph that missed its contract.")]
EmitOption = Annotated[
    str | None,
    typer.Option(help="Write files: deepstream, triton, cpp, python, systemd, docker (no host).", metavar="KIND,..."),
]
ToOption = Annotated[Path, typer.Option("--to", help="Folder for --emit.", metavar="DIR")]
InventoryOption = Annotated[
    Path | None, typer.Option(help="Many devices: TOML, a table named host for each.", metavar="FILE.toml")
]
SshConfigOption = Annotated[Path | None, typer.Option(help="Another ssh config (ssh -F).", metavar="FILE")]


def deploy(
    ctx: typer.Context,
    bundle: BundleArgument,
    host: HostArgument = None,
    precision: PrecisionOption = None,
    backend: BackendOption = "tensorrt",
    name: NameOption = None,
    port: PortOption = None,
    timeout: TimeoutOption = 15.0,
    prove: ProveOption = "test",
    data: DataOption = None,
    batch: BatchOption = "1,1,8",
    seconds: SecondsOption = 2.0,
    keep: KeepOption = 3,
    dry_run: DryRunOption = False,
    rollback: RollbackOption = False,
    status: StatusOption = False,
    restart: RestartOption = None,
    modes: ModesOption = None,
    allow_unmet: AllowOption = False,
    emit: EmitOption = None,
    to: ToOption = Path("serving"),
    inventory: InventoryOption = None,
    ssh_config: SshConfigOption = None,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Put a bundle onto a device: probe, push what is missing, build, prove and measure there, then switch.

    What served before serves until the last step; after any failure the same command finishes the work.
    Host keys are never accepted for you: connect once with ssh first.
    """
    given = dict(locals())
    with session(ctx, as_json, out) as run:
        if emit is not None:
            return _emit(run, bundle, given)
        if (host is None) == (inventory is None):
            raise InputError(
                "deploy wants a host, or --inventory FILE", host or "none", "edgetl deploy BUNDLE USER@HOST"
            )
        options = _options(given)
        if inventory is not None:
            return _many(run, bundle, inventory, options, given)
        assert host is not None
        _one(run, bundle, host, options, given)


def _options(given: dict[str, Any]) -> DeployOptions:
    from edgetl.deploy.stage import DeployOptions

    words = (
        "precision",
        "backend",
        "name",
        "port",
        "prove",
        "data",
        "batch",
        "seconds",
        "keep",
        "dry_run",
        "restart",
        "modes",
    )
    config = given["ssh_config"]
    return DeployOptions(
        **{word: given[word] for word in words},
        timeout_s=given["timeout"],
        allow_unmet=given["allow_unmet"],
        ssh=("-F", str(config)) if config is not None else (),
    )


def _one(run: Session, bundle: Path, host: str, options: DeployOptions, given: dict[str, Any]) -> None:
    from edgetl.deploy import stage, upkeep

    if given["rollback"] or given["status"]:
        found = upkeep.rollback(bundle, host, options) if given["rollback"] else upkeep.status(bundle, host, options)
        run.done(found, show=lambda console: _show_state(console, found))
        return
    result = stage.deploy(bundle, host, options, run.monitor)
    run.done(result, show=lambda console: _show(console, [result]))


def _many(run: Session, bundle: Path, inventory: Path, options: DeployOptions, given: dict[str, Any]) -> None:
    from edgetl.deploy import stage, upkeep
    from edgetl.deploy.hosts import on_all, read_inventory

    hosts = read_inventory(inventory, options)
    if given["rollback"] or given["status"]:
        act = upkeep.rollback if given["rollback"] else upkeep.status
        found, code = on_all(hosts, lambda h, _: act(bundle, h.host, h.options), run.monitor)
    else:
        found, code = on_all(hosts, lambda h, m: stage.deploy(bundle, h.host, h.options, m), run.monitor)
    run.done({"hosts": found}, show=lambda console: _show(console, found))
    if code:
        raise typer.Exit(ContractUnmet.exit_code if code == ContractUnmet.exit_code else EXIT_FAILED)


def _emit(run: Session, path: Path, given: dict[str, Any]) -> None:
    from edgetl.deploy.serving import ServingOptions, write_serving

    words = ("to", "backend", "name", "prove", "data")
    options = ServingOptions(
        given["emit"], precision=given["precision"] or Precision.FP16, **{w: given[w] for w in words}
    )
    result = write_serving(path, options, run.monitor)
    run.done(result, show=lambda console: _show_files(console, result))


def _show_files(console: Console, result: dict[str, Any]) -> None:
    console.print("\n".join(result["files"]), soft_wrap=True)
    cost = result.get("resize")
    if cost:
        row = result["rows"][0]
        console.print(
            f"DeepStream's resize, emulated: accuracy {cost['own_accuracy']:.3f} -> {row['accuracy']:.3f} "
            f"(n {row['n_images']}, {row['split']}), drop {cost['drop_pp']:+.2f} points",
            soft_wrap=True,
            highlight=False,
        )


def _show(console: Console, results: Any) -> None:
    from rich.table import Table

    for result in results:
        if "steps" not in result:
            continue
        table = Table(title=result["host"], title_justify="left")
        for column in ("step", "s", "kB", ""):
            table.add_column(column, justify="left" if column in ("step", "") else "right")
        for step in result["steps"]:
            size = f"{step['bytes'] / 1000:.0f}" if step["bytes"] else ""
            table.add_row(step["name"], f"{step['seconds']:.1f}", size, step["status"])
        console.print(table)
    table = Table(title="On the devices", title_justify="left")
    for column in ("host", "serves", "accuracy", "drop, points", "p50 ms", "p99 ms", "mJ"):
        table.add_column(column, justify="left" if column in ("host", "serves") else "right")
    for result in results:
        _show_rows(table, result)
        for mode in result.get("modes", []):
            _show_mode(table, result["host"], mode)
    if table.row_count:
        console.print(table)


def _show_rows(table: Any, result: Any) -> None:
    if "error" in result:
        table.add_row(result["host"], "failed: " + result["error"]["what"])
        return
    installed = (result.get("installed") or {}).get("precision")
    for row in result.get("rows", []):
        latency = row.get("latency_ms") or {}
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.3f} (n {row['n_images']})"
        table.add_row(
            result["host"],
            f"{row['precision']}{' *' if row['precision'] == installed else ''}",
            accuracy,
            _number(row["drop_pp"], "+.2f"),
            _number(latency.get("p50"), ".2f"),
            _number(latency.get("p99"), ".2f"),
            _number(row.get("energy_mj"), ".1f"),
        )


def _show_mode(table: Any, host: str, mode: Any) -> None:
    for row in mode["rows"]:
        latency = row.get("latency_ms") or {}
        figures = (_number(latency.get(p), ".2f") for p in ("p50", "p99"))
        table.add_row(host, f"{row['precision']} in {mode['name']}", "", "", *figures, _number(row["energy_mj"], ".1f"))
    if mode["status"] != "measured":
        table.add_row(host, f"{mode['name']}: {mode['why']}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _show_state(console: Console, found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, value in found["shown"]:
        table.add_row(f"[bold]{name}[/]", str(value))
    console.print(table)
