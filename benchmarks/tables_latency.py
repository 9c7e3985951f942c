"""The tables of the suites that are TOML: `edgetl bench` on this machine, and the runtimes of a PC side by side."""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.rows import Row
from benchmarks.suite import METHODS
from edgetl.stats import wilson

BENCH = [
    *("network", "backend", "batch", "p50, ms (95 % interval)", "p99, ms", "times faster than PyTorch (95 %)"),
    *("images/s", "peak MB", "file, MB", "accuracy (95 %), drop in points"),
]
PEERS = ["network", *METHODS.values()]


def bench(row: Row) -> list[str]:
    """One candidate at one batch size."""
    v = row["values"]
    backend = " ".join((v["backend"], v["provider"].replace("ExecutionProvider", ""), v["precision"]))
    first = [v["network"], backend, str(v["batch"])]
    if v["status"] != "ok":
        return [*first, v["status"], *["-"] * (len(BENCH) - 4)]
    return [
        *first,
        _time(v),
        _figure(v["p99_ms"], ".2f"),
        _faster(v),
        _figure(v["throughput_ips"], ".0f"),
        _figure(v["peak_mb"], ".0f"),
        _figure(v["size_mb"], ".1f"),
        "-" if v["accuracy"] is None else _accuracy(v),
    ]


def _accuracy(v: dict[str, Any]) -> str:
    low, high = wilson(round(v["accuracy"] * v["n_images"]), v["n_images"])
    share = f"{100 * v['accuracy']:.1f} ({100 * low:.1f}-{100 * high:.1f}) %"
    return f"{share}, {v['drop_pp']:+.2f}, n {v['n_images']}"


def beside(rows: list[Row]) -> list[Row]:
    """One row for each network and batch size: its `values` hold those of each method."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        v = row["values"]
        groups.setdefault((v["network"], v["batch"], v["threads"]), {})[v["method"]] = v
    return [{"values": {"case": key, "methods": found}} for key, found in groups.items()]


def peers(row: Row) -> list[str]:
    """One network at one batch size, a cell for each runtime."""
    network, batch, threads = row["values"]["case"]
    found = row["values"]["methods"]
    case = f"{network}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
    return [case, *(_cell(found.get(method)) for method in METHODS.values())]


def notes(rows: list[Row]) -> list[str]:
    """What the cells leave out: versions, the faster memory format, agreement, what is missing and why, noise."""
    out = []
    for method in METHODS.values():
        found = [row["values"] for row in rows if row["values"]["method"] == method]
        said = _said(method, [v for v in found if v["status"] == "ok"])
        said += dict.fromkeys(v["status"] for v in found if v["status"] != "ok")
        if said:
            out.append(f"- {method}: {'; '.join(said)}.\n")
    noise = dict.fromkeys(row["values"]["noise"] for row in rows if row["values"]["noise"])
    return [*out, *(f"- Noise: {line}.\n" for line in noise), "\n"]


def _said(method: str, good: list[dict[str, Any]]) -> list[str]:
    if not good:
        return []
    ways = Counter(v["way"] for v in good if v["way"])
    said = list(dict.fromkeys(v["versions"] for v in good))
    said += [f"{way} in {count} of {len(good)}" for way, count in ways.items()]
    if method != METHODS["torch"]:
        least = min(good, key=lambda v: float(v["agreement"]))
        said.append(f"top-1 as PyTorch's: {100 * least['agreement']:.0f} % at least (n {least['n_images']})")
    return said


def _cell(v: dict[str, Any] | None) -> str:
    if v is None:
        return "-"
    if v["status"] != "ok":
        return str(v["status"]).split(":")[0]
    return f"{_time(v)} **{_faster(v)}**"


def _time(v: dict[str, Any]) -> str:
    if v["p50_ms"] is None:
        return "-"
    ends = "" if v["p50_low_ms"] is None else f" ({v['p50_low_ms']:.2f}-{v['p50_high_ms']:.2f})"
    return f"{v['p50_ms']:.2f}{ends}"


def _faster(v: dict[str, Any]) -> str:
    """The ratio of medians turned round: above 1 is faster than the reference."""
    if v["ratio"] is None:
        return "-"
    ends = "" if v["ratio_low"] == v["ratio_high"] else f" ({1 / v['ratio_high']:.2f}-{1 / v['ratio_low']:.2f})"
    return f"{1 / v['ratio']:.2f}x{ends}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
