"""A TensorRT engine as a Backend: the one call path that exists in all of TensorRT 8.5 to 11. Python 3.8.

Not yet seen on hardware: written against the bindings of 8.6, 10.3 and 11.4 and NVIDIA's documentation.
"""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional, Tuple, Union

import numpy as np

from edgetl.errors import BackendError
from edgetl.runtime import cudart
from edgetl.runtime.backend import as_logits, check_batch
from edgetl.runtime.binding import TENSORRT, TITLES, Log, construct, import_binding, logger_for, shape_of
from edgetl.runtime.machine import jetson_board
from edgetl.spec import TensorSpec

if TYPE_CHECKING:
    import numpy.typing as npt

# By name, not through trt.nptype: the one of TensorRT 8.5 fails on numpy 1.24 and later.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8"}


class TrtBackend:
    """An engine file on one GPU. Buffers for the largest batch are made once and used by each run.

    `cuda_graph`: the engine's kernels are recorded once and then launched with one call, which matters for
    tiny networks; another batch size is recorded anew. `mapped`: buffers lie in memory that CPU and GPU share,
    so nothing is copied; on a Jetson, where both have the same DRAM, that is the faster way, on a PC the slower.
    Raises BackendError: no TensorRT, no GPU, a plan made for another TensorRT or GPU, one that is not a
    one-input, one-output classifier.
    """

    name = "tensorrt"

    def __init__(
        self,
        plan: Union[str, Path],
        flavour: str = TENSORRT,
        device: int = 0,
        cuda_graph: bool = False,
        mapped: bool = False,
    ) -> None:
        self.plan = Path(plan)
        trt: Any = import_binding(flavour)
        cuda = cudart.load()
        gpu = cudart.gpu(device)
        cuda.use(device)
        self.provider = "%s %s" % (TITLES[flavour], trt.__version__)
        self.gpu = gpu
        self.evidence = "device" if jetson_board() is not None else "host-gpu"
        self._cuda = cuda
        self._log = Log()
        self._stack: Optional[ExitStack] = None
        self._cuda_graph = cuda_graph
        self._recorded: Optional[int] = None  # the run as one launch, for the shape that the context is set to
        with ExitStack() as stack:
            self._engine = self._load(trt)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise BackendError("TensorRT could not make an execution context", self._log.reason())
            self.input, self._output, self._batches = self._tensors(trt)
            self._stream = stack.enter_context(_Owned(cuda.stream(), cuda.stream_free)).value
            self._events = [stack.enter_context(_Owned(cuda.event(), cuda.event_free)).value for _ in range(2)]
            self._buffers = {
                s.name: stack.enter_context(_Buffer(cuda, s, self._batches[1], mapped)) for s in self._specs()
            }
            for name, buffer in self._buffers.items():
                if not self._context.set_tensor_address(name, buffer.device):
                    raise BackendError("TensorRT refused a buffer", "%s: %s" % (name, self._log.reason()))
            self._stack = stack.pop_all()
        self._last_ms: Optional[float] = None
        self._shaped = 0  # the batch that the context's shapes are set to

    @property
    def batches(self) -> Tuple[int, int]:
        """Smallest and largest batch that the engine takes."""
        return self._batches

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """float32 (B, 3, S, S) or uint8 (B, S, S, 3), as `input` says -> float32 (B, C). Raises BackendError."""
        if self._stack is None:
            raise BackendError("the engine was closed already", self.plan)
        check_batch(batch, self.input, self.name)
        n = int(batch.shape[0])
        low, high = self._batches
        if not low <= n <= high:
            do = "feed it in pieces, or build with a wider --batch"
            raise BackendError("the engine takes batches of %d to %d" % (low, high), n, do)
        source, target = self._buffers[self.input.name], self._buffers[self._output.name]
        np.copyto(source.host[:n], batch)
        if n != self._shaped:
            self._forget()
            if not self._context.set_input_shape(self.input.name, tuple(batch.shape)):
                raise BackendError("TensorRT refused the input's shape", "%s" % (batch.shape,))
            self._shaped = n
        source.upload(n, self._stream)
        launchable = self._launchable()
        self._cuda.event_record(self._events[0], self._stream)
        if launchable is None:
            self._execute()
        else:
            self._cuda.launch(launchable, self._stream)
        self._cuda.event_record(self._events[1], self._stream)
        target.download(n, self._stream)
        self._cuda.stream_wait(self._stream)
        self._last_ms = self._cuda.elapsed_ms(self._events[0], self._events[1])
        answer = np.array(target.host[:n], dtype=np.float32)  # a copy: the buffer is used again
        return as_logits(answer, self._output.name)

    def device_ms(self) -> Optional[float]:
        """GPU time of the last run in milliseconds, copies left out; None before the first."""
        return self._last_ms

    def close(self) -> None:
        """Free the engine, its buffers and its stream; a second call does nothing."""
        if self._stack is not None:
            self._forget()
            # In this order (each uses the next one's memory), and all before the stream they ran on.
            self._context = self._engine = self._runtime = None
            self._stack.close()
            self._stack = None

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise BackendError("TensorRT failed while running", "%s (%s)" % (self.plan, self._log.reason()))

    def _launchable(self) -> Optional[int]:
        """The engine's run as one launch; None where that was not asked for.

        Recorded after a run for real: TensorRT does deferred work of a new shape then, which cannot be recorded.
        A recording is tied to the state of its context, so another shape makes a new one (both: TensorRT
        Developer Guide, "CUDA Graphs").
        """
        if self._cuda_graph and self._recorded is None:
            self._execute()
            self._cuda.stream_wait(self._stream)
            with self._cuda.capturing(self._stream) as captured:
                self._execute()
            try:
                self._recorded = self._cuda.launchable(captured[0])
            finally:
                self._cuda.graph_free(captured[0])
        return self._recorded

    def _forget(self) -> None:
        self._shaped = 0
        if self._recorded is not None:
            self._cuda.launchable_free(self._recorded)
            self._recorded = None

    def _load(self, trt: Any) -> Any:
        data = self.plan.read_bytes()
        runtime = construct(trt.Runtime, logger_for(trt, self._log), self._log)
        if hasattr(runtime, "get_engine_validity"):  # TensorRT for RTX: ask before loading
            validity, why = runtime.get_engine_validity(data)
            if validity == trt.EngineValidity.INVALID:
                raise BackendError("this GPU cannot run the engine", "%s: %s" % (self.gpu.name, why), _AGAIN)
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BackendError("the engine cannot be loaded here", "%s (%s)" % (self.plan, self._log.reason()), _AGAIN)
        self._runtime = runtime  # must outlive the engine
        return engine

    def _tensors(self, trt: Any) -> Tuple[TensorSpec, TensorSpec, Tuple[int, int]]:
        """Input, output and the batch range of the first optimisation profile."""
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        outputs = [n for n in names if n not in inputs]
        if len(inputs) != 1 or len(outputs) != 1:
            raise BackendError("the engine has not one input and one output", ", ".join(names))
        smallest, _, largest = (shape_of(dims) for dims in engine.get_tensor_profile_shape(inputs[0], 0))
        spec, out = (_spec(engine, name) for name in (inputs[0], outputs[0]))
        return spec, out, (smallest[0], largest[0])

    def _specs(self) -> List[TensorSpec]:
        return [self.input, self._output]


