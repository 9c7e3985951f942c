"""`edgetl bench`: how accurate and how fast each backend is beside PyTorch."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetl.cli.candidates import BACKENDS, PRECISIONS, PROVIDERS, Record, Wish, newest_graphs, parse_names, pick
from edgetl.cli.console import JsonFlag, OutOption, Session, session

if TYPE_CHECKING:
    from edgetl.bench import BenchData, BenchOptions, Change, Compared, Condition
    from edgetl.bundle import Bundle

MOST = 4096  # of a batch, or callers: more is a slip of the pen
EXAMPLES = (
    "All here:    edgetl bench models/flowers\n\n"
    "In CI:       edgetl bench models/flowers --json --fail-if 'int8.drop_pp>0.5'\n\n"
    "Since then:  edgetl bench models/flowers --out new.json --compare old.json"
)

DataOption = Annotated[
    str | None, typer.Option(metavar="DATA", help="Measure on these images. Default: the test split.")
]
BackendsOption = Annotated[
    str | None, typer.Option(metavar="B,...", help="Some of torch,onnxruntime,tensorrt. Default: all here.")
]
ProvidersOption = Annotated[
    str | None,
    typer.Option(metavar="E,...", help="onnxruntime's: some of cpu,openvino,cuda,tensorrt. Default: all here."),
]
StreamsOption = Annotated[
    str | None, typer.Option(metavar="N,...", help="Also throughput with so many callers at once, for example 1,2,4.")
]
DeepstreamFlag = Annotated[
    bool, typer.Option("--deepstream", help="Also each TensorRT graph behind DeepStream's own resize, emulated.")
]
HtmlOption = Annotated[Path | None, typer.Option(help="Also write the bundle's report page here.", metavar="FILE")]


def bench(
    ctx: typer.Context,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.", metavar="BUNDLE")],
    data: DataOption = None,
    backends: BackendsOption = None,
    providers: ProvidersOption = None,
    precisions: Annotated[
        str | None, typer.Option(metavar="P,...", help="Some of fp32,fp16,int8. Default: all there are.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Graphs for this target only, for example jetpack6.")
    ] = None,
    batch: Annotated[str, typer.Option(metavar="N,...", help="Batch sizes to time, for example 1,8.")] = "1",
    streams: StreamsOption = None,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: each runtime's own choice.")] = 0,
    warmup: Annotated[int | None, typer.Option(min=0, help="Runs before timing. Default: until steady.")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Timed for each backend, at least.")] = 5.0,
    fail_if: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help="Exit 3 where a row is like this. Repeatable.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="An earlier --out file to compare with.", metavar="FILE")] = None,
    deepstream: DeepstreamFlag = False,
    html: HtmlOption = None,
    as_json: JsonFlag = False,
    out: OutOption = None,
) -> None:
    """Measure accuracy, latency, size and memory of every backend that runs here, beside PyTorch fp32.

    Backends take turns, after warm-up; every image is decoded once for all. A number that would mean
    nothing (the latency of a TensorRT graph on a CPU) is not shown. Rows are kept in BUNDLE/runs/bench.jsonl.

    Three clocks: latency_ms, array to array; end_to_end_ms, from the encoded file (in memory) to the label: decode,
    resize, run, softmax; device_ms, the GPU alone by its own events. Intervals are at 95 %. A machine that was noisy
    meanwhile is said to be, and by how much: quote ratio_p50, the ratio to the reference of the same bench, then.
    """
    with session(ctx, as_json, out) as run:
        from edgetl.bench import BenchOptions, parse
        from edgetl.bundle import Bundle
        from edgetl.measure.latency import Effort

        opened = Bundle.open(bundle)
        _check_page(opened, html)
        wish = Wish(
            parse_names(backends, BACKENDS, "--backends"),
            parse_names(precisions, PRECISIONS, "--precisions"),
            _profile(target),
            threads,
            parse_names(providers, tuple(PROVIDERS), "--providers"),
        )
        conditions = [parse(text) for text in fail_if or []]
        earlier = _earlier(compare)
        effort = Effort.of_bench(seconds, warmup)
        counts = () if streams is None else _counts(streams, "--streams")
        options = BenchOptions(_counts(batch, "--batch"), counts, threads, effort)
        graphs = _for_deepstream(opened, wish) if deepstream else []
        result = measured(run, opened, wish, data, options)
        _behind_deepstream(run, opened, graphs, data, result)
        if html is not None:
            _page(run, opened, html)
        _finish(run, opened, result, conditions, earlier)


def measured(run: Session, bundle: Bundle, wish: Wish, data: str | None, options: BenchOptions) -> dict[str, Any]:
    """The JSON object of a bench; its rows and what was answered to each image are kept in the bundle."""
    from edgetl.bench import bench as measure
    from edgetl.measure import answers, task_of

    candidates, reference = pick(bundle, wish, run.monitor.say)
    images = images_of(bundle, data, run.monitor.say)
    found = measure(candidates, reference, images, task_of(bundle.manifest), options, run.monitor)
    result = found.result
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    bundle.append_rows("bench", [json.dumps({"at": at, **row}, ensure_ascii=False) for row in result["rows"]])
    where = [{"at": at, "id": identity, **facts} for identity, facts in result["environments"].items()]
    bundle.append_rows("environments", [json.dumps(facts, ensure_ascii=False) for facts in where])
    answers.write(bundle, dataclasses.replace(found.answers, at=at))
    return result


def _for_deepstream(bundle: Bundle, wish: Wish) -> list[Record]:
    """The graphs that DeepStream could feed. Raises InputError, BundleError where there is none."""
    from edgetl.errors import BundleError, InputError
    from edgetl.spec import Fit

    if bundle.preprocess.fit is not Fit.STRETCH:
        said = f"this bundle was trained with --fit {bundle.preprocess.fit}"
        raise InputError("DeepStream stretches whole frames", said, "fine-tune with --fit stretch for DeepStream")
    graphs = [
        record
        for record in newest_graphs(bundle, wish.profile, wish.precisions)
        if record["profile"] != "cpu" and record["input"] == "float32"
    ]
    if not graphs:
        raise BundleError("no graph that DeepStream could run", bundle.path, "edgetl export --target jetpack6")
    return graphs


def _behind_deepstream(
    run: Session, bundle: Bundle, graphs: list[Record], data: str | None, result: dict[str, Any]
) -> None:
    """Add a row for each of `graphs`, and to "resize" what the resize costs it by itself."""
    from edgetl.deploy.serving import behind_deepstream

    if not graphs:
        return
    images = images_of(bundle, data, run.monitor.say)
    for record in graphs:
        cost = behind_deepstream(bundle, record, images, run.monitor)
        result["rows"].append(cost.row.to_json())
        facts = {key: value for key, value in cost.environment.items() if key != "id"}
        result["environments"].setdefault(cost.row.environment, facts)
        result.setdefault("resize", {})[cost.row.id] = cost.alone


def images_of(bundle: Bundle, data: str | None, say: Any) -> BenchData:
    """The test images; val where there is no test, which the rows then say."""
    from edgetl.bench import BenchData
    from edgetl.errors import DataError
    from edgetl.images.of_bundle import open_data

    try:
        dataset, samples, split = open_data(bundle, "test", data)
    except DataError as no_test:
        try:
            dataset, samples, split = open_data(bundle, "val", data)
        except DataError:
            raise no_test from None
        say("there is no test split: measuring on val, on which the model was also selected")
    return BenchData(dataset.root, samples, split, bundle.preprocess, bundle.labels)


def show(console: Any, result: dict[str, Any], title: str) -> None:
    """The table of a bench's JSON object."""
    from edgetl.bench.table import render_streams, render_table
    from edgetl.measure.rows import rows_of

    rows = rows_of(result, "this bench")
    console.print(render_table(rows, title))
    streams = render_streams(rows)
    if streams is not None:
        console.print(streams)


