"""Suites as TOML: what is read, what is refused and how it is said; rows and tables of what they measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from benchmarks import bench_suite, peers_latency_child, tables
from benchmarks.__main__ import RUNNERS, main
from benchmarks.rows import Case, append, row
from benchmarks.suite import FOLDER, METHODS, Network, Suite, find, load
from edgetl.errors import InputError
from edgetl.measure.latency import Timing

GOOD = """
title = "t"
measures = "bench"
threads = 2
seconds = 1
batches = [1, 8, 1]
precisions = ["int8"]
backends = ["torch"]
providers = ["cpu", "openvino"]
[[networks]]
name = "n"
backbone = "smallnet"
weights = "embedded"
image_size = 32
"""
PEERS = 'title = "t"\nmeasures = "peers"\n[[networks]]\nname = "n"\nbackbone = "b"\nimage_size = 8\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_suite_is_read_with_its_defaults(tmp_path: Path) -> None:
    network = Network(name="n", backbone="smallnet", weights="embedded", image_size=32, data="digits", images=32)
    assert load(written(tmp_path, GOOD)) == Suite(
        name="mine",
        title="t",
        measures="bench",
        networks=(network,),
        threads=2,
        seconds=1.0,
        batches=(1, 8),
        precisions=("int8",),
        target="cpu",
        backends=("torch",),
        providers=("cpu", "openvino"),
    )
    assert load(written(tmp_path, PEERS)).methods == tuple(METHODS)


def test_every_suite_of_this_repository_is_sound_and_has_a_runner() -> None:
    suites = {path.stem: load(path) for path in FOLDER.glob("*.toml")}
    assert {"cpu", "peers_latency", "smallest"} <= set(suites)
    assert {suite.measures for suite in suites.values()} == set(RUNNERS)
    peers = suites["peers_latency"]
    assert {n.backbone for n in peers.networks} == {"resnet18", "mobilenet_v2", "mobilenet_v3_small"}
    assert (peers.batches, {n.image_size for n in peers.networks}) == ((1, 8), {224})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("threads = 2", "thread = 2"),
            r"unknown key.*mine\.toml: thread in the suite; known: title, measures, threads",
        ),
        (
            ("image_size = 32", "image_size = 32\nepochs = 3"),
            r"unknown key.*epochs in network 1; known: name, backbone",
        ),
        (('title = "t"', ""), "a key is missing.*title of the suite"),
        (('backbone = "smallnet"', ""), "a key is missing.*backbone of network 1"),
        (('measures = "bench"', 'measures = "speed"'), r"measures = 'speed' in the suite; one of bench, peers"),
        (("threads = 2", "threads = 0"), "threads = 0 in the suite; a whole number from 1 on"),
        (("threads = 2", "threads = true"), "threads = True"),
        (("seconds = 1", 'seconds = "1"'), "seconds = '1'"),
        (("seconds = 1", "seconds = inf"), "seconds = inf"),
        (("[1, 8, 1]", "[]"), r"batches = \[\] in the suite; a list that is not empty"),
        (("[1, 8, 1]", "8"), "batches = 8"),
        (("[1, 8, 1]", "[1.5]"), r"batches = \[1\.5\]"),
        (('["int8"]', '["int4"]'), r"precisions = \['int4'\] in the suite; one of fp32, fp16, int8"),
        (('["torch"]', '["tflite"]'), "one of torch, onnxruntime, tensorrt"),
        (('"openvino"', '"coreml"'), "one of cpu, openvino, cuda, tensorrt"),
        (("threads = 2", 'target = "mars"'), "target = 'mars' in the suite; use one of"),
        (("threads = 2", 'methods = ["torch"]'), r"methods is for suites that measure peers.*measures = 'bench'"),
        (('weights = "embedded"', 'weights = "best"'), "one of none, embedded, samples"),
        (("[[networks]]", "[networks]"), "without networks"),
        (("[[networks]]", '[[networks]]\nname = "n"\nbackbone = "a"\nimage_size = 1\n[[networks]]'), "one name.*'n'"),
        (("threads = 2", "threads = = 2"), r"not TOML: .*mine\.toml.*line 4"),
    ],
)
def test_what_is_wrong_is_named_with_the_file_and_what_is_allowed(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    assert change[0] in GOOD
    with pytest.raises(InputError, match=said):
        load(written(tmp_path, GOOD.replace(*change)))


def test_a_suite_that_is_not_there_is_an_error_line_with_the_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["suite", "none", "--results", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no such suite: none") and "cpu, peers_latency, smallest" in said
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no such suite"):
        find(str(tmp_path / "mine.toml"))


def bench_row(**changed: Any) -> dict[str, Any]:
    """One row of `edgetl bench`, as far as a benchmark's row is made from it."""
    return {
        **{"id": "onnxruntime-cpu-cpu-int8-b8", "batch": 8, "backend": "onnxruntime", "precision": "int8"},
        **{"provider": "CPUExecutionProvider", "status": "ok", "error": None, "throughput_ips": 4000.0},
        "latency_ms": {"p50": 2.0, "p90": 2.5, "p95": None, "p99": None, "mean": 2.1, "n": 400},
        **{"latency_ci_ms": {"p50": [1.9, 2.1]}, "ratio_p50": [0.25, 0.2, 0.5], "noise": {"why": ["a", "b"]}},
        **{"accuracy": 0.9, "drop_pp": 0.5, "n_images": 40, "size_bytes": 900_000, "peak_rss_mb": 80.0},
        **changed,
    }


