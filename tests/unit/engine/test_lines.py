"""How each TensorRT line is asked to build, on stand-ins that have that line's names and no others.

TensorRT 8.x, 10.x and 11 need their libraries and a GPU even to be imported, so what they are asked for
is watched here; test_names.py holds the names against the real bindings.
"""

from __future__ import annotations

import json
from pathlib import Path
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

RECORDED = Path(__file__).resolve().parents[2] / "data/trt_names"
FLAGS = {"8.6.1": {"FP16", "INT8", "TF32"}, "10.3.0": {"FP16", "INT8", "TF32"}, "11.4.0": {"TF32"}}
MEMBERS = {
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "LayerType": dict.fromkeys(("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED", "DEQUANTIZE")),
    "MemoryPoolType": {"WORKSPACE": 0},
    "ProfilingVerbosity": {"DETAILED": 0},
    "TensorIOMode": {"INPUT": 0, "OUTPUT": 0},
    "LayerInformationFormat": {"JSON": 0},
}


class StandIn:
    """A binding of one version: the enums and classes that a build uses, and what was asked of them."""

    def __init__(self, version: str, precision: str = "int8") -> None:
        lacks = set(json.loads((RECORDED / f"{version}.json").read_text())["lacks"])
        for enum, members in MEMBERS.items():
            kept = {n: (n if v is None else v) for n, v in members.items() if n not in lacks}
            setattr(self, enum, SimpleNamespace(**kept))
        self.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
        self.BuilderFlag = SimpleNamespace(**{n: n for n in FLAGS[version]})
        self.ILogger = type("ILogger", (), {"__init__": lambda self: None})
        if "IProgressMonitor" not in lacks:
            self.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
        self.config = Config(lacks)
        self.network_bits: int | None = None
        self.profile: dict[str, Any] = {}
        self.OnnxParser = lambda network, logger: SimpleNamespace(parse=lambda data: True)
        self.Builder = lambda logger: self
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: Engine(precision))

    def create_network(self, bits: int) -> Any:
        self.network_bits = bits
        image = SimpleNamespace(name="image", shape=(-1, 3, 8, 8))
        return SimpleNamespace(num_outputs=1, num_inputs=1, num_layers=0, get_input=lambda i: image)

    def create_builder_config(self) -> Config:
        return self.config

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda name, *shapes: self.profile.update({name: shapes}))

    def build_serialized_network(self, network: Any, config: Any) -> bytes:
        return b"plan"


