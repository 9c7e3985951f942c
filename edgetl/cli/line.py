"""The whole line on the data and the backbone that ship with edgetl: what `edgetl demo` runs and shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetl.cli.bench import measured
from edgetl.cli.bench import show as show_bench
from edgetl.cli.candidates import Wish
from edgetl.cli.console import Session
from edgetl.errors import BackendError, EngineError
from edgetl.monitor import Monitor
from edgetl.spec import Precision

if TYPE_CHECKING:
    from rich.console import Console

# name of the bundle, line of the table, --strategy, --weights
TRAININGS = (
    ("scratch", "from scratch", "scratch", "none"),
    ("linear_probe", "linear probe", "linear-probe", "embedded"),
    ("finetune", "fine-tuned", "lp-ft", "embedded"),
)
EPOCHS = 20  # at most, for all alike
# Of 500 val images one point is five: enough for the interval to tell, where half a point would want 613 images.
MAX_DROP_PP = 1.0
BENCH_SECONDS = 1.0


def run_line(run: Session, to: Path) -> dict[str, Any]:
    """Every stage in turn, in the folder `to`; an earlier demo's bundles there get a new generation.

    Returns finetune's, export's, build's and bench's objects by name, with what was made under "paths".
    """
    from edgetl.embedded.digits import write_digits
    from edgetl.images import read_data

    monitor = run.monitor
    monitor.say("1/5  load_digits becomes an image folder: 10 labelled scans a class to learn from")
    digits = write_digits(to / "digits")
    data = read_data(str(digits))
    from edgetl.graph import ExportOptions, export  # seconds of imports: not before the folder is known to be ours

    result: dict[str, Any] = {}
    for name, line, strategy, weights in TRAININGS:
        monitor.say(f"2/5  training: {line}")
        result[name] = _trained(data, to / name, strategy, weights, monitor)
    bundle = to / "finetune"
    monitor.say("3/5  graphs: fp32, fp16, int8")
    result["export"] = export(bundle, ExportOptions(int8=True, max_drop=MAX_DROP_PP), monitor)
    monitor.say("4/5  engines: what NVIDIA's builder says to the int8 graph")
    result["build"] = _built(bundle, monitor)
    monitor.say("5/5  bench: PyTorch beside the graphs")
    result["bench"] = _benched(run, bundle)
    result["paths"] = {"digits": str(digits), "bundle": str(bundle), "all": str(to)}
    return result


def _trained(data: Any, to: Path, strategy: str, weights: str, monitor: Monitor) -> dict[str, Any]:
    from edgetl.transfer import FinetuneOptions, finetune

    options = FinetuneOptions(
        backbone="smallnet",
        weights=weights,
        strategy=strategy,
        epochs=EPOCHS,
        device="cpu",
        amp="off",  # `auto` is bf16 on some processors, and the demo's figures should be the same on all
        overwrite=True,
        command=("edgetl", "demo"),
    )
    return finetune(data, to, options, monitor)


def _built(bundle: Path, monitor: Monitor) -> dict[str, Any]:
    """build's object for each builder by name, or `{"skipped": why}`: a PC without NVIDIA's libraries is normal."""
    from edgetl.engine import TENSORRT, TENSORRT_RTX, BuildOptions, build

    out: dict[str, Any] = {}
    for flavour in (TENSORRT, TENSORRT_RTX):
        try:
            out[flavour] = build(bundle, BuildOptions(Precision.INT8, flavour=flavour), monitor)
        except (BackendError, EngineError) as error:
            out[flavour] = {"skipped": str(error)}
    return out


def _benched(run: Session, bundle: Path) -> dict[str, Any]:
    from edgetl.bench import BenchOptions
    from edgetl.bundle import Bundle
    from edgetl.measure.latency import Effort

    options = BenchOptions(threads=1, effort=Effort(seconds=BENCH_SECONDS))
    return measured(run, Bundle.open(bundle), Wish(threads=1), None, options)


def show_line(console: Console, result: dict[str, Any]) -> None:
    """The three accuracies, the verdict on int8, the engine, the bench table, and where everything is."""
    console.print(_accuracies(result))
    console.print(_verdict(result["export"]["guard"]), soft_wrap=True, highlight=False)
    for line in _engines(result["build"]):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    bundle = result["paths"]["bundle"]
    show_bench(console, result["bench"], f"{bundle}, one CPU thread")
    made = [("images", result["paths"]["digits"])]
    made += [(f"{a['profile']} {a['precision']}", f"{bundle}/{a['file']}") for a in result["export"]["artifacts"]]
    made += [
        ("engine", f"{bundle}/{a['file']}") for found in result["build"].values() for a in found.get("artifacts", ())
    ]
    made += [("bench rows", f"{bundle}/runs/bench.jsonl")]
    for name, path in made:
        console.print(f"{name:<11} {path}", soft_wrap=True, highlight=False, markup=False)
    console.print(
        "Next, with photos of your own: edgetl finetune photos --to models/mine", soft_wrap=True, highlight=False
    )


def _accuracies(result: dict[str, Any]) -> Any:
    from rich.table import Table

    first = result["finetune"]
    table = Table(
        title=f"Handwritten digits from {first['n']['train']} labelled scans; the backbone knows machine fonts only",
        title_justify="left",
    )
    for column in ("", "test accuracy", "95 % interval", "images", "seconds"):
        table.add_column(column, justify="right" if column else "left")
    for name, line, _, _ in TRAININGS:
        found = result[name]
        low, high = found["test"]["accuracy_ci"]
        kept = " (the probe is kept)" if name == "finetune" and found["chosen"] == "linear-probe" else ""
        cells = (f"{100 * found['test']['accuracy']:.1f} %", f"{100 * low:.1f} - {100 * high:.1f} %")
        table.add_row(line + kept, *cells, str(found["test"]["n"]), f"{found['seconds']:.0f}")
    return table


def _verdict(guard: dict[str, Any]) -> str:
    low, high = guard["drop_ci_pp"]
    said = "met" if guard["verdict"] == "met" else "met, though the interval reaches past it"
    return (
        f"int8 against PyTorch fp32 on {guard['n']} val images: drop {guard['drop_pp']:+.2f} points "
        f"(95 % {low:+.2f} to {high:+.2f}); allowed {MAX_DROP_PP}: {said}"
    )


def _engines(build: dict[str, Any]) -> list[str]:
    lines = []
    for flavour, found in build.items():
        name = flavour.replace("_", "-")
        if "skipped" in found:
            lines.append(f"{name}: skipped: {found['skipped']}")
            continue
        for engine in found["artifacts"]:
            layers = ", ".join(f"{count} {precision}" for precision, count in engine["layers"].items() if count)
            lines.append(f"{name}: int8 engine built; layers that multiply: {layers}; runs on {engine['runs_on']}")
    return lines
