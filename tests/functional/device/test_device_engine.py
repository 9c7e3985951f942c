"""Build, prove, measure and serve an engine through the device's verbs, with doubles of TensorRT and CUDA below.

The doubles (tests/doubles) run the graph with onnxruntime; all else is the real thing: processes, the ladder of a
killed build, keys and caches, CUDA buffers, streams and recorded graphs through ctypes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

INT8 = ("--precision", "int8")


@pytest.fixture
def built(with_tensorrt: Any, device_bundle: Path) -> Any:
    """(device, bundle) with an INT8 engine."""
    device = with_tensorrt()
    device("build", device_bundle, *INT8, "--batch", "1,1,4")
    return device, device_bundle


def test_an_engine_is_built_proved_measured_and_serves(built: Any, opened: Any, tmp_path: Path) -> None:
    device, bundle = built
    told = device("verify", bundle, *INT8)
    assert told["ok"] and len(told["checks"]) == 4
    image = opened.file(opened.artifacts("golden-image")[0])
    wanted = device("classify", bundle, image, *INT8, "--backend", "onnxruntime")["predictions"]
    for how in ((), ("--cuda-graph", "--mapped")):
        assert device("classify", bundle, image, *INT8, *how)["predictions"] == wanted
    told = device("bench", bundle, *INT8, "--seconds", 0.05, "--batch", "1,4", "--no-peaks")
    row = told["rows"][0]
    assert (row["backend"], row["split"], row["accuracy"]) == ("tensorrt", "golden", None)
    assert row["device_ms"]["mean"] > 0 and row["latency_evidence"] == "host-gpu" and len(row["engine_key"]) == 12


def test_another_build_is_a_look_up_even_from_another_bundle(
    with_tensorrt: Any, device_bundle: Path, tmp_path: Path
) -> None:
    import shutil

    device, engines = with_tensorrt(), tmp_path / "engines"
    other = tmp_path / "second release"
    shutil.copytree(device_bundle, other)
    words = (*INT8, "--engines", engines)
    first = device("build", device_bundle, *words)["artifacts"][0]
    again = device("build", device_bundle, *words)["artifacts"][0]
    elsewhere = device("build", other, *words)["artifacts"][0]
    assert (first["reused"], again["reused"], elsewhere["reused"]) == (False, True, True)
    assert first["key"] == again["key"] == elsewhere["key"] and len(first["key"]["timing_cache_sha256"]) == 64
    assert first["layers"]["int8"] == 1 and first["key"]["gpu"] == "Orin"
    plan = next(engines.glob("*.plan"))
    plan.write_bytes(plan.read_bytes() + b"damage")
    shutil.rmtree(other)
    shutil.copytree(device_bundle, other)
    (other / first["file"]).unlink()
    assert device("build", other, *words)["artifacts"][0]["reused"] is False, "a damaged plan is as good as none"


@pytest.mark.slow
@pytest.mark.rtx
def test_nvidias_own_builder_fills_the_shared_engines(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    """TensorRT for RTX builds ahead of time, without a GPU: a real plan goes through the cache."""
    pytest.importorskip("tensorrt_rtx")
    import shutil

    other, engines = tmp_path / "second release", tmp_path / "engines"
    shutil.copytree(device_bundle, other)
    words = (*INT8, "--with", "tensorrt-rtx", "--engines", engines)
    first = device("build", device_bundle, *words)["artifacts"][0]
    elsewhere = device("build", other, *words)["artifacts"][0]
    assert (first["reused"], elsewhere["reused"]) == (False, True) and first["layers"]["int8"] > 0
    assert first["sha256"] == elsewhere["sha256"] and (other / elsewhere["file"]).is_file()


@pytest.mark.slow
def test_another_tensorrt_builds_its_own(with_tensorrt: Any, device_bundle: Path) -> None:
    with_tensorrt()("build", device_bundle, *INT8)
    newer = with_tensorrt(DOUBLE_TRT_VERSION="10.16.2.10")
    told = newer("verify", device_bundle, *INT8, code=1)
    assert "another device" in told["error"]["what"] and "10.16.2.10" in told["error"]["value"]
    assert newer("build", device_bundle, *INT8)["artifacts"][0]["reused"] is False
    assert newer("verify", device_bundle, *INT8)["ok"]


def test_a_killed_build_goes_down_the_ladder_and_remembers(
    with_tensorrt: Any, device_bundle: Path, tmp_path: Path
) -> None:
    device = with_tensorrt(DOUBLE_TRT_NEEDS="256,1")
    words = ("build", device_bundle, *INT8, "--engines", tmp_path / "engines")
    done = device.run(*words)
    told = json.loads(done.stdout)
    tries = [(t["workspace_mib"], t["level"], t["ended"]) for t in told["attempts"]]
    killed = "killed (-9)"
    assert tries == [(0, -1, killed), (256, -1, killed), (256, 2, killed), (256, 1, "built")]
    assert "next: 256 MiB workspace, level 1" in done.stderr and told["artifacts"][0]["key"]["level"] == 1
    assert not list(device_bundle.parent.glob("*.work/build")), "a killed try left its scratch"
    again = device(*words)
    assert len(again["attempts"]) == 1 and again["artifacts"][0]["reused"] is True


def test_a_build_that_is_always_killed_says_so_and_leaves_the_bundle_as_it_was(
    with_tensorrt: Any, device_bundle: Path
) -> None:
    before = (device_bundle / "manifest.json").read_bytes()
    told = with_tensorrt(DOUBLE_TRT_NEEDS="1,-1")("build", device_bundle, *INT8, code=1)
    assert "every rung" in told["error"]["what"] and "multi-user.target" in told["error"]["do"]
    assert (device_bundle / "manifest.json").read_bytes() == before


def test_8_5_has_no_levels_to_go_down(with_tensorrt: Any, device_bundle: Path) -> None:
    told = with_tensorrt(DOUBLE_TRT_VERSION="8.5.2.2")("build", device_bundle, *INT8, code=1)
    assert "trt8" in told["error"]["what"] or "no graph" in told["error"]["what"]


def test_too_little_memory_is_told_before_anything_is_built(
    with_tensorrt: Any, device_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "root/proc").mkdir(parents=True)
    (tmp_path / "root/proc/meminfo").write_text("MemTotal: 4000000 kB\nMemAvailable: 200000 kB\n")
    told = with_tensorrt()("build", device_bundle, *INT8, "--root", tmp_path / "root", code=1)
    assert "too little memory" in told["error"]["what"] and "204 MB available" in told["error"]["value"]


def test_an_engine_that_lost_its_precision_is_not_kept(with_tensorrt: Any, device_bundle: Path, tmp_path: Path) -> None:
    device = with_tensorrt(DOUBLE_TRT_LAYERS="Float")
    told = device("build", device_bundle, *INT8, "--engines", tmp_path / "engines", code=1)
    assert "lost its precision" in told["error"]["what"] and not list((tmp_path / "engines").glob("*.plan"))


def test_an_engine_that_says_something_else_than_its_graph_fails_its_proof(built: Any, with_tensorrt: Any) -> None:
    _, bundle = built
    told = with_tensorrt(DOUBLE_TRT_NOISE="nan")("verify", bundle, *INT8, code=1)
    assert not told["ok"] and "NaN" in told["checks"][1]["name"] + str(told["checks"][1]["value"])


def test_the_selftest_builds_and_runs_all_of_it(with_tensorrt: Any) -> None:
    told = with_tensorrt()("selftest", "--seconds", 0.02)
    names = {step["name"]: step["ok"] for step in told["steps"]}
    assert told["ok"] and all(names.values())
    assert {"build int8 with tensorrt", "verify tensorrt CUDA graph", "verify tensorrt mapped"} <= set(names)
    assert "bench onnxruntime" in names and told["seen"]["line"] == "10" and told["seen"]["ran"]


@pytest.mark.slow
def test_the_selftest_tells_a_fault_and_goes_on(with_tensorrt: Any) -> None:
    told = with_tensorrt(DOUBLE_TRT_NOISE="nan")("selftest", "--seconds", 0.02, code=1)
    names = {step["name"]: step["ok"] for step in told["steps"]}
    assert not names["verify tensorrt"] and names["verify onnxruntime"] and names["build fp16 with tensorrt"]
    assert "verify tensorrt" in told["error"]["value"]