class Config:
    """An IBuilderConfig with TensorRT's own starting flags."""

    def __init__(self, lacks: set[str]) -> None:
        self.flags = {"TF32"}
        self.limits: dict[int, int] = {}
        self.cache: Any = None
        if "builder_optimization_level" not in lacks:
            self.builder_optimization_level = 3

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self.limits[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        return None if data == b"other GPU" else SimpleNamespace(serialize=lambda: data + b"+")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class Engine:
    """Tells a layer's types only to an inspector whose context knows its shapes, as TensorRT does."""

    num_io_tensors = 1

    def __init__(self, precision: str) -> None:
        self.word = {"int8": "Int8", "fp16": "Half", "fp32": "Float"}[precision]
        self.shapes: dict[str, tuple[int, ...]] = {}

    def create_execution_context(self) -> Any:
        return SimpleNamespace(set_input_shape=lambda name, shape: self.shapes.update({name: shape}))

    def create_engine_inspector(self) -> Any:
        inspector = SimpleNamespace(execution_context=None)

        def information(form: object) -> str:
            known = inspector.execution_context is not None and self.shapes == {"image": (2, 3, 8, 8)}
            word = self.word if known else "N/A due to dynamic shapes"
            layer = {"Name": "c", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": word}], "Outputs": []}
            return json.dumps({"Layers": [layer]})

        inspector.get_engine_information = information
        return inspector

    def get_tensor_name(self, index: int) -> str:
        return "image"

    def get_tensor_mode(self, name: str) -> str:
        return "in"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3, 8, 8)


OPTIONS = PlanOptions(batch=BatchProfile(1, 2, 4))


def tools(version: str, precision: str = "int8") -> tuple[Toolkit, Any]:
    binding: Any = StandIn(version, precision)
    return Toolkit(binding, TENSORRT, version, line_for(version)), binding


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
def test_what_each_line_is_asked_for(version: str, precision: str, bits: int, flags: set[str]) -> None:
    kit, binding = tools(version, precision)
    plan = make_plan(kit, b"graph", precision, OPTIONS)
    assert binding.network_bits == bits
    assert binding.config.flags == flags, "TF32 is always off; precision comes from the graph"
    assert binding.profile == {"image": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}
    assert plan.data == b"plan" and plan.coverage.counts[precision] == 1
    assert hasattr(binding.config, "progress_monitor") is False


def test_workspace_level_and_timing_cache_reach_the_builder() -> None:
    kit, binding = tools("10.3.0")
    plan = make_plan(kit, b"graph", "int8", PlanOptions(BatchProfile(1, 2, 4), 256, 5, b"old"))
    assert binding.config.limits == {0: 256 * 2**20}
    assert binding.config.builder_optimization_level == 5
    assert plan.timing_cache == b"old+"


def test_nothing_is_set_that_was_not_asked_for() -> None:
    kit, binding = tools("10.3.0")
    assert make_plan(kit, b"graph", "int8", OPTIONS).timing_cache is None
    assert binding.config.limits == {} and binding.config.builder_optimization_level == 3


def test_a_timing_cache_of_another_gpu_is_refused() -> None:
    kit, _ = tools("10.3.0")
    with pytest.raises(EngineError, match="timing cache does not fit"):
        make_plan(kit, b"graph", "int8", PlanOptions(BatchProfile(1, 2, 4), timing_cache=b"other GPU"))


def test_a_level_where_there_are_none_is_refused() -> None:
    kit, binding = tools("8.6.1")
    del binding.config.builder_optimization_level  # 8.5
    with pytest.raises(EngineError, match="no optimisation levels"):
        make_plan(kit, b"graph", "int8", PlanOptions(BatchProfile(1, 2, 4), level=2))


def test_a_builder_that_gives_nothing_is_an_error() -> None:
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
def test_graphs_whose_shape_does_not_fit(shape: tuple[int, ...], batch: BatchProfile, message: str) -> None:
    kit, binding = tools("10.3.0")
    image = SimpleNamespace(name="image", shape=shape)
    network = SimpleNamespace(num_outputs=1, num_inputs=1, num_layers=0, get_input=lambda i: image)
    binding.create_network = lambda bits: network
    with pytest.raises(EngineError, match=message):
        make_plan(kit, b"graph", "int8", PlanOptions(batch))


def test_the_parsers_errors_of_8x_have_a_number_and_later_ones_a_name() -> None:
    for version, where in (("8.6.1", "node number 7: bad axis"), ("10.3.0", "node '/conv': bad axis")):
        kit, binding = tools(version)
        error = SimpleNamespace(desc=lambda: "bad axis", node=lambda: 7)
        if version != "8.6.1":
            error.node_name = lambda: "/conv"
        parser = SimpleNamespace(parse=lambda data: False, num_errors=1, get_error=lambda i, e=error: e)
        binding.OnnxParser = lambda network, logger, p=parser: p
        with pytest.raises(EngineError, match=where):
            make_plan(kit, b"graph", "int8", OPTIONS)


def test_a_flag_that_is_gone_is_an_error_and_not_another_precision() -> None:
    binding: Any = StandIn("11.4.0")
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


def test_a_tensorrt_that_gives_no_builder_is_one_clear_line() -> None:
    kit, binding = tools("10.3.0")

    def refuse(logger: Any) -> None:
        logger.log(SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
        logger.log(SimpleNamespace(name="ERROR"), "a consequence")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    binding.Builder = refuse
    with pytest.raises(BackendError, match="could not start: CUDA initialization failure"):
        make_plan(kit, b"graph", "int8", OPTIONS)
