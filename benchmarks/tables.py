"""The tables of benchmarks/README.md, written from the rows: `python -m benchmarks tables`.

Between the lines `<!-- table: NAME -->` and `<!-- end -->` everything is generated; the rest is prose and kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables_latency, tables_transfer
from benchmarks.choice import SCORES, by_set
from benchmarks.rows import HERE, RESULTS, Row, latest, read

README = HERE / "README.md"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NO_ROWS = "No full run is kept yet.\n"


def write(results: Path = RESULTS, readme: Path = README) -> None:
    """Replace the generated blocks of `readme`. Raises KeyError for a table that no suite makes."""
    text = readme.read_text(encoding="utf-8")
    rows = list(read(results))

    def block(match: re.Match[str]) -> str:
        name = match.group(2)
        return match.group(1) + table(name, latest(iter(rows), name)) + match.group(3)

    readme.write_text(_BLOCK.sub(block, text), encoding="utf-8")


def table(suite: str, rows: list[Row]) -> str:
    """A Markdown table of the newest row of each case, and where they were measured."""
    header, cells = _TABLES[suite]
    if not rows:
        return NO_ROWS
    shown = _GATHERED.get(suite, _together)(rows)
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *(cells(row) for row in shown)]
    said = [*_NOTES[suite](rows)] if suite in _NOTES else []
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n" + "".join([*said, *_where(rows)])


def _together(rows: list[Row]) -> list[Row]:
    """Rows about one network beside each other, in the order in which the networks first came."""
    order = list(dict.fromkeys(row["values"].get("network") for row in rows))
    return sorted(rows, key=lambda row: order.index(row["values"].get("network")))


# Suites whose table has another row for several of theirs.
_GATHERED: dict[str, Callable[[list[Row]], list[Row]]] = {
    "strategies": tables_transfer.strategies,
    "distillation": tables_transfer.distillations,
    "choice": by_set,
    "peers_latency": tables_latency.beside,
}
_NOTES: dict[str, Callable[[list[Row]], list[str]]] = {
    "peers_latency": tables_latency.notes,
    "distance": tables_transfer.distance_notes,
}


def line(row: Row) -> str:
    """A row for the terminal, as it is made."""
    values = ", ".join(f"{name} {value}" for name, value in row["values"].items())
    return f"{row['suite']}: {row['case']}: {values}"


def _where(rows: list[Row]) -> list[str]:
    found = []
    for row in rows:
        place = row["environment"]
        versions = " ".join(
            f"{name} {place['versions'][name]}"
            for name in ("torch", "onnxruntime-gpu", "onnxruntime")
            if name in place["versions"]
        )
        said = f"{place['cpu']}, {place['cores']} cores, {versions}, commit {row['commit']}, {row['at'][:10]}.\n"
        if said not in found:
            found.append(said)
    return found


def _startup(row: Row) -> list[str]:
    v = row["values"]
    return [
        f"`{row['case']}`",
        str(v["runs"]),
        f"{v['median_s']:.2f}",
        f"{v['worst_s']:.2f}",
        f"{v['limit_s']:.2f}",
        v["heavy_modules"] or "none",
    ]


def _memory(row: Row) -> list[str]:
    v = row["values"]
    growth = "-" if v["growth_percent"] is None else f"{v['growth_percent']:+.1f} %"
    return [
        row["case"],
        f"{v['few_mb']:.0f} ({v['n_few']})",
        f"{v['many_mb']:.0f} ({v['n_many']})",
        growth,
        f"{v['baseline_mb']:.0f}",
    ]


def _scale(row: Row) -> list[str]:
    v = row["values"]
    return [
        row["case"],
        *(f"{v[key]:.1f}" for key in ("list_s", "first_batch_s", "first_step_s", "seconds")),
        f"{v['peak_mb']:.0f}",
        f"{v['baseline_mb']:.0f}",
        f"{v['kb_an_image_more']:.2f}",
    ]


def _recipe(row: Row) -> list[str]:
    v = row["values"]
    return [
        row["case"],
        str(v["n_train"]),
        _percent(v["recipe_best_val_accuracy"]),
        f"{v['recipe_to_best_s']:.1f} (epoch {v['recipe_best_epoch']})",
        _percent(v["val_accuracy"]),
        _seconds(v.get("finetune_to_recipes_best_s")),
        f"{v['finetune_s']:.1f}",
        "not reached" if v["ratio"] is None else f"**{v['ratio']:.1f}x**",
    ]


def _contract(row: Row) -> list[str]:
    v = row["values"]
    return [
        row["case"],
        _percent(v["reference_accuracy"]),
        f"{v['verdict']} ({v['val_drop_pp']:+.2f}, {v['val_n']})",
        _drop(v),
        str(v["n"]),
        _percent(v["agreement"]),
        _share(v),
        v["rungs"],
        f"{v['seconds']:.0f}",
        f"{v['passes']:.1f}",
    ]


def _hard(row: Row) -> list[str]:
    v = row["values"]
    return [
        row["case"],
        _percent(v["reference_accuracy"]),
        _drop(v),
        str(v["n"]),
        _percent(v["agreement"]),
        f"{v['kl']:.4f}",
        _share(v),
        f"{v['verdict']}: {v['rungs']}",
        f"{v['seconds']:.0f}",
    ]


def _peers(row: Row) -> list[str]:
    v = row["values"]
    if v["status"] != "ok":
        return [row["case"], v["status"], *["-"] * 7]
    return [
        row["case"],
        _drop(v),
        str(v["n"]),
        _percent(v["agreement"]),
        f"{v['kl']:.4f}",
        _share(v),
        f"{v['seconds']:.0f}",
        f"{v['peak_mb']:.0f}",
        f"{v['total_mb']:.0f}",
    ]


def _adaptation(row: Row) -> list[str]:
    v = row["values"]

    def cell(name: str) -> str:
        return f"{v[name]:.3f} ({v[name + '_sd']:.3f})" if name in v else "-"

    methods = [cell(name) for name in ("none", *_ADAPTATIONS)]
    rivals = [cell(how) for how in ("by_entropy", "by_mmd", "by_dev")]
    return [row["case"], *methods, f"**{cell('chosen')}** {v['kept']}", cell("oracle"), *rivals]


def _drop(v: dict[str, Any]) -> str:
    return f"{v['drop_pp']:+.2f} ({v['drop_low_pp']:+.2f} to {v['drop_high_pp']:+.2f})"


def _share(v: dict[str, Any]) -> str:
    """What NVIDIA's builder runs in INT8, or that it does not take the graph."""
    return _percent(v["int8_macs_share"]) if v["int8_macs_share"] is not None else v["nvidia"].split(":")[0]


