"""The X-ray of an INT8 graph for people (a table) and for scripts (JSON, CSV). Reads what the export measured."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgetl.report.xray import shortened

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]

# The file's fields, in the order of a CSV's columns.
COLUMNS = (
    "node", "op", "group", "input", "kept_float", "amax", "scale", "peak", "clipped", "weight_scale_min",
    "weight_scale_max", "sqnr_db", "sqnr_n", "kl_regained", "agreement_regained", "effect_n", "macs", "macs_share",
    "precision",
)  # fmt: skip
_SMALL_KL = 5e-4  # nats; below it one digit and the power of ten say more than four decimals
_WIDE = 100  # terminal columns from which operator and steps are shown too


def to_csv(rows: Sequence[Row]) -> str:
    """`rows` under a line of column names; an unmeasured figure is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def show(console: Console, result: dict[str, Any]) -> None:
    """The rows as a table, and below it what each column says and how it was come by."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows, graph, wide = result["layers"], result["graph"], console.width >= _WIDE
    share = graph["int8_macs_share"]
    console.print(f"[bold]{graph['file']}[/]", highlight=False)
    console.print(
        f"{len(rows)} of {graph['layers']} layers, what matters most first"
        + (f"; {share:.1%} of the multiply-accumulates run in INT8" if share is not None else ""),
        highlight=False,
    )
    gap = 2 if wide else 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), show_edge=False)
    titles = _titles(wide)
    for title, right in titles:
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    cells = [[str(rank), "", *_cells(row, wide)] for rank, row in enumerate(rows, start=1)]
    taken = [max(map(len, column)) + gap for column in zip([title for title, _ in titles], *cells, strict=True)]
    left = console.width - sum(taken) + taken[1]  # names get what the figures leave
    names = shortened([row["node"] for row in rows], max(12, left - gap))
    for row, name, (rank, _, *figures) in zip(rows, names, cells, strict=True):
        table.add_row(*(Text(cell) for cell in (rank, name, *figures)), style="yellow" if row["kept_float"] else "")
    console.print(table)
    for line in _footer(rows, graph):
        console.print(line, style="dim", highlight=False, markup=False)


def _titles(wide: bool) -> list[tuple[str, bool]]:
    """(column, whether it is aligned to the right)."""
    steps = [("weight steps", True)] if wide else []
    kind = [("op", False)] if wide else []
    figures = ("range", "clip %", "SQNR", "KL", "agree", "MACs %")
    return [("#", True), ("layer", False), *kind, *((f, True) for f in figures), *steps, ("runs in", False)]


def _cells(row: Row, wide: bool) -> list[str]:
    agreement = row["agreement_regained"]
    figures = [
        f"{row['amax']:.3g}",
        _short(100 * row["clipped"]),
        _or_dash(row["sqnr_db"], ".1f"),
        _or_dash(row["kl_regained"], "+.4f" if abs(row["kl_regained"] or 1) >= _SMALL_KL else "+.0e"),
        _or_dash(None if agreement is None else 100 * agreement, "+.1f"),
        f"{100 * row['macs_share']:.1f}",
    ]
    runs = (row["precision"] or ("float" if row["kept_float"] else "?")) + ("*" if row["kept_float"] else "")
    if not wide:
        return [*figures, runs]
    low, high = row["weight_scale_min"], row["weight_scale_max"]
    return [row["op"], *figures, f"{low:.2g} .. {high:.2g}", runs]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _short(percent: float) -> str:
    """A percentage in at most six characters, so that none but a true zero shows as one."""
    if percent == 0:
        return "0"
    return "<.001" if percent < 0.001 else f"{percent:.2g}"


def _footer(rows: Sequence[Row], graph: Row) -> list[str]:
    noise_n = max((row["sqnr_n"] or 0 for row in rows), default=0)
    effect_n = max((row["effect_n"] or 0 for row in rows), default=0)
    how = graph["evidence"]
    lines = [
        f"range: largest |input| kept; clip %: share of the input beyond it ({graph['method']}, "
        f"{graph['calibration_n']} calibration images)",
    ]
    if noise_n:
        lines.append(
            "SQNR: signal to quantisation noise of the layer alone, dB; low is bad "
            f"({how}, {noise_n} calibration images)"
        )
    regained = "KL, agree: what the network regains when the layer stays in float"
    if effect_n:
        lines.append(
            f"{regained}, in nats and in points of top-1 agreement with fp32 ({how}, {effect_n} search images; "
            f"{graph['measured']} of {graph['layers']} layers measured)"
        )
    else:
        lines.append(regained + ("; not measured" if not graph["measured"] else "; measured on none of these"))
    kept = Counter(row["kept_float"] for row in rows if row["kept_float"])
    if kept:
        lines.append("* left in float: " + "; ".join(f"{n} for {why}" for why, n in sorted(kept.items())))
    lines.append("runs in: " + (graph["builder"] or "not known; tensorrt-rtx was not installed where it was exported"))
    lines.append("Names are shortened; --json and --csv FILE have them whole, and the scales.")
    return lines
