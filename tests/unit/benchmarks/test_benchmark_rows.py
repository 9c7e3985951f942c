"""Rows of the benchmarks, and the tables made from them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from benchmarks import tables
from benchmarks.__main__ import SUITES
from benchmarks.cpu_int8 import side_by_side
from benchmarks.memory import grown
from benchmarks.recipe import compared
from benchmarks.rows import RESULTS, SCHEMA, Case, append, latest, read, row
from edgetl.errors import InputError

STARTUP = {"runs": 3, "median_s": 0.31, "worst_s": 0.4, "limit_s": 0.5, "heavy_modules": ""}
CPU_INT8 = {
    **{"n_images": 256, "fp32_ms": 5.0, "int8_ms": 2.5, "ratio": 2.0, "agreement": 0.99, "drop_pp": 0.1},
    **{"fp32_mb": 9.0, "int8_mb": 2.5, "int8_macs_share": 1.0, "weight_bits": 8, "weight_bits_why": "avx512_vnni"},
}
DISTILLATION = {
    **{"data": "flowers", "student": "small", "teacher": "large", "how": "teacher", "seed": 0, "n_train": 50},
    **{"n_unlabelled": 0, "n_test": 600, "chosen": "lp-ft", "val_accuracy": 0.4, "test_accuracy": 0.5},
    **{"teacher_test_accuracy": 0.75, "seconds": 9.0},
}
SCALE_FIT = {
    **{"fitted": "features", "n_images": 10, "width": 4, "matrix_mb": 1.0, "peak_mb": 2.0, "baseline_mb": 3.0},
    "seconds": 4.0,
}
MEMORY = grown({"peak_mb": 100.0, "baseline_mb": 700.0}, {"peak_mb": 103.0, "baseline_mb": 701.0}, 64, 512)


def epochs(*accuracies: float) -> list[dict[str, Any]]:
    return [{"phase": "head", "val_accuracy": a, "seconds": 10.0 * (i + 1)} for i, a in enumerate(accuracies)]


def ours(accuracy: float, seconds: float = 4.0) -> dict[str, Any]:
    scores = {"accuracy": accuracy}
    probe = {"accuracy": 0.4}
    return {
        "strategy": "lp-ft",
        "chosen": "lp-ft",
        "val": scores,
        "test": scores,
        "linear_probe": probe,
        "seconds": seconds,
    }


def history(*accuracies: float) -> list[dict[str, Any]]:
    return [{"val_accuracy": a, "seconds": 1.0} for a in accuracies]


def recipe_values(accuracy: float = 0.9) -> dict[str, Any]:
    return {"n_train": 100, "n_val": 50, **compared(epochs(0.5, 0.8, 0.8), ours(accuracy), history(accuracy))}


def strategy_values(strategy: str, seed: int, test: float) -> dict[str, Any]:
    known = {"data": "flowers", "labels": "all labels", "strategy": strategy, "seed": seed, "chosen": strategy}
    counts = {"n_train": 10, "n_val": 5, "n_test": 20, "seconds": 3.0, "alpha": None}
    return {**known, **counts, "val_accuracy": 0.5, "probe_val_accuracy": None, "test_accuracy": test}


def test_strategies_are_shown_as_mean_and_spread_over_their_seeds() -> None:
    rows = [
        row(Case("strategies", f"{strategy} {seed}", False), 2, strategy_values(strategy, seed, test))
        for strategy, seed, test in (("lp-ft", 0, 0.5), ("full", 0, 0.4), ("lp-ft", 1, 0.6), ("lp-ft", 2, 0.7))
    ]
    text = tables.table("strategies", rows)
    assert "| flowers, all labels: lp-ft | 3 | 10 | 50.0 ± 0.0 % | 60.0 ± 10.0 % | 20 | lp-ft | 3 |" in text
    assert "| flowers, all labels: full | 1 | 10 | 50.0 % | 40.0 % | 20 | full | 3 |" in text
    assert text.index("labels: full") < text.index("labels: lp-ft"), "in the order of the strategies"


def test_strategies_name_the_commits_they_were_measured_with_and_only_the_newest_of_a_case() -> None:
    rows = []
    for commit, seed, test in (("aaaaaaa11111", 0, 0.1), ("bbbbbbb22222", 0, 0.6), ("ccccccc33333+", 1, 0.8)):
        new = row(Case("strategies", f"full {seed}", False), 2, strategy_values("full", seed, test))
        rows.append({**new, "commit": commit})
    text = tables.table("strategies", latest(iter(rows), "strategies"))
    assert "| 70.0 ± 14.1 % | 20 | full | 3 | bbbbbbb, ccccccc |" in text
    assert "aaaaaaa" not in text


def test_distillation_is_shown_for_each_way_of_teaching() -> None:
    rows = [
        row(Case("distillation", f"{how} {seed}", False), 2, {**DISTILLATION, "how": how, "seed": seed})
        for seed in (0, 1)
        for how in ("no teacher", "teacher")
    ]
    text = tables.table("distillation", rows)
    assert "| flowers: small | no teacher | 2 | 50 | 0 | 50.0 ± 0.0 % | 600 | 75.0 ± 0.0 % | 9 |" in text
    assert text.count("flowers: small") == 2


def test_schema_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("suite", "values"),
    [
        ("startup", STARTUP),
        ("memory", MEMORY),
        ("cpu_int8", CPU_INT8),
        ("recipe", recipe_values()),
        ("recipe", recipe_values(0.1)),
        ("strategies", strategy_values("lp-ft", 0, 0.6)),
        ("distillation", DISTILLATION),
        ("scale_fit", SCALE_FIT),
    ],
)
def test_a_row_of_each_suite_is_kept_and_read_back(tmp_path: Path, suite: str, values: dict[str, Any]) -> None:
    first, second = (row(Case(suite, name, quick=False), 2, values) for name in ("a", "b"))
    append(first, tmp_path)
    append(second, tmp_path)
    assert list(read(tmp_path)) == [first, second]
    assert (tmp_path / f"{suite}.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: r["values"].pop("median_s"),
        lambda r: r["values"].update(mean_s=1.0),
        lambda r: r["values"].update(median_s="fast"),
        lambda r: r.update(suite="unknown"),
        lambda r: r.update(at="yesterday"),
        lambda r: r.pop("environment"),
        lambda r: r.update(note="x"),
    ],
)
def test_a_wrong_row_is_not_kept(tmp_path: Path, spoil: Any) -> None:
    wrong = row(Case("startup", "edgetl --help", quick=False), 1, STARTUP)
    spoil(wrong)
    with pytest.raises(jsonschema.ValidationError):
        append(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_kept_row_of_this_repository_fits_the_schema() -> None:
    rows = Counter(r["suite"] for r in read())
    assert rows == {path.stem: path.read_text().count("\n") for path in RESULTS.glob("*.jsonl")}


def test_a_line_that_was_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "startup.jsonl").write_text('{"schema": 1, "sui')
    with pytest.raises(InputError, match=r"startup\.jsonl line 1"):
        list(read(tmp_path))


def test_latest_takes_the_newest_full_row_of_each_case() -> None:
    rows = [
        row(Case("startup", name, quick), 1, {**STARTUP, "runs": runs})
        for name, quick, runs in (("a", False, 1), ("b", False, 2), ("a", False, 3), ("a", True, 4))
    ]
    assert [(r["case"], r["values"]["runs"]) for r in latest(iter(rows), "startup")] == [("a", 3), ("b", 2)]


def test_the_ratio_ends_at_the_first_best_epoch_of_both_and_is_null_where_it_was_not_reached() -> None:
    reached = compared(epochs(0.5, 0.8, 0.8), ours(0.9, seconds=6.0), history(0.7, 0.8, 0.9))
    assert (reached["recipe_best_epoch"], reached["recipe_to_best_s"], reached["recipe_total_s"]) == (2, 20.0, 30.0)
    assert (reached["finetune_to_recipes_best_s"], reached["ratio"]) == (5.0, 4.0)
    never = compared(epochs(0.5, 0.8), ours(0.79), history(0.79))
    assert never["ratio"] is None and never["finetune_to_recipes_best_s"] is None


def test_where_the_probe_suffices_no_epoch_is_counted() -> None:
    assert compared(epochs(0.3, 0.4), ours(0.9, seconds=6.0), history(0.7, 0.8, 0.9))["ratio"] == 6.67


def test_the_cpu_ratio_is_of_the_medians_of_one_bench() -> None:
    graph = {"int8_macs_share": 1.0, "weight_bits": 8, "weight_bits_why": "avx512_vnni"}
    common = {"n_images": 256, "agreement": 0.99, "drop_pp": 0.1}
    rows = {
        "fp32": {**common, "latency_ms": {"p50": 5.0}, "size_bytes": 9_000_000},
        "int8": {**common, "latency_ms": {"p50": 2.5}, "size_bytes": 2_500_000},
    }
    assert side_by_side(rows, graph) == CPU_INT8


def test_growth_is_of_the_peak_above_the_baseline() -> None:
    assert MEMORY["growth_percent"] == 3.0
    assert (
        grown({"peak_mb": 0.0, "baseline_mb": 1.0}, {"peak_mb": 1.0, "baseline_mb": 1.0}, 1, 2)["growth_percent"]
        is None
    )


def test_tables_replace_the_generated_blocks_and_keep_the_prose(tmp_path: Path) -> None:
    for suite, values in (
        ("startup", STARTUP),
        ("memory", MEMORY),
        ("recipe", recipe_values()),
        ("recipe", recipe_values(0.1)),
    ):
        append(row(Case(suite, f"case {values.get('val_accuracy')}", quick=False), 2, values), tmp_path / "results")
    readme = tmp_path / "README.md"
    blocks = "".join(
        f"## {s}\n\n<!-- table: {s} -->\nold\n<!-- end -->\nprose {s}\n" for s in ("startup", "memory", "recipe")
    )
    readme.write_text(blocks)
    tables.write(tmp_path / "results", readme)
    once = readme.read_text()
    assert "old" not in once
    assert all(f"prose {s}\n" in once for s in ("startup", "memory", "recipe"))
    assert "| 0.31 |" in once and "+3.0 %" in once and "**5.0x**" in once and "not reached" in once
    tables.write(tmp_path / "results", readme)
    assert readme.read_text() == once


def test_the_readme_of_this_repository_has_a_block_for_each_table_and_is_up_to_date(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(tables.README.read_text(encoding="utf-8"), encoding="utf-8")
    tables.write(RESULTS, copy)
    assert copy.read_text(encoding="utf-8") == tables.README.read_text(encoding="utf-8")
    assert copy.read_text(encoding="utf-8").count("<!-- table: ") == len(SUITES)


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: speed -->\n<!-- end -->\n")
    with pytest.raises(KeyError, match="speed"):
        tables.write(tmp_path, readme)


def test_without_rows_a_table_says_so() -> None:
    assert tables.table("memory", []) == tables.NO_ROWS


def test_rows_are_one_json_object_a_line(tmp_path: Path) -> None:
    append(row(Case("memory", "line\nbreak", quick=True), 1, MEMORY), tmp_path)
    (only,) = (tmp_path / "memory.jsonl").read_text().splitlines()
    assert json.loads(only)["case"] == "line\nbreak"