def _cpu_int8(row: Row) -> list[str]:
    v = row["values"]
    return [
        row["case"],
        f"{v['fp32_ms']:.2f}",
        f"{v['int8_ms']:.2f}",
        f"**{v['ratio']:.2f}x**",
        f"{v['agreement']:.3f} ({v['n_images']})",
        _percent(v["int8_macs_share"]),
        f"{v['fp32_mb']:.1f} > {v['int8_mb']:.1f}",
        f"{v['weight_bits']} ({v['weight_bits_why']})",
    ]


def _choice(row: Row) -> list[str]:
    v = row["values"]
    taus = ["-" if v["tau"][score] is None else f"{v['tau'][score]:+.2f}" for score in ("rank", *SCORES)]
    first, best = v["first"], f"{v['best']}, {_percent(v['best_accuracy'])}"
    lost = [f"{v['regret_pp'][score]:.1f}" for score in ("stage_accuracy", "probe_accuracy", "logme")]
    noise = f" ± {v['half_width_pp']:.1f}" if v["first"] != v["best"] else ""
    regrets = f"**{v['regret_pp']['rank']:.1f}**{noise} ({', '.join(lost)})"
    return [
        v["data"],
        str(v["networks"]),
        *taus,
        first,
        best,
        regrets,
        str(v["n_test"]),
        " and ".join(map(str, v["seeds"])),
    ]


def _choice_time(row: Row) -> list[str]:
    v = row["values"]
    case = f"{v['data']}, {v['networks']} networks at {v['size']} px"
    clock = [f"{v['forward_s']:.1f}", f"{v['rank_s']:.1f}", f"{v['ratio']:.2f}x"]
    processor = [f"{v['forward_cpu_s']:.1f}", f"{v['rank_cpu_s']:.1f}", f"**{v['cpu_ratio']:.2f}x**"]
    return [case, str(v["n_images"]), *processor, *clock]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %"


_ADAPTATIONS = ("standardise", "mmd", "jmmd", "coral", "dann", "cdan", "mcc")


def _checks(row: Row) -> list[str]:
    v = row["values"]
    held = {True: "yes", False: "**no**", None: "cannot be told"}[v["held"]]
    held += f" ({v['noise']})" if v.get("noise") else ""
    if "said" in v:
        return [row["case"], v["said"], "the node is named", held]
    if "planted_ms" in v:
        woken = f"; the network {v['network_ms']:.2f} after it, {v['plain_ms']:.2f} without" if "plain_ms" in v else ""
        seen = f"{v['shown_ms']:.2f} ms; the sleep alone {v['alone_ms']:.2f}{woken} (n {v['n']})"
        return [row["case"], seen, "within 0.25 ms", held]
    if "added_ms" in v:
        seen = f"{v['added_ms']:.3f} ms ({v['ours_ms']:.3f} beside {v['its_own_ms']:.3f}, n {v['n']} each)"
        return [row["case"], seen, "under 0.3 ms", held]
    ratios = (f"{name} {v[name + '_ratio']:.3f}" for name in ("loop", "torch", "pyperf"))
    return [row["case"], f"p50 beside {', '.join(ratios)} (n {v['n']} each)", "within 3 %", held]