def _finish(
    run: Session,
    bundle: Bundle,
    result: dict[str, Any],
    conditions: list[Condition],
    earlier: tuple[Path, Compared] | None,
) -> None:
    """Hand the result over; raise ContractUnmet where a condition is not kept."""
    from edgetl.bench import Compared, changes, check_all
    from edgetl.errors import ContractUnmet
    from edgetl.measure.rows import rows_of

    rows = rows_of(result, bundle.path)
    found: list[Change] = []
    if earlier is not None:
        found = changes(earlier[1], Compared(rows, result["environments"]))
        result["compared"] = {"with": str(earlier[0]), "changes": [change.as_json() for change in found]}

    def shown(console: Any) -> None:
        from edgetl.bench.table import render_changes

        show(console, result, str(bundle.path))
        if earlier is not None:
            console.print(render_changes(found, str(earlier[0])))
        for name, cost in result.get("resize", {}).items():
            low, high = cost["drop_ci_pp"]
            said = f"its resize by itself (emulated) costs {cost['drop_pp']:+.2f} points [{low:+.2f}, {high:+.2f}]"
            console.print(f"{name}: {said}", soft_wrap=True, highlight=False)
        console.print(f"rows kept in {bundle.path / 'runs' / 'bench.jsonl'}", soft_wrap=True, highlight=False)

    unmet = check_all(conditions, rows)
    if not unmet:
        run.done(result, show=shown)
        return
    if not run.as_json:  # with --json the object comes with the error, once
        run.done(result, show=shown)
    raise ContractUnmet("--fail-if", "; ".join(unmet), result=result)


def _profile(target: str | None) -> str | None:
    from edgetl.target import parse_target

    return None if target is None else parse_target(target).profile


def _check_page(bundle: Bundle, html: Path | None) -> None:
    """Before minutes of measuring: their figures would be lost with the page."""
    if html is not None:
        from edgetl.report.stage import ReportOptions, check_places

        check_places(bundle, ReportOptions(html=html))


def _page(run: Session, bundle: Bundle, html: Path) -> None:
    from edgetl.report.stage import ReportOptions, report

    report(bundle, ReportOptions(html=html), run.monitor)


def _counts(text: str, option: str) -> tuple[int, ...]:
    from edgetl.errors import InputError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= MOST for part in parts):
        raise InputError(f"{option} wants whole numbers from 1 to {MOST}", text, f"for example {option} 1,8")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _earlier(file: Path | None) -> tuple[Path, Compared] | None:
    if file is None:
        return None
    from edgetl.bench import Compared
    from edgetl.bundle import read_json
    from edgetl.measure.rows import rows_of

    found = read_json(file, "earlier bench")
    environments = found.get("environments")
    return file, Compared(rows_of(found, file), environments if isinstance(environments, dict) else {})
