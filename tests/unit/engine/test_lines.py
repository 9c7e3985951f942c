"""How each TensorRT line is asked to build, on stand-ins that have that line's names and no others.

TensorRT 8.x, 10.x and 11 need their libraries and a GPU even to be imported, so what they are asked for
is watched here; test_names.py holds the names against the real bindings.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from edgetl.engine.plan import PlanOptions, make_plan
from edgetl.engine.toolkit import (
    ALWAYS_TYPED,
    LINES,
    RTX,
    STRONGLY_TYPED,
    WEAKLY_TYPED,
    Toolkit,
    line_for,
)
from edgetl.errors import BackendError, EngineError
from edgetl.runtime.binding import TENSORRT, TENSORRT_RTX, import_binding
from edgetl.spec import BatchProfile

OPTIONS = PlanOptions(batch=BatchProfile(1, 2, 4))


Tools = Callable[..., tuple[Toolkit, Any]]


@pytest.fixture
def tools(stand_in: Callable[..., Any]) -> Tools:
    """tools("10.3.0") -> the Toolkit of that version over a stand-in, and the stand-in."""

    def make(version: str, precision: str = "int8") -> tuple[Toolkit, Any]:
        binding = stand_in(version, precision)
        return Toolkit(binding, TENSORRT, version, line_for(version)), binding

    return make


@pytest.mark.parametrize(
    ("version", "precision", "bits", "flags"),
    [
        ("8.6.1", "fp32", 1, set()),
        ("8.6.1", "fp16", 1, {"FP16"}),
        ("8.6.1", "int8", 1, {"INT8", "FP16"}),
        ("10.3.0", "fp32", 2, set()),
        ("10.3.0", "fp16", 2, set()),
        ("10.3.0", "int8", 2, set()),
        ("11.4.0", "fp16", 0, set()),
        ("11.4.0", "int8", 0, set()),
    ],
)
def test_what_each_line_is_asked_for(tools: Tools, version: str, precision: str, bits: int, flags: set[str]) -> None:
    kit, binding = tools(version, precision)
    plan = make_plan(kit, b"graph", precision, OPTIONS)
    assert binding.network_bits == bits
    assert binding.config.flags == flags, "TF32 is always off; precision comes from the graph"
    assert binding.profile == {"image": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    assert plan.data == b"plan" and plan.coverage.counts[precision] == 1
    assert hasattr(binding.config, "progress_monitor") is False


def test_workspace_level_and_timing_cache_reach_the_builder(tools: Tools) -> None:
    kit, binding = tools("10.3.0")
    plan = make_plan(kit, b"graph", "int8", PlanOptions(BatchProfile(1, 2, 4), 256, 5, b"old"))
    assert binding.config.limits == {0: 256 * 2**20}
    assert binding.config.builder_optimization_level == 5
    assert plan.timing_cache == b"old+"


def test_nothing_is_set_that_was_not_asked_for(tools: Tools) -> None:
    kit, binding = tools("10.3.0")
    assert make_plan(kit, b"graph", "int8", OPTIONS).timing_cache is None
    assert binding.config.limits == {} and binding.config.builder_optimization_level == 3


def test_a_timing_cache_of_another_gpu_is_refused(tools: Tools) -> None:
    kit, _ = tools("10.3.0")
    with pytest.raises(EngineError, match="timing cache does not fit"):
        make_plan(kit, b"graph", "int8", PlanOptions(BatchProfile(1, 2, 4), timing_cache=b"other GPU"))


def test_a_level_where_there_are_none_is_refused(tools: Tools) -> None:
    kit, binding = tools("8.6.1")
    del binding.config.builder_optimization_level  # 8.5
    with pytest.raises(EngineError, match="no optimisation levels"):
        make_plan(kit, b"graph", "int8", PlanOptions(BatchProfile(1, 2, 4), level=2))


def test_a_builder_that_gives_nothing_is_an_error(tools: Tools) -> None:
    kit, binding = tools("10.3.0")
    binding.build_serialized_network = lambda network, config: None
    with pytest.raises(EngineError, match=r"could not build.*--workspace"):
        make_plan(kit, b"graph", "int8", OPTIONS)


@pytest.mark.parametrize(
    ("shape", "batch", "message"),
    [
        ((-1, 3, -1, -1), BatchProfile(1, 1, 1), "only the batch axis"),
        ((4, 3, 8, 8), BatchProfile(1, 1, 8), "use --batch 4"),
    ],
)
def test_graphs_whose_shape_does_not_fit(
    tools: Tools, shape: tuple[int, ...], batch: BatchProfile, message: str
) -> None:
    kit, binding = tools("10.3.0")
    image = SimpleNamespace(name="image", shape=shape)
    network = SimpleNamespace(num_outputs=1, num_inputs=1, num_layers=0, get_input=lambda i: image)
    binding.create_network = lambda bits: network
    with pytest.raises(EngineError, match=message):
        make_plan(kit, b"graph", "int8", PlanOptions(batch))


def test_the_parsers_errors_of_8x_have_a_number_and_later_ones_a_name(tools: Tools) -> None:
    for version, where in (("8.6.1", "node number 7: bad axis"), ("10.3.0", "node '/conv': bad axis")):
        kit, binding = tools(version)
        error = SimpleNamespace(desc=lambda: "bad axis", node=lambda: 7)
        if version != "8.6.1":
            error.node_name = lambda: "/conv"
        parser = SimpleNamespace(parse=lambda data: False, num_errors=1, get_error=lambda i, e=error: e)
        binding.OnnxParser = lambda network, logger, p=parser: p
        with pytest.raises(EngineError, match=where):
            make_plan(kit, b"graph", "int8", OPTIONS)


def test_a_flag_that_is_gone_is_an_error_and_not_another_precision(stand_in: Callable[..., Any]) -> None:
    binding = stand_in("11.4.0")
    with pytest.raises(EngineError, match=r"BuilderFlag\.INT8"):
        WEAKLY_TYPED.builder_flags(binding, "int8")
    with pytest.raises(EngineError, match="EXPLICIT_BATCH"):
        WEAKLY_TYPED.network_bits(binding)


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("8.5.2.2", WEAKLY_TYPED),
        ("8.6.2", WEAKLY_TYPED),
        ("10.3.0.30", STRONGLY_TYPED),
        ("10.16.2", STRONGLY_TYPED),
        ("11.4.1", ALWAYS_TYPED),
        ("12.0", ALWAYS_TYPED),
    ],
)
def test_line_by_version(version: str, line: object) -> None:
    assert line_for(version) is line
    assert line_for("1.7.1.116", TENSORRT_RTX) is RTX


def test_versions_without_a_line_are_refused() -> None:
    for version in ("8.2.1", "9.1", "10.0.1", "what"):
        with pytest.raises(EngineError):
            line_for(version)


def test_every_line_says_what_was_seen_of_it() -> None:
    assert all(line.seen and line.where for line in LINES)


def test_a_missing_binding_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match="pip install tensorrt"):
        import_binding(TENSORRT)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", SimpleNamespace(__version__="1"))
    with pytest.raises(BackendError, match="pip install tensorrt-rtx"):
        import_binding(TENSORRT_RTX)


def test_a_tensorrt_that_gives_no_builder_is_one_clear_line(tools: Tools) -> None:
    kit, binding = tools("10.3.0")

    def refuse(logger: Any) -> None:
        logger.log(SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
        logger.log(SimpleNamespace(name="ERROR"), "a consequence")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    binding.Builder = refuse
    with pytest.raises(BackendError, match="could not start: CUDA initialization failure"):
        make_plan(kit, b"graph", "int8", OPTIONS)
