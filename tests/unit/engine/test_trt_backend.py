"""TrtBackend's handling of memory, batches and failures, on host memory that stands in for a GPU's.

The engine and the CUDA calls are stand-ins; addresses, sizes and copies are real. On a GPU the real thing
runs in tests/conformance.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetl.errors import BackendError
from edgetl.runtime import cudart, trt
from edgetl.runtime.cudart import Gpu
from edgetl.runtime.trt import TrtBackend

MAX, SIZE, CLASSES = 4, 6, 5


class HostCuda:
    """cudart.Cuda's calls over host memory; `live` holds what was given out and not yet given back."""

    def __init__(self) -> None:
        self.live: dict[int, Any] = {}
        self._next = 1 << 40  # handles beyond 32 bits, as real ones are

    def malloc(self, n_bytes: int) -> int:
        memory = ctypes.create_string_buffer(n_bytes)
        self.live[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def _handle(self) -> int:
        self._next += 1
        self.live[self._next] = None
        return self._next

    def free(self, value: int) -> None:
        del self.live[value]

    def copy_in(self, to: int, source: int, n_bytes: int, stream: int) -> None:
        assert n_bytes <= len(self.live[to]) and n_bytes <= len(self.live[source])
        ctypes.memmove(to, source, n_bytes)

    host_malloc = malloc
    host_free = stream_free = event_free = free
    stream = event = _handle
    copy_out = copy_in

    def use(self, device: int) -> None:
        pass

    def event_record(self, event: int, stream: int) -> None:
        assert event in self.live and stream in self.live

    def stream_wait(self, stream: int) -> None:
        assert stream in self.live

    def elapsed_ms(self, start: int, end: int) -> float:
        return 0.25


class HostEngine:
    """An engine whose logits are the image's mean times 0..C-1; shaped and typed as asked."""

    num_io_tensors = 2

    def __init__(self, kind: str = "FLOAT", out: str = "FLOAT", accepts: bool = True) -> None:
        self.types = {"image": kind, "logits": out}
        shape = (-1, SIZE, SIZE, 3) if kind == "UINT8" else (-1, 3, SIZE, SIZE)
        self.shapes: dict[str, tuple[int, ...]] = {"image": shape, "logits": (-1, CLASSES)}
        self.addresses: dict[str, int] = {}
        self.accepts = accepts
        self.runs = True
        self.batch = 0

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.types[name])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(n, *self.shapes[name][1:]) for n in (1, 2, MAX)]

    def create_execution_context(self) -> HostEngine:
        return self

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.accepts

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return True

    def execute_async_v3(self, stream: int) -> bool:
        source = self._view("image", {"FLOAT": np.float32, "UINT8": np.uint8}[self.types["image"]])
        target = self._view("logits", {"FLOAT": np.float32, "HALF": np.float16}[self.types["logits"]])
        mean = source.reshape(self.batch, -1).mean(axis=1)
        target[:] = mean[:, None] * np.arange(CLASSES)
        return self.runs

    def _view(self, name: str, dtype: Any) -> Any:
        shape = (self.batch, *self.shapes[name][1:])
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory: Any = (ctypes.c_char * n_bytes).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


Make = Callable[..., tuple[TrtBackend, HostEngine, HostCuda]]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    def build(engine: HostEngine | None = None, validity: str | None = None) -> tuple[TrtBackend, HostEngine, HostCuda]:
        host, loaded = HostCuda(), engine or HostEngine()
        make.cuda = host  # type: ignore[attr-defined]  # so that a failing constructor's leaks can be looked at
        runtime = SimpleNamespace(deserialize_cuda_engine=lambda data: loaded if data == b"plan" else None)
        if validity is not None:
            runtime.get_engine_validity = lambda data: (validity, "needs SM 8.0")
        binding = SimpleNamespace(
            __version__="10.3.0.30",
            ILogger=type("ILogger", (), {"__init__": lambda self: None}),
            Runtime=lambda logger: runtime,
            TensorIOMode=SimpleNamespace(INPUT="in"),
            EngineValidity=SimpleNamespace(INVALID="INVALID"),
        )
        monkeypatch.setattr(trt, "import_binding", lambda flavour: binding)
        monkeypatch.setattr(cudart, "load", lambda: host)
        monkeypatch.setattr(cudart, "gpu", lambda device=0: Gpu("stand-in", (8, 7), 8, 8000))
        return TrtBackend(plan), loaded, host

    plan = tmp_path / "engine.plan"
    plan.write_bytes(b"plan")
    make = build
    return build


