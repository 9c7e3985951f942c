"""build() with TensorRT proper: what enters the key, the timing cache, what is refused. On stand-ins (no GPU here)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.bundle import Bundle, sha256_file
from edgetl.engine import BuildOptions, Toolkit, build, line_for
from edgetl.errors import BackendError, EngineError
from edgetl.runtime.binding import TENSORRT
from edgetl.runtime.cudart import Gpu
from edgetl.spec import BatchProfile, Precision
from edgetl.target import BOARDS

BATCH = BatchProfile(1, 2, 4)
MODULE: Any = sys.modules["edgetl.engine.build"]  # the package's name for it is the function
Machine = Callable[..., Any]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., Any]) -> Machine:
    """machine("10.3.0", "int8") makes this process believe in that TensorRT on an Orin Nano."""

    def make(version: str, precision: str = "int8", sm: tuple[int, int] = (8, 7), sm_count: int = 8) -> Any:
        binding = stand_in(version, precision)
        kit = Toolkit(binding, TENSORRT, version, line_for(version))
        monkeypatch.setattr(MODULE, "load", lambda flavour: kit)
        monkeypatch.setattr(MODULE.cudart, "gpu", lambda device=0: Gpu("Orin", sm, sm_count, 8000))
        monkeypatch.setattr(MODULE, "jetson_board", lambda: BOARDS[2])
        return binding

    return make


@pytest.fixture
def bundle(tmp_path: Path, graph_bundle: Callable[..., Path]) -> Path:
    """Graphs of both profiles; the stand-ins never look inside."""
    graphs = {}
    for profile, precision in (("trt8", "fp32"), ("trt8", "int8"), ("trt10", "fp32"), ("trt10", "int8")):
        graphs[profile, precision] = tmp_path / f"{profile}-{precision}.onnx"
        graphs[profile, precision].write_bytes(f"{profile} {precision}".encode())
    return graph_bundle(graphs)


def options(precision: str = "int8", **more: Any) -> BuildOptions:
    return BuildOptions(Precision(precision), batch=BATCH, **more)


def test_the_key_holds_the_machine(bundle: Path, machine: Machine) -> None:
    machine("10.3.0")
    made = build(bundle, options(workspace_mib=256, level=2))["artifacts"][0]
    key = made["key"]
    assert (key["gpu"], key["sm"], key["sm_count"], key["board"]) == ("Orin", "8.7", 8, "Orin Nano 8GB")
    assert (key["tensorrt"], key["flavour"], key["batch"]) == ("10.3.0", "tensorrt", "1,2,4")
    assert (key["workspace_mib"], key["level"], key["tf32"], key["timing_cache_sha256"]) == (256, 2, False, "")
    assert made["runs_on"].startswith("Orin Nano 8GB (SM 8.7), TensorRT 10.3.0, ")
    assert Bundle.open(bundle).artifact("engine")["layers_read_from"] == "engine inspector"


def test_another_gpu_or_tensorrt_builds_again(bundle: Path, machine: Machine) -> None:
    machine("10.3.0")
    assert not build(bundle, options())["artifacts"][0]["reused"]
    assert build(bundle, options())["artifacts"][0]["reused"]
    machine("10.3.0", sm_count=4)
    assert not build(bundle, options())["artifacts"][0]["reused"]
    machine("11.4.0")
    assert not build(bundle, options())["artifacts"][0]["reused"]


def test_the_profile_follows_the_tensorrt(bundle: Path, machine: Machine) -> None:
    machine("8.6.1")
    assert build(bundle, options())["artifacts"][0]["profile"] == "trt8"
    machine("11.4.0")
    assert build(bundle, options())["artifacts"][0]["profile"] == "trt10"


def test_tensorrt_8_makes_fp16_of_the_fp32_graph(bundle: Path, machine: Machine) -> None:
    binding = machine("8.6.1", "fp16")
    made = build(bundle, options("fp16"))["artifacts"][0]
    assert binding.config.flags == {"FP16"}
    graph = Bundle.open(bundle).artifact("graph", profile="trt8", precision="fp32")
    assert made["precision"] == made["key"]["precision"] == "fp16"
    assert made["key"]["graph_sha256"] == graph["sha256"]
    machine("8.6.1", "fp32")
    assert not build(bundle, options("fp32"))["artifacts"][0]["reused"], "the same graph, another engine"


def test_an_engine_that_came_out_in_fp32_is_refused(bundle: Path, machine: Machine) -> None:
    machine("11.4.0", "fp32")
    with pytest.raises(EngineError, match="lost its precision"):
        build(bundle, options("int8"))
    assert Bundle.open(bundle).artifacts("engine") == []


def test_the_timing_cache_is_written_back_and_then_allows_reuse(bundle: Path, machine: Machine, tmp_path: Path) -> None:
    machine("10.3.0")
    cache = tmp_path / "timing.cache"
    first = build(bundle, options(timing_cache=cache))["artifacts"][0]
    assert cache.read_bytes() == b"+" and first["key"]["timing_cache_sha256"] == sha256_file(cache)
    assert build(bundle, options(timing_cache=cache))["artifacts"][0]["reused"]
    cache.write_bytes(b"of another build")
    assert not build(bundle, options(timing_cache=cache))["artifacts"][0]["reused"]
    assert cache.read_bytes() == b"of another build+"


def test_a_failed_build_leaves_the_timing_cache(bundle: Path, machine: Machine, tmp_path: Path) -> None:
    machine("10.3.0", "fp32")
    with pytest.raises(EngineError):
        build(bundle, options("int8", timing_cache=tmp_path / "timing.cache"))
    assert not (tmp_path / "timing.cache").exists()


def test_a_target_of_another_line_is_refused(bundle: Path, machine: Machine) -> None:
    machine("10.3.0")
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 does not build trt8 graphs: jetpack5"):
        build(bundle, options(target="jetpack5"))
    machine("8.6.1")
    with pytest.raises(EngineError, match="does not build trt10 graphs"):
        build(bundle, options(target="jetpack6"))


def test_int8_without_int8_units_is_refused(bundle: Path, machine: Machine) -> None:
    machine("8.6.1", sm=(6, 0))
    with pytest.raises(EngineError, match="no INT8 units"):
        build(bundle, options())


def test_tensorrt_without_a_gpu_says_what_works_here(
    bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("10.3.0")

    def none(device: int = 0) -> Gpu:
        raise BackendError("CUDA failed", "35 cudaErrorInsufficientDriver", "install a driver")

    monkeypatch.setattr(MODULE.cudart, "gpu", none)
    with pytest.raises(BackendError, match=r"no GPU to build on.*--with tensorrt-rtx"):
        build(bundle, options())