def test_a_row_of_bench_becomes_a_row_of_the_suite_and_of_its_table(tmp_path: Path) -> None:
    suite = load(written(tmp_path, GOOD))
    values = bench_suite.values(suite, suite.networks[0], bench_row())
    made = row(Case("bench", "mine: n", quick=False), 2, values)
    append(made, tmp_path / "results")
    text = tables.table("bench", [made])
    assert "| n | onnxruntime CPU int8 | 8 | 2.00 (1.90-2.10) | - | 4.00x (2.00-5.00) | 4000 | 80 | 0.9 |" in text
    assert "| 90.0 (76.9-96.0) %, +0.50, n 40 |" in text
    assert values["noise"] == "a; b"


def test_no_accuracy_is_told_of_random_weights_and_a_failed_row_says_why(tmp_path: Path) -> None:
    suite = load(written(tmp_path, GOOD.replace('weights = "embedded"', "")))
    values = bench_suite.values(suite, suite.networks[0], bench_row())
    assert values["accuracy"] is None and values["drop_pp"] is None
    empty = dict.fromkeys(("latency_ms", "ratio_p50", "throughput_ips", "accuracy", "drop_pp", "peak_rss_mb"))
    failed = bench_suite.values(
        suite, suite.networks[0], bench_row(**empty, status="failed", error="Det runs elsewhere")
    )
    made = row(Case("bench", "mine: n", quick=False), 2, failed)
    append(made, tmp_path / "results")
    assert "| 8 | failed: Det runs elsewhere | - |" in tables.table("bench", [made])


def test_the_fastest_way_of_a_runtime_counts_and_one_that_failed_does_not() -> None:
    slow, fast, broken = Timing([3.0, 3.0, 9.0]), Timing([2.0, 2.1]), Timing([1.0], error=RuntimeError("x"))
    timings = {("torch", "a"): slow, ("torch", "b"): fast, ("torch", "c"): broken, ("other", ""): broken}
    assert peers_latency_child._fastest(timings, "torch") == "b"
    assert peers_latency_child._fastest(timings, "other") is None


def test_a_peer_that_computes_something_else_is_seen() -> None:
    reference = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    assert peers_latency_child.compared(reference, reference) == {"agreement": 1.0, "apart": 0.0, "n_images": 2}
    assert peers_latency_child.compared(reference[:, ::-1], reference)["agreement"] == 0.0
    half = reference.copy()
    half[0, 0] = 2.0
    assert peers_latency_child.compared(half, reference) == {"agreement": 0.5, "apart": 4.0, "n_images": 2}


def peer_row(method: str, p50: float | None, batch: int = 1, **changed: Any) -> dict[str, Any]:
    figures = {"p50_ms": p50, "p50_low_ms": p50, "p50_high_ms": p50, "p90_ms": None, "runs": 50}
    ratio = None if p50 is None else p50 / 8
    values = {**{"network": "n", "batch": batch, "threads": 1, "method": METHODS[method], "status": "ok"}, **figures}
    values |= {"ratio": ratio, "ratio_low": ratio, "ratio_high": ratio, "agreement": 0.75, "apart": 0.1, "n_images": 32}
    values |= {
        "way": "channels_last" if method == "torch" else "",
        "other_ways": "",
        "versions": f"{method} 1",
        "noise": "",
    }
    return row(Case("peers_latency", f"n, batch {batch}: {method}", quick=False), 1, {**values, **changed})


def test_the_peers_stand_beside_each_other_with_what_is_missing_said(tmp_path: Path) -> None:
    gone = dict.fromkeys(("p50_low_ms", "p50_high_ms", "runs", "agreement", "apart", "n_images", "way", "versions"))
    rows = [
        peer_row("torch", 8.0),
        peer_row("ort-fp32", 2.0),
        peer_row("openvino-fp32", None, status="not here: not installed", **gone),
        peer_row("torch", 16.0, batch=8),
    ]
    for made in rows:
        append(made, tmp_path)
    text = tables.table("peers_latency", rows)
    lines = text.splitlines()
    assert lines[2].startswith("| n, batch 1, 1 thread | 8.00 (8.00-8.00) **1.00x** | - | 2.00 (2.00-2.00) **4.00x** |")
    assert "| not here |" in lines[2] and lines[3].startswith(
        "| n, batch 8, 1 thread | 16.00 (16.00-16.00) **0.50x** |"
    )
    assert "- OpenVINO FP32: not here: not installed.\n" in text
    assert "- PyTorch eager: torch 1; channels_last in 2 of 2.\n" in text
    assert "top-1 as PyTorch's: 75 % at least (n 32)" in text


def test_a_row_with_a_time_of_zero_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        append(peer_row("torch", 0.0), tmp_path)
