"""A small graph whose every layer's precision is known beforehand; stand-ins for TensorRTs that need a GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


class LayerGraph:
    """Writes a small classifier as ONNX: two convolutions that may be quantised, a plain one, a Gemm.

    Input "image" float32 (B, 3, 32, 32), output "logits" float32 (B, 5). `precision` int8 puts Q/DQ
    around the first two convolutions; `rest` is the type of everything else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self, precision: str = "fp32", rest: str = "fp32", seed: int = 0, per_channel_input: bool = False
    ) -> Path:
        from onnx import TensorProto, checker, helper, numpy_helper, save

        rng = np.random.default_rng(seed)
        dtype = np.float16 if rest == "fp16" else np.float32
        weights: list[Any] = []
        nodes: list[Any] = []

        def const(name: str, value: Any) -> str:
            weights.append(numpy_helper.from_array(np.asarray(value), name))
            return name

        def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op, inputs, [name + "_out"], name=name, **attributes))
            return name + "_out"

        def conv(x: str, index: int, channels: int, quantised: bool) -> str:
            kernel = rng.normal(0, 0.2, (8, channels, 3, 3)).astype(dtype)
            name, axis = f"/conv{index}", 0
            if quantised:
                many = (channels,) if per_channel_input else ()
                scale = const(f"s{index}", np.full(many, 0.05, dtype))
                zero = const(f"z{index}", np.zeros(many, np.int8))
                x = add("QuantizeLinear", [x, scale, zero], name + "/Q", axis=1)
                x = add("DequantizeLinear", [x, scale, zero], name + "/DQ", axis=1)
                steps = const(f"ws{index}", np.full(8, 0.005, dtype))
                codes = const(f"wq{index}", np.clip(np.round(kernel / 0.005), -127, 127).astype(np.int8))
                zeros = const(f"wz{index}", np.zeros(8, np.int8))
                weight = add("DequantizeLinear", [codes, steps, zeros], name + "/W", axis=axis)
            else:
                weight = const(f"w{index}", kernel)
            bias = const(f"b{index}", rng.normal(0, 0.1, 8).astype(dtype))
            return add("Relu", [add("Conv", [x, weight, bias], name + "/Conv", pads=[1] * 4)], name + "/Relu")

        x = add("Mul", ["image", const("scale", np.float32(1 / 255))], "/scale")
        x = add("Cast", [x], "/to_rest", to=TensorProto.FLOAT16) if rest == "fp16" else x
        for index, channels in enumerate((3, 8, 8)):
            x = conv(x, index, channels, precision == "int8" and index < 2)
        x = add("Flatten", [add("GlobalAveragePool", [x], "/pool")], "/flat")
        x = add("Gemm", [x, const("head", rng.normal(0, 1, (8, 5)).astype(dtype))], "/head/Gemm")
        nodes.append(helper.make_node("Cast", [x], ["logits"], name="/logits", to=TensorProto.FLOAT))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])
        graph = helper.make_graph(nodes, "layers", [image], [logits], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        checker.check_model(model)
        path = self._folder / f"layers-{precision}-{rest}-{seed}{'-pc' * per_channel_input}.onnx"
        save(model, str(path))
        return path


@pytest.fixture
def layer_graph(tmp_path: Path) -> LayerGraph:
    """layer_graph("int8", rest="fp16") -> path of a small ONNX classifier."""
    return LayerGraph(tmp_path)


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


@pytest.fixture
def stand_in() -> Callable[..., Any]:
    """stand_in("8.6.1", "int8") -> a binding with that version's names, whose engine tells that precision."""
    return StandIn