def images(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0, 255, (n, 3, SIZE, SIZE)).astype(np.float32)


def expected(batch: Any) -> Any:
    return batch.reshape(len(batch), -1).mean(axis=1)[:, None] * np.arange(CLASSES)


def test_what_it_says_of_itself(make: Make) -> None:
    backend, _, _ = make()
    assert (backend.name, backend.provider, backend.evidence) == ("tensorrt", "TensorRT 10.3.0.30", "host-gpu")
    assert backend.input.to_json() == {"name": "image", "dtype": "float32", "shape": [-1, 3, SIZE, SIZE]}
    assert backend.batches == (1, MAX) and backend.device_ms() is None


@pytest.mark.parametrize("n", range(1, MAX + 1))
def test_each_batch_of_the_profile_gives_its_own_rows(make: Make, n: int) -> None:
    backend, _, _ = make()
    backend.run(images(MAX, seed=1))  # larger values left in the buffers must not show through
    batch = images(n)
    out = backend.run(batch)
    assert out.shape == (n, CLASSES) and out.dtype == np.float32
    np.testing.assert_allclose(out, expected(batch), rtol=1e-5)
    assert backend.device_ms() == 0.25


def test_results_are_copies_and_inputs_may_be_strided(make: Make) -> None:
    backend, _, _ = make()
    first_batch, second_batch = images(2, seed=1), images(2, seed=2)
    first = backend.run(first_batch)
    kept = first.copy()
    backend.run(second_batch)
    np.testing.assert_array_equal(first, kept)
    strided = np.asfortranarray(first_batch)
    np.testing.assert_array_equal(backend.run(strided), kept)


def test_uint8_in_and_half_out(make: Make) -> None:
    backend, _, _ = make(HostEngine("UINT8", "HALF"))
    batch = np.full((3, SIZE, SIZE, 3), 7, np.uint8)
    out = backend.run(batch)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected(batch), rtol=1e-2)


def test_batches_outside_the_profile_are_refused(make: Make) -> None:
    backend, _, _ = make()
    with pytest.raises(BackendError, match="batches of 1 to 4: 5"):
        backend.run(images(MAX + 1))


@pytest.mark.parametrize("bad", [images(1).astype(np.float64), images(1)[:, :, :-1], images(1)[0]])
def test_other_types_and_shapes_are_refused(make: Make, bad: Any) -> None:
    backend, _, _ = make()
    with pytest.raises(BackendError, match="another input"):
        backend.run(bad)


def test_close_gives_everything_back_and_may_be_called_twice(make: Make) -> None:
    backend, _, host = make()
    backend.run(images(1))
    assert len(host.live) == 7  # a stream, two events, and host and device memory of two tensors
    backend.close()
    backend.close()
    assert host.live == {}
    with pytest.raises(BackendError, match="closed already"):
        backend.run(images(1))


def test_a_constructor_that_fails_leaves_no_memory_behind(make: Make) -> None:
    with pytest.raises(BackendError, match="refused a buffer"):
        make(HostEngine(accepts=False))
    assert make.cuda.live == {}  # type: ignore[attr-defined]


def test_a_failed_run_is_an_error(make: Make) -> None:
    backend, engine, _ = make()
    engine.runs = False
    with pytest.raises(BackendError, match="failed while running"):
        backend.run(images(1))


def test_an_engine_of_another_shape_of_network_is_refused(make: Make) -> None:
    engine = HostEngine()
    engine.get_tensor_mode = lambda name: "in"  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="one input and one output"):
        make(engine)
    with pytest.raises(BackendError, match="INT64"):
        make(HostEngine(out="INT64"))


def test_rtx_is_asked_before_its_engine_is_loaded(make: Make) -> None:
    with pytest.raises(BackendError, match=r"this GPU cannot run the engine.*needs SM 8\.0"):
        make(validity="INVALID")
    backend, _, _ = make(validity="VALID")
    assert backend.run(images(1)).shape == (1, CLASSES)


def test_a_plan_of_another_tensorrt_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "engine.plan").write_bytes(b"of another version")
    with pytest.raises(BackendError, match=r"cannot be loaded here.*edgetl build"):
        make()
