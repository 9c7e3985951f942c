"""The bench as people read it: a rich table, one line a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from edgetl.bench.clocks import advice_on, shared
from edgetl.bench.compare import Change, legend
from edgetl.measure.rows import Row

_EVIDENCE = {"simulated": "simulated", "host-cpu": "cpu", "host-gpu": "gpu", "device": "device"}
_COLUMNS = (
    "backend\nprecision",
    "accuracy %\n95 %",
    "drop, pp\n95 %",
    "agree\n%",
    "p50 ms\np90, p99",
    "x ref\n95 %",
    "file ms\nimages/s",
    "MB\npeak",
)


def render_table(rows: Sequence[Row], title: str = "") -> Table:
    """Two lines a row, so that 80 columns hold it: figures, and their intervals below. "-" where there is none."""
    batched = len({row.batch for row in rows}) > 1
    table = _table(title or None, caption(rows))
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        first = _name(row) + (f" x{row.batch}" if batched else "")
        table.add_row(f"[bold]{escape(first)}[/]\n{row.precision} {_kind(row)}", *_figures(row))
    return table


def render_streams(rows: Sequence[Row]) -> Table | None:
    """Images a second, and p99 under that load, by concurrent callers; None where none were asked for."""
    counts = sorted({int(n) for row in rows for n in row.throughput_by_streams or ()})
    if not counts:
        return None
    table = _table("Images a second (p99 ms under this load) by concurrent callers", "")
    table.add_column("backend", no_wrap=True)
    for count in counts:
        table.add_column(str(count), justify="right", no_wrap=True)
    for row in rows:
        found = row.throughput_by_streams
        if found:
            cells = (_streamed(found.get(str(count))) for count in counts)
            table.add_row(escape(f"{_name(row)} {row.precision} x{row.batch}"), *cells)
    return table


def _streamed(found: dict[str, float | None] | None) -> str:
    return "-" if found is None else f"{found['throughput_ips']:.0f} ({_ms(found, 'p99_ms')})"


def _table(title: str | None, below: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption=below or None,
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
        padding=0,  # the box draws a space between columns
    )


def caption(rows: Sequence[Row]) -> str:
    """On what and by which clocks it was measured, what failed, how noisy it was, and why there is a "-"."""
    good = [row for row in rows if row.status == "ok"]
    lines = [f"{escape(row.id)} failed: {escape(row.error or '')}" for row in rows if row.status == "failed"]
    if rows:
        lines.append(
            f"{rows[0].n_images} {rows[0].split} images. drop: against the reference, positive is worse. p50: array to "
            "array. file: encoded file in memory to label, p50."
        )
    lines += _parts(good) + _device(good) + _noise(good)
    if any(row.latency_ms is None for row in good):
        lines.append("No latency where a TensorRT graph is simulated on a CPU: it says nothing of the device's speed.")
    if any(row.latency_ms[key] is None for row in good if row.latency_ms for key in ("p50", "p90", "p99")):
        lines.append("A percentile with fewer than 10 runs beyond it is not shown; --seconds measures longer.")
    return "\n".join(lines)


def _parts(good: Sequence[Row]) -> list[str]:
    """What stands before the network, which is the same work for all: of the first row that has it."""
    for row in good:
        parts = row.end_to_end_parts_ms
        if parts:
            return [f"Of it, in ms: decode {parts['decode']:.2f}, resize {parts['resize']:.2f}, then the network."]
    return []


def _device(good: Sequence[Row]) -> list[str]:
    told = [f"{escape(row.id)} {_ms(row.device_ms, 'p50')} ms" for row in good if row.device_ms]
    return ["Device only, by the GPU's own events, p50: " + ", ".join(told) + "."] if told else []


def _noise(good: Sequence[Row]) -> list[str]:
    """What ratios are told to, and how noisy the machine was."""
    to = list(dict.fromkeys(row.ratio_to for row in good if row.ratio_to and row.ratio_to != row.id))
    lines = [f"x ref: p50 beside {escape(', '.join(to))}, turn by turn."] if to else []
    noises = [row.noise for row in good if row.noise and row.noise["noisy"]]
    if noises:
        spreads = [found["reference_spread"] for found in noises if found.get("reference_spread") is not None]
        much = f" (the reference's turns differ by +-{100 * max(spreads):.1f} %)" if spreads else ""
        common = shared(noises)
        alone = sum(1 for found in noises if len(found["why"]) > len(common))
        why = [*common, *([f"{alone} of {len(good)} rows for reasons of their own"] if alone else [])]
        lines.append(f"Noisy{much}: {escape('; '.join(why))}. {advice_on(noises)}.")
    return lines


def render_changes(found: Sequence[Change], since: str) -> Table:
    """What `--compare` found."""
    below = "\n".join(legend(found))
    table = Table(title=f"Since {since}", title_justify="left", caption=below or None, caption_justify="left")
    for name in ("row", "figure", "before", "now", "beyond noise"):
        table.add_column(name)
    for change in found:
        said = {True: "[bold]yes[/]", False: "no", None: "cannot be told"}[change.beyond]
        note = f" ({change.note})" if change.note else ""
        table.add_row(change.id, change.figure, _short(change.before), _short(change.now), said + escape(note))
    return table


def _name(row: Row) -> str:
    provider = row.provider.replace("ExecutionProvider", "").lower()
    return row.backend if provider == "cpu" or row.backend == "tensorrt" else f"{row.backend} {provider}"


def _kind(row: Row) -> str:
    return "[red]failed[/]" if row.status == "failed" else _EVIDENCE.get(row.accuracy_evidence or "", "")


def _figures(row: Row) -> list[str]:
    return [
        _share(row.accuracy) + _interval(row.accuracy_ci, 100.0),
        "-" if row.drop_pp is None else f"{row.drop_pp:+.2f}" + _interval(row.drop_ci_pp, 1.0, "+"),
        _share(row.agreement),
        "-"
        if row.latency_ms is None
        else "{}\n{}, {}".format(*(_ms(row.latency_ms, k) for k in ("p50", "p90", "p99"))),
        _beside(row),
        _ms(row.end_to_end_ms, "p50") + "\n" + ("-" if row.throughput_ips is None else f"{row.throughput_ips:.0f}"),
        _megabytes(row.size_bytes, 1e6, 2) + "\n" + _megabytes(row.peak_rss_mb, 1.0, 0),
    ]


def _megabytes(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(ends: tuple[float, float] | None, factor: float, sign: str = "") -> str:
    if ends is None or ends[0] == ends[1]:
        return ""
    between = " " if sign else "-"
    return f"\n{factor * ends[0]:{sign}.1f}{between}{factor * ends[1]:{sign}.1f}"


def _beside(row: Row) -> str:
    if row.ratio_p50 is None:
        return "-"
    if row.ratio_to == row.id:
        return "1"
    return "{}\n{}-{}".format(*map(_three, row.ratio_p50))


def _ms(summary: Mapping[str, float | int | None] | None, key: str) -> str:
    value = None if summary is None else summary[key]
    return "-" if value is None else _three(value)


def _three(value: float) -> str:
    """Three figures that count, and no fewer than the whole number: 0.412, 12.3, 2345."""
    return f"{value:.0f}" if value >= 100 else f"{value:.{2 if value < 10 else 1}f}" if value >= 1 else f"{value:.3f}"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)[:12]
