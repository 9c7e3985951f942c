"""The bench as people read it: a rich table, one line a row."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from edgetl.bench.compare import Change
from edgetl.measure.rows import Row
from edgetl.stats import Summary

_EVIDENCE = {"simulated": "simulated", "host-cpu": "cpu", "host-gpu": "gpu", "device": "device"}
_COLUMNS = (
    "backend\nprecision",
    "accuracy %\n95 %",
    "drop, pp\n95 %",
    "agree\n%",
    "p50 ms\np90, p99",
    "file\nms",
    "images\n/s",
    "MB\npeak",
)


def render_table(rows: Sequence[Row], title: str = "") -> Table:
    """Two lines a row, so that 80 columns hold it: figures, and their intervals below. "-" where there is none."""
    batched = len({row.batch for row in rows}) > 1
    table = Table(
        title=title or None,
        title_justify="left",
        caption=caption(rows),
        caption_justify="left",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        first = _name(row) + (f" x{row.batch}" if batched else "")
        table.add_row(f"[bold]{escape(first)}[/]\n{row.precision} {_kind(row)}", *_figures(row))
    return table


def caption(rows: Sequence[Row]) -> str:
    """On what it was measured, what failed, and the reason behind each kind of "-" that is in the table."""
    good = [row for row in rows if row.status == "ok"]
    lines = [f"{escape(row.id)} failed: {escape(row.error or '')}" for row in rows if row.status == "failed"]
    if rows:
        lines.append(
            f"{rows[0].n_images} {rows[0].split} images. drop: against the reference, positive is worse. "
            "file: from the encoded file, p50."
        )
    if any(row.latency_ms is None for row in good):
        lines.append("No latency where a TensorRT graph is simulated on a CPU: it says nothing of the device's speed.")
    if any(row.latency_ms[key] is None for row in good if row.latency_ms for key in ("p50", "p90", "p99")):
        lines.append("A percentile with fewer than 10 runs beyond it is not shown; --seconds measures longer.")
    return "\n".join(lines)


def render_changes(found: Sequence[Change], since: str) -> Table:
    """What `--compare` found."""
    table = Table(title=f"Since {since}", title_justify="left")
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
        _ms(row.end_to_end_ms, "p50"),
        "-" if row.throughput_ips is None else f"{row.throughput_ips:.0f}",
        _megabytes(row.size_bytes, 1e6, 2) + "\n" + _megabytes(row.peak_rss_mb, 1.0, 0),
    ]


def _megabytes(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _interval(ends: tuple[float, float] | None, factor: float, sign: str = "") -> str:
    # A backslash keeps rich from reading "[...]" as a style.
    if ends is None or ends[0] == ends[1]:
        return ""
    return f"\n\\[{factor * ends[0]:{sign}.1f} {factor * ends[1]:{sign}.1f}]"


def _ms(summary: Summary | None, key: str) -> str:
    value = None if summary is None else summary[key]
    return "-" if value is None else f"{value:.2f}"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)[:12]
