"""A `tensorrt` of the names that edgetl uses, over onnxruntime and the CUDA double (cuda_double.c).

It stands where TensorRT cannot run: a "plan" is the graph behind a header that names this version and GPU, and
running it is onnxruntime on the buffers' addresses. So everything around the builder and the engine runs as it is:
processes, keys, caches, the ladder, buffers, streams, recorded graphs. What it does not show is TensorRT itself.

DOUBLE_TRT_VERSION   the version it claims (10.3.0.30)
DOUBLE_TRT_NEEDS     "WORKSPACE_MIB,LEVEL": a build with more workspace or a higher level is killed, as by the kernel
DOUBLE_TRT_NOISE     added to each logit
DOUBLE_TRT_LAYERS    the data type that the inspector tells of every layer, instead of the graph's own
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from edgetl.runtime.metadata import metadata

__version__ = os.environ.get("DOUBLE_TRT_VERSION", "10.3.0.30")
_HEADER = b"double " + __version__.encode() + b"\n"
_MIB = 1 << 20
_cuda = ctypes.CDLL("libcudart.so.13")


class ILogger:
    """What a logger is made of."""

    def __init__(self) -> None:
        self.severity = SimpleNamespace(name="ERROR")


NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1, EXPLICIT_BATCH=0)
BuilderFlag = SimpleNamespace(TF32="TF32", FP16="FP16", INT8="INT8")
MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
LayerInformationFormat = SimpleNamespace(JSON="json")
LayerType = SimpleNamespace(CONVOLUTION=0, DECONVOLUTION=1, MATRIX_MULTIPLY=2, DEQUANTIZE=3)
TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
_DTYPES = {"tensor(float)": "FLOAT", "tensor(uint8)": "UINT8", "tensor(float16)": "HALF"}
_WORDS = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Network:
    """Filled by the parser."""

    num_layers = num_inputs = num_outputs = 0
    graph = b""

    def get_input(self, index: int) -> Any:
        return self.input


class OnnxParser:
    """Takes what onnxruntime takes."""

    num_errors = 0

    def __init__(self, network: Network, logger: ILogger) -> None:
        self._network, self._logger = network, logger

    def parse(self, graph: bytes) -> bool:
        try:
            first = _session(graph).get_inputs()[0]
        except Exception as error:  # whatever it is, the graph is refused
            self._logger.log(SimpleNamespace(name="ERROR"), str(error))
            return False
        shape = tuple(n if isinstance(n, int) else -1 for n in first.shape)
        self._network.input = SimpleNamespace(name=first.name, shape=shape)
        self._network.graph, self._network.num_inputs, self._network.num_outputs = graph, 1, 1
        return True


class Config:
    """An IBuilderConfig."""

    builder_optimization_level = 3
    progress_monitor = None

    def __init__(self) -> None:
        self.workspace_mib = 1 << 20
        self.cache: Any = None
        self.profiles: list[Any] = []

    def set_flag(self, flag: str) -> None:
        assert flag in vars(BuilderFlag)

    def clear_flag(self, flag: str) -> None:
        assert flag in vars(BuilderFlag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.workspace_mib = size // _MIB

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: data or b"tactics")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class Profile:
    """An IOptimizationProfile."""

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.batches = [shape[0] for shape in shapes]


class Builder:
    """Makes a plan, or is killed where it would have taken too much."""

    def __init__(self, logger: ILogger) -> None:
        pass

    def create_network(self, bits: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        needs = os.environ.get("DOUBLE_TRT_NEEDS")
        if needs:
            workspace, level = (int(n) for n in needs.split(","))
            if config.workspace_mib > workspace or config.builder_optimization_level > level:
                os.kill(os.getpid(), signal.SIGKILL)
        batches = json.dumps(config.profiles[0].batches).encode()
        return _HEADER + batches + b"\n" + network.graph


class Runtime:
    """Takes plans of this version alone."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        if not plan.startswith(_HEADER):
            self._logger.log(SimpleNamespace(name="ERROR"), "the plan is of another version")
            return None
        batches, _, graph = plan[len(_HEADER) :].partition(b"\n")
        return Engine(json.loads(batches), graph)


class Engine:
    """One input, one output, as the graph has them."""

    num_io_tensors = 2

    def __init__(self, batches: list[int], graph: bytes) -> None:
        self.session, self.batches = _session(graph), batches
        with tempfile.NamedTemporaryFile() as file:
            file.write(graph)
            file.flush()
            self.precision = metadata(Path(file.name)).get("precision", "fp32")
        self.tensors = {t.name: t for t in (self.session.get_inputs()[0], self.session.get_outputs()[0])}

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return TensorIOMode.INPUT if name == self.get_tensor_name(0) else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_DTYPES[self.tensors[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(n if isinstance(n, int) else -1 for n in self.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(n, *self.get_tensor_shape(name)[1:]) for n in self.batches]

    def create_execution_context(self) -> Any:
        return Context(self)

    def create_engine_inspector(self) -> Any:
        word = os.environ.get("DOUBLE_TRT_LAYERS", _WORDS[self.precision])
        layer = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": word}], "Outputs": []}
        told = json.dumps({"Layers": [layer]})
        return SimpleNamespace(execution_context=None, get_engine_information=lambda form: told)


class Context:
    """Its kernel is run, or recorded, by the CUDA double."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._kernel = ctypes.CFUNCTYPE(None)(self._run)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return True

    def execute_async_v3(self, stream: int) -> bool:
        _cuda.double_kernel(self._kernel)
        return _cuda.double_enqueue(ctypes.c_void_p(stream)) == 0

    def _run(self) -> None:
        source, target = self._engine.tensors
        batch = self._view(source, self._shape)
        logits = self._engine.session.run([target], {source: batch})[0] + float(os.environ.get("DOUBLE_TRT_NOISE", "0"))
        self._view(target, logits.shape)[:] = logits

    def _view(self, name: str, shape: tuple[int, ...]) -> Any:
        dtype = {"FLOAT": np.float32, "UINT8": np.uint8, "HALF": np.float16}[self._engine.get_tensor_dtype(name).name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory: Any = (ctypes.c_char * size).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)