_AGAIN = "engines fit one TensorRT version and GPU: build it on this machine with `edgetl build`"


class _Owned:
    """A handle and how to free it, as a context manager."""

    def __init__(self, value: int, free: Any) -> None:
        self.value = value
        self._free = free

    def __enter__(self) -> _Owned:
        return self

    def __exit__(self, *error: object) -> None:
        self._free(self.value)


class _Buffer:
    """Device memory and page-locked host memory of one tensor, for the largest batch; `host` is a view (B, ...).

    `mapped`: both are the same memory, and nothing is copied.
    """

    def __init__(self, cuda: cudart.Cuda, spec: TensorSpec, batch: int, mapped: bool) -> None:
        dtype = np.dtype(spec.dtype)
        shape = (batch,) + tuple(spec.shape[1:])
        self._cuda = cuda
        self._mapped = mapped
        self._row_bytes = int(np.prod(spec.shape[1:])) * dtype.itemsize
        n_bytes = self._row_bytes * batch
        with ExitStack() as stack:
            if mapped:
                self._host, self.device = cuda.mapped_malloc(n_bytes)
                stack.callback(cuda.host_free, self._host)
            else:
                self.device = stack.enter_context(_Owned(cuda.malloc(n_bytes), cuda.free)).value
                self._host = stack.enter_context(_Owned(cuda.host_malloc(n_bytes), cuda.host_free)).value
            self._stack = stack.pop_all()
        memory: Any = (ctypes.c_char * n_bytes).from_address(self._host)
        self.host: Any = np.frombuffer(memory, dtype=dtype).reshape(shape)

    def __enter__(self) -> _Buffer:
        return self

    def __exit__(self, *error: object) -> None:
        self.host = None
        self._stack.close()

    def upload(self, n: int, stream: int) -> None:
        """Queue the copy of the first `n` rows to the GPU."""
        if not self._mapped:
            self._cuda.copy_in(self.device, self._host, n * self._row_bytes, stream)

    def download(self, n: int, stream: int) -> None:
        """Queue the copy of the first `n` rows from the GPU."""
        if not self._mapped:
            self._cuda.copy_out(self._host, self.device, n * self._row_bytes, stream)


def _spec(engine: Any, name: str) -> TensorSpec:
    kind = str(engine.get_tensor_dtype(name).name)
    if kind not in _DTYPES:
        raise BackendError("the engine's tensor has a type that edgetl does not feed", "%s: %s" % (name, kind))
    return TensorSpec(name, _DTYPES[kind], shape_of(engine.get_tensor_shape(name)))
