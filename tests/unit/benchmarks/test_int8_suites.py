"""The pieces of the INT8 benchmarks: rows and tables, cached bundles, one quantiser in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from benchmarks import contract, hard, memory_child, networks, peers, peers_child, tables
from benchmarks.child import run_module
from benchmarks.rows import Case, append, read, row
from benchmarks.subject import Subject, adopted, searched

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")

JUDGED = {"reference_accuracy": 0.97, "n": 4000, "drop_pp": 0.25, "drop_low_pp": -0.1, "drop_high_pp": 0.6} | {
    "n_needed": 5000,
    "agreement": 0.985,
    "kl": 0.0031,
    "int8_macs_share": 0.993,
    "nvidia": "accepted",
}
GUARD: dict[str, Any] = {
    "verdict": "unresolved",
    "drop_pp": 0.2,
    "n": 2000,
    "excluded_nodes": ["a", "b"],
    "rungs": [{"name": "max", "kept": True}, {"name": "mse", "kept": False}, {"name": "bias corrected", "kept": True}],
}
CONTRACT = {**JUDGED, **searched(GUARD), "calibration_images": 512, "seconds": 61.0, "fp32_pass_s": 5.1, "passes": 12.0}
HARD = {**JUDGED, **searched(GUARD), "network": "net", "variant": "ladder", "seconds": 61.0}
NAMED = {"network": "net", "method": "nncf", "calibration_images": 256}
PEER = {**JUDGED, **NAMED, "seconds": 20.0, "peak_mb": 50.5, "total_mb": 800.1, "said": "", "status": "ok"}
ABSENT = {**dict.fromkeys(peers.FIGURES), **NAMED, "reference_accuracy": 0.97, "status": "not installed"}


def test_what_the_search_did_is_told_by_the_rungs_that_were_kept() -> None:
    found = searched(GUARD)
    assert (found["rungs"], found["rungs_tried"], found["nodes_in_float"]) == ("max > bias corrected", 3, 2)


@pytest.mark.parametrize(
    ("suite", "values", "shown"),
    [
        ("contract", CONTRACT, ["unresolved (+0.20, 2000)", "+0.25 (-0.10 to +0.60)", "99.3 %", "12.0"]),
        ("hard", HARD, ["unresolved: max > bias corrected", "98.5 %", "0.0031"]),
        ("peers", PEER, ["+0.25 (-0.10 to +0.60)", "99.3 %", "50", "800"]),
        ("peers", {**PEER, "int8_macs_share": None, "nvidia": "refused: non-zero zero point"}, ["| refused |"]),
        ("peers", ABSENT, ["| not installed |"]),
        ("peers", {**ABSENT, "status": "failed: out of memory"}, ["| failed: out of memory |"]),
    ],
)
def test_a_row_is_kept_and_shown(suite: str, values: dict[str, Any], shown: list[str], tmp_path: Path) -> None:
    append(row(Case(suite, "net: how", quick=False), 2, values), tmp_path)
    text = tables.table(suite, list(read(tmp_path)))
    assert all(piece in text for piece in shown), text
    header, line, cells = text.splitlines()[:3]
    assert header.count("|") == line.count("|") == cells.count("|")


@pytest.mark.parametrize(
    ("suite", "values"),
    [
        ("contract", {**CONTRACT, "verdict": "good"}),
        ("contract", {**CONTRACT, "more": 1}),
        ("hard", {key: value for key, value in HARD.items() if key != "kl"}),
        ("peers", {**PEER, "drop_pp": None}),
        ("peers", {**ABSENT, "drop_pp": 0.0}),  # a figure of what was not measured
        ("peers", {**ABSENT, "status": "skipped"}),
    ],
)
def test_a_wrong_row_is_not_kept(suite: str, values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        append(row(Case(suite, "net", quick=False), 2, values), tmp_path)


def test_a_peer_that_is_not_installed_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_PEERS_PYTHON", str(tmp_path / "nowhere"))
    assert peers.python_of("nncf") is None
    assert peers.python_of("edgetl") == peers.python_of("modelopt-max") == sys.executable
    assert set(peers.METHODS) <= set(peers_child.METHODS)


def test_pooled_domains_are_one_folder_a_class(tmp_path: Path) -> None:
    for domain in ("photo", "sketch"):
        for label in ("cat", "dog"):
            folder = tmp_path / "source" / domain / label
            folder.mkdir(parents=True)
            (folder / "1.png").write_text(domain + label)
    to = networks._pooled(tmp_path / "source", tmp_path / "to")
    assert {str(p.relative_to(to)): p.read_text() for p in to.glob("*/*")} == {
        f"{label}/{domain}-1.png": domain + label for domain in ("photo", "sketch") for label in ("cat", "dog")
    }


def test_the_draw_is_balanced_and_its_splits_are_apart(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "PER_CLASS", {"train": 6, "val": 3, "test": 2})
    to = networks._mnist(make_folder(n=12), tmp_path / "drawn")
    counts = {s: [len(list((to / s / label).iterdir())) for label in ("left", "right")] for s in networks.PER_CLASS}
    assert counts == {"train": [6, 6], "val": [3, 3], "test": [2, 2]}
    drawn = [p.resolve() for p in to.glob("*/*/*")]
    assert len(set(drawn)) == len(drawn) == 22


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError), networks._whole(tmp_path / "data") as scratch:
        (scratch / "half").write_text("x")
        raise KeyError
    assert not (tmp_path / "data").exists()
    with networks._whole(tmp_path / "data") as scratch:
        (scratch / "all").write_text("x")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["all"]


def test_a_recipe_is_known_by_what_it_says_and_not_by_where_its_weights_lie() -> None:
    here, there = (("--weights", f"{os.sep}{place}{os.sep}w.pth", "--epochs", "3") for place in ("a", "b"))
    assert networks._portable(here) == networks._portable(there) == ["--weights", "w.pth", "--epochs", "3"]


def test_quick_runs_need_no_samples() -> None:
    assert len(hard.networks(quick=True)) == len(contract.recipes(quick=True)) == 1


def test_images_are_handed_over_as_floats_with_channels_first() -> None:
    images = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    found = list(peers_child.batches(images, 2))
    assert [b.shape for b in found] == [(2, 3, 2, 2), (1, 3, 2, 2)]
    assert found[0].dtype == np.float32 and found[0][1, 2, 0, 1] == images[1, 0, 1, 2]


@linux
def test_the_memory_of_child_processes_is_in_the_total() -> None:
    code = "import time; held = bytearray(80_000_000); time.sleep(1)"
    with peers_child._Measured() as measured:
        subprocess.run([sys.executable, "-c", code], check=True)
    answer = measured.answer("g.onnx")
    assert answer["total_mb"] - answer["peak_mb"] - measured.taken["baseline_mb"] > 80
    assert answer["seconds"] >= 1 and list(memory_child.children(os.getpid())) == []


@pytest.fixture
def job(tiny_graph: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "calibration.npy", images)
    return {
        "graph": str(tiny_graph()),
        "calibration": str(tmp_path / "calibration.npy"),
        "to": str(tmp_path / "out.onnx"),
        "threads": 1,
    }


@linux
@pytest.mark.slow
@pytest.mark.parametrize("method", ["onnxruntime-minmax", "onnxruntime-entropy", "modelopt-max"])
def test_a_peer_makes_a_symmetric_int8_graph(job: dict[str, Any], tmp_path: Path, method: str) -> None:
    import onnx
    from onnx import numpy_helper

    (tmp_path / "job.json").write_text(json.dumps(job))
    answer = run_module("benchmarks.peers_child", method, str(tmp_path / "job.json"), threads=1)
    assert answer["graph"] == job["to"] and answer["peak_mb"] > 0
    graph = onnx.load(answer["graph"]).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) >= 2
    zeros = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    points = [numpy_helper.to_array(t) for t in graph.initializer if t.name in zeros]
    assert points and all(p.dtype == np.int8 and not p.any() for p in points)


@linux
@pytest.mark.slow
def test_what_a_quantiser_raises_is_its_answer(job: dict[str, Any], tmp_path: Path) -> None:
    Path(job["graph"]).write_bytes(b"no graph")
    (tmp_path / "job.json").write_text(json.dumps(job))
    answer = run_module("benchmarks.peers_child", "onnxruntime-minmax", str(tmp_path / "job.json"), threads=1)
    assert "DecodeError" in answer["error"]


@pytest.mark.slow
def test_the_fp32_graph_itself_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_BENCH_CACHE", str(tmp_path / "cache"))
    options = ("--backbone", "smallnet", "--weights", "embedded", "--strategy", "linear-probe")
    recipe = networks.Recipe("smallnet, digits", "digits", options)
    bundle = networks.bundle_of(recipe)
    made = (bundle / "manifest.json").stat().st_mtime_ns
    assert networks.bundle_of(recipe) == bundle and (bundle / "manifest.json").stat().st_mtime_ns == made
    subject = Subject.of(bundle, tmp_path / "subject", 64)
    found = subject.judge(subject.graph)
    assert (found["drop_pp"], found["agreement"], subject.calibration_images) == (0.0, 1.0, 64)
    assert found["n"] == len(np.load(subject.folder / "targets.npy")) + 497  # val and test
    same = Subject.of(adopted(bundle, tmp_path / "adopted", lambda source: source), tmp_path / "again", 64)
    assert same.judged.n == subject.judged.n
    np.testing.assert_allclose(np.sort(same.logits, axis=0), np.sort(subject.logits, axis=0), atol=1e-3)
