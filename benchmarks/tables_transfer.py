"""The tables of what is repeated over seeds, strategies and distillation, and of fits to features on disk."""

from __future__ import annotations

from collections import Counter
from statistics import mean, stdev
from typing import Any

from scipy.stats import spearmanr  # type: ignore[import-untyped]  # it ships none

from benchmarks.rows import Row
from benchmarks.strategies import STRATEGIES
from edgetl.transfer.verdict import far_from, verdict

STRATEGY = [
    *("data, labels: strategy", "seeds", "train images", "val, mean ± sd", "test, mean ± sd", "test images"),
    *("kept", "s", "code"),
]
DISTILLATION = [
    *("data: student", "taught by", "seeds", "labelled", "unlabelled", "test, mean ± sd", "test images"),
    *("the teacher's own test", "s"),
]
DISTANCE = ["pair: features", "MMD^2", "p", "A-distance", "verdict", "kept there", "kept back", "images a side"]
SCALE_FIT = ["fitted", "images", "features", "as a matrix, MB", "peak MB above the imports", "s"]


def strategies(rows: list[Row]) -> list[Row]:
    """One row for each strategy and set, in the order of the strategies."""
    gathered = _over_seeds(rows, ("data", "labels", "strategy"))
    sets = list(dict.fromkeys(row["values"]["labels"][0] for row in gathered))

    def order(row: Row) -> tuple[int, int]:
        labels, strategy = (row["values"][key][0] for key in ("labels", "strategy"))
        return sets.index(labels), STRATEGIES.index(strategy)

    return sorted(gathered, key=order)


def strategy(row: Row) -> list[str]:
    """One strategy over its seeds; rows that name the same commit were measured with the same code."""
    v = row["values"]
    return [
        f"{v['data'][0]}, {v['labels'][0]}: {v['strategy'][0]}",
        str(len(v["seed"])),
        _mean(v["n_train"]),
        spread(v["val_accuracy"]),
        spread(v["test_accuracy"]),
        _mean(v["n_test"]),
        _counted(v["chosen"]),
        _mean(v["seconds"]),
        ", ".join(dict.fromkeys(str(commit)[:7] for commit in row["commits"])),
    ]


def distillations(rows: list[Row]) -> list[Row]:
    """One row for each student and way of teaching."""
    return _over_seeds(rows, ("data", "student", "how"))


def distillation(row: Row) -> list[str]:
    """One way of teaching over its seeds."""
    v = row["values"]
    return [
        f"{v['data'][0]}: {v['student'][0]}",
        v["how"][0],
        str(len(v["seed"])),
        _mean(v["n_train"]),
        _mean(v["n_unlabelled"]),
        spread(v["test_accuracy"]),
        _mean(v["n_test"]),
        spread(v["teacher_test_accuracy"]),
        _mean(v["seconds"]),
    ]


def distance(row: Row) -> list[str]:
    """One pair of domains on one kind of features; the verdict is by today's limits."""
    v = row["values"]
    return [
        row["case"],
        f"{v['mmd2']:.3f}",
        f"{v['p_value']:.3f}",
        f"{v['a_distance']:.2f}",
        _verdict(v),
        *(f"{100 * v[key]:.0f} %" for key in _KEPT),
        str(v["n"]),
    ]


def distance_notes(rows: list[Row]) -> list[str]:
    """For each kind of features how well MMD^2 orders the ordered pairs, and what is kept where it says which word."""
    out = []
    for name in dict.fromkeys(row["values"]["features"] for row in rows):
        found = [row["values"] for row in rows if row["values"]["features"] == name]
        mmd2, shares = [v["mmd2"] for v in found for _ in _KEPT], [v[key] for v in found for key in _KEPT]
        by_word: dict[str, list[float]] = {}
        for v in found:
            by_word.setdefault(_verdict(v), []).extend(v[key] for key in _KEPT)
        said = "; ".join(
            f"{word}: {100 * mean(kept):.0f} % ({100 * min(kept):.0f} to {100 * max(kept):.0f}, n {len(kept)})"
            for word, kept in by_word.items()
        )
        rho = float(spearmanr(mmd2, shares).statistic)
        out.append(f"- {name}, far from {far_from(name)}: kept where it is {said}; Spearman's rho {rho:.2f}.\n")
    return [*out, "\n"]


_KEPT = ("kept_there", "kept_back")


def _verdict(v: dict[str, Any]) -> str:
    return verdict(v["mmd2"], v["p_value"], far_from(v["features"]))[0]


def scale_fit(row: Row) -> list[str]:
    """One fit to features in a file."""
    v = row["values"]
    return [
        v["fitted"],
        f"{v['n_images']:,}",
        str(v["width"]),
        f"{v['matrix_mb']:.0f}",
        f"**{v['peak_mb']:.0f}**",
        f"{v['seconds']:.0f}",
    ]


def spread(shares: list[float]) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    if len(shares) == 1:
        return f"{100 * shares[0]:.1f} %"
    return f"{100 * mean(shares):.1f} ± {100 * stdev(shares):.1f} %"


def _over_seeds(rows: list[Row], keys: tuple[str, ...]) -> list[Row]:
    """One row for each value of `keys`: its `values` hold the lists of its seeds' values, `commits` theirs."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row["values"][key] for key in keys), []).append(row)
    return [
        {
            "values": {name: [row["values"][name] for row in group] for name in group[0]["values"]},
            "commits": [row["commit"] for row in group],
        }
        for group in groups.values()
    ]


def _counted(names: list[str]) -> str:
    found = Counter(names)
    return ", ".join(name if count == len(names) else f"{name} {count}" for name, count in found.items())


def _mean(values: list[float]) -> str:
    return f"{mean(values):.0f}"