def _repeat(row: Row) -> list[str]:
    v = row["values"]
    # Rows of an older edgetl end in the middle of a word.
    reasons = v["reasons"] if len(v["reasons"]) != 300 else v["reasons"].rpartition("; ")[0]
    return [
        row["case"],
        str(v["benches"]),
        f"{v['ratio_lowest']:.3f} to {v['ratio_highest']:.3f}",
        f"{v['apart_percent']:.1f} %",
        "-" if v.get("quiet_apart_percent") is None else f"{v['quiet_apart_percent']:.1f} %",
        f"{v['fp32_apart_percent']:.1f} %",
        f"{v['noisy']} of {v['benches']}" + (f" ({reasons})" if reasons else ""),
        "yes" if v["held"] else "**no**",
    ]


_TABLES: dict[str, tuple[list[str], Callable[[Row], list[str]]]] = {
    "startup": (["command", "runs", "median, s", "worst, s", "limit, s", "heavy modules loaded"], _startup),
    "memory": (["work", "MB (few images)", "MB (many)", "growth", "baseline MB"], _memory),
    "scale": (
        [
            *("images", "listed, s", "first batch through the network, s", "first training step, s", "in all, s"),
            *("peak MB above the imports", "imports, MB", "kB an image above the smallest"),
        ],
        _scale,
    ),
    "scale_fit": (tables_transfer.SCALE_FIT, tables_transfer.scale_fit),
    "cpu_int8": (
        [
            *("network", "FP32 p50, ms", "INT8 p50, ms", "ratio", "top-1 agrees with PyTorch (images)"),
            *("MACs in INT8", "file, MB", "weight bits"),
        ],
        _cpu_int8,
    ),
    "recipe": (
        [
            *("data, backbone, strategy", "train images", "recipe's best val", "recipe to it, s"),
            *("edgetl val", "edgetl to the recipe's best, s", "edgetl in all, s", "ratio"),
        ],
        _recipe,
    ),
    "strategies": (tables_transfer.STRATEGY, tables_transfer.strategy),
    "distillation": (tables_transfer.DISTILLATION, tables_transfer.distillation),
    "choice": (
        [
            *("data", "networks", "tau: rank", "best stage", "probe", "LogME", "H-score", "kNN", "first choice"),
            "best when fine-tuned",
            "points that the first choice loses ± 95 % (the best stage's, the probe's, LogME's)",
            "test images",
            "seeds (first, best)",
        ],
        _choice,
    ),
    "choice_time": (
        [
            *("data, networks", "images", "forward passes, processor s", "rank, processor s", "ratio"),
            *("forward passes, s", "rank, s", "ratio by the clock"),
        ],
        _choice_time,
    ),
    "adaptation": (
        [
            *("source > target", "source only", *_ADAPTATIONS, "chosen without target labels", "oracle"),
            *("entropy's choice", "MMD's", "deep embedded validation's"),
        ],
        _adaptation,
    ),
    "distance": (tables_transfer.DISTANCE, tables_transfer.distance),
    "contract": (
        [
            *("network", "fp32 accuracy", "verdict (drop on val, n)", "drop on val + test, points", "n", "agreement"),
            *("MACs in INT8", "kept steps", "s", "FP32 passes"),
        ],
        _contract,
    ),
    "hard": (
        [
            *("network: how", "fp32 accuracy", "drop, points", "n", "agreement", "KL", "MACs in INT8"),
            *("verdict on val: kept steps", "s"),
        ],
        _hard,
    ),
    "checks": (["check", "seen", "wanted", "held"], _checks),
    "repeat": (
        [
            *("network", "benches", "ratio int8/fp32, lowest to highest", "apart", "those not noisy", "fp32 p50 apart"),
            *("said to be noisy", "held"),
        ],
        _repeat,
    ),
    "bench": (tables_latency.BENCH, tables_latency.bench),
    "peers_latency": (tables_latency.PEERS, tables_latency.peers),
    "peers": (
        [
            *("network: quantiser", "drop, points", "n", "agreement", "KL", "MACs in INT8", "s"),
            *("MB above its imports", "MB in all"),
        ],
        _peers,
    ),
}  # fmt: skip
