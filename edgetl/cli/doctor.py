"""`edgetl doctor`: what this machine can do, and why not."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgetl.cli.console import JsonFlag, OutOption, Session, session
from edgetl.errors import EdgetlError

if TYPE_CHECKING:
    from rich.console import Console

    from edgetl.engine import Finding

EXAMPLES = (
    "Here:     edgetl doctor --json > doctor.json   (goes with a bug report)\n\n"
    "A board:  edgetl doctor --device user@orin"
)

_ROOM_GB = 2.0  # a bundle of a large backbone with its engines and calibration work
_MEMORY_MB = 4000  # torch and one backbone in training, with room


DeviceOption = Annotated[
    str | None, typer.Option(help="Ask a Jetson over SSH instead, before any minute is lost.", metavar="[USER@]HOST")
]
PortOption = Annotated[int | None, typer.Option(help="Of sshd (default: your ssh config's).", min=1, max=65535)]
SshConfigOption = Annotated[Path | None, typer.Option(help="Another ssh config (ssh -F).", metavar="FILE")]


def doctor(
    ctx: typer.Context,
    device: DeviceOption = None,
    port: PortOption = None,
    ssh_config: SshConfigOption = None,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Show what this machine can train, run and build, and what to do about what it cannot.

    Every runtime is really loaded: a provider that is merely listed counts for nothing. With --device: what a
    board will and will not do, and why. Exits 0 whatever it finds; 1 where the device cannot be reached.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.engine import survey

        if device is not None:
            _device(run, device, port, ssh_config)
            return
        findings = [_python(), *_torch(), *_onnxruntime(), *survey(), _memory(), _disk(Path.cwd())]
        run.done({"rows": [f.as_json() for f in findings]}, show=lambda console: _show(console, findings))


def _device(run: Session, host: str, port: int | None, config: Path | None) -> None:
    from edgetl.deploy.upkeep import advice
    from edgetl.engine import Finding

    told = advice(host, port, ("-F", str(config)) if config is not None else ())
    findings = [Finding(**row) for row in told["rows"]]
    run.done(told, show=lambda console: _show(console, findings))


def _python() -> Finding:
    from edgetl import __version__
    from edgetl.engine import Finding

    value = f"edgetl {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding("edgetl", True, f"{value}, {os.cpu_count()} CPU cores")


def _torch() -> list[Finding]:
    from edgetl.engine import Finding

    try:
        from edgetl.transfer.installed import torch_facts

        facts = torch_facts()
    except (ImportError, OSError) as error:
        return [Finding("PyTorch", False, f"cannot be loaded: {error}", "run `make setup` again")]
    version = f"{facts['torch']}, torchvision {facts['torchvision']}, {facts['threads']} threads"
    do = "" if facts["cuda"] else "training runs on the CPU; a GPU needs NVIDIA's driver and a CUDA build of torch"
    return [Finding("PyTorch", True, version), Finding("PyTorch on a GPU", bool(facts["cuda"]), str(facts["why"]), do)]


def _onnxruntime() -> list[Finding]:
    from edgetl.engine import Finding, failed

    try:
        from edgetl.runtime import openvino
        from edgetl.runtime.ort import OPENVINO, listed_providers, why_not

        reasons = {provider: why_not(provider) for provider in listed_providers()}
    except EdgetlError as error:
        return [failed("ONNX Runtime", error)]
    if OPENVINO not in reasons and openvino.offered():
        reasons[OPENVINO] = why_not(OPENVINO)
    rows = []
    for provider, reason in reasons.items():
        name = "ONNX Runtime " + provider.replace("ExecutionProvider", "")
        if reason is None:
            rows.append(Finding(name, True, "loads and runs a node"))
        elif provider == OPENVINO:
            rows.append(failed(name, reason))
        else:
            do = "it needs NVIDIA's driver, and CUDA and cuDNN (or TensorRT) of its version"
            rows.append(Finding(name, False, "compiled in, but does not load here", do))
    return rows


def _memory() -> Finding:
    from edgetl.engine import Finding
    from edgetl.measure.environment import environment

    total = environment()["memory_mb"]
    if total is None:
        return Finding("Memory", None, "unknown: no /proc/meminfo here")
    enough = total >= _MEMORY_MB
    return Finding(
        "Memory", enough, f"{total / 1000:.1f} GB", "" if enough else "take a small backbone and --batch-size 8"
    )


def _disk(folder: Path) -> Finding:
    from edgetl.engine import Finding

    free = shutil.disk_usage(folder).free / 1e9
    do = "" if free >= _ROOM_GB else f"make at least {_ROOM_GB:.0f} GB free, or work on another disk"
    return Finding("Disk", free >= _ROOM_GB, f"{free:.1f} GB free at {folder}", do)


def _show(console: Console, findings: list[Finding]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    marks = {True: "[green]yes[/]", False: "[yellow]no[/]", None: "[dim]-[/]"}
    for found in findings:
        text = found.value + (f"\n[dim]{found.do}[/]" if found.do else "")
        table.add_row(marks[found.ok], found.name, text)
    console.print(table)
