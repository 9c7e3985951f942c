"""The smallest suite from its file to rows, and the peers beside each other: real bundles, real runtimes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.rows import read

pytestmark = pytest.mark.slow

PEERS = """
title = "t"
measures = "peers"
methods = ["torch", "ort-fp32", "ort-int8", "openvino-int8"]
batches = [2]
seconds = 0.2
[[networks]]
name = "smallnet at 32 px"
backbone = "smallnet"
weights = "embedded"
image_size = 32
images = 20
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def rows_of(suite: str, to: Path, *more: str) -> list[dict[str, Any]]:
    """The rows that a suite appended, each checked against the schema as it is read."""
    assert main(["suite", suite, "--results", str(to), *more]) == 0
    return list(read(to))


def test_the_smallest_suite_gives_a_row_for_each_candidate(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETL_BENCH_CACHE", str(cache))
    rows = rows_of("smallest", tmp_path / "results")
    assert [r["case"].rpartition(", ")[2] for r in rows] == [
        "torch-cpu-fp32-b1",
        "onnxruntime-cpu-cpu-fp32-b1",
        "onnxruntime-cpu-cpu-int8-b1",
    ]
    assert {r["values"]["status"] for r in rows} == {"ok"} and not any(r["quick"] for r in rows)
    assert all(r["values"]["p50_ms"] > 0 and r["values"]["accuracy"] > 0.8 for r in rows)
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("manifest.json")}
    again = rows_of("smallest", tmp_path / "results", "--quick")
    assert len(again) == 6 and all(r["quick"] for r in again[3:])
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("manifest.json")} == made  # nothing made twice


def test_peers_answer_alike_and_one_that_is_missing_says_so(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETL_BENCH_CACHE", str(cache))
    monkeypatch.setenv("EDGETL_PEERS_PYTHON", str(tmp_path / "none"))
    (tmp_path / "peers.toml").write_text(PEERS)
    rows = {r["values"]["method"]: r["values"] for r in rows_of(str(tmp_path / "peers.toml"), tmp_path / "results")}
    eager, fp32 = rows["PyTorch eager"], rows["edgetl: ONNX Runtime FP32"]
    assert (eager["ratio"], eager["apart"], eager["batch"]) == (1.0, 0.0, 2)
    assert {eager["way"], eager["other_ways"].split()[0]} == {"contiguous", "channels_last"}
    assert fp32["agreement"] == 1.0 and fp32["apart"] < 1e-3 and fp32["runs"] >= 30
    assert rows["edgetl: ONNX Runtime INT8"]["agreement"] > 0.8
    theirs = rows["OpenVINO INT8 (the same graph)"]
    if importlib.util.find_spec("openvino") is None:
        assert theirs["status"].startswith("not here: not installed") and theirs["p50_ms"] is None
    else:
        assert theirs["status"] == "ok" and theirs["agreement"] > 0.8
