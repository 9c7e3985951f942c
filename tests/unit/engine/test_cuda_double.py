"""TrtBackend through ctypes on a compiled CUDA runtime over host memory, which counts what is given out.

It stands for a GPU in what the code does with addresses, streams, events, graphs and failures; the engine is a
stand-in whose kernel multiplies a mean. On a GPU the real thing runs in tests/conformance.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgetl.errors import BackendError
from edgetl.runtime import cudart, trt
from edgetl.runtime.trt import TrtBackend

SOURCE = Path(__file__).resolve().parents[2] / "doubles/cuda_double.c"
MAX, CLASSES = 4, 5
MODES = [(False, False), (True, False), (False, True), (True, True)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    out = tmp_path_factory.mktemp("cuda") / "libcudart.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(out), str(SOURCE)], check=True)
    return ctypes.CDLL(str(out))


class DoubleEngine:
    """Its kernel is run (or recorded) by the double; logits are the image's mean times 0..C-1."""

    num_io_tensors = 2

    def __init__(self, library: Any, size: int, computes: bool = True) -> None:
        self.library, self.size = library, size
        self.addresses: dict[str, int] = {}
        self.batch = 0
        self._kernel = ctypes.CFUNCTYPE(None)(self._run if computes else lambda: None)
        library.double_kernel(self._kernel)

    def create_execution_context(self) -> DoubleEngine:
        return self

    def get_tensor_name(self, index: int) -> str:
        return ("image", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "image" else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3, self.size, self.size) if name == "image" else (-1, CLASSES)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(n, *self.get_tensor_shape(name)[1:]) for n in (1, 2, MAX)]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.batch = shape[0]
        return True

    def execute_async_v3(self, stream: int) -> bool:
        return self.library.double_enqueue(ctypes.c_void_p(stream)) == 0

    def _run(self) -> None:
        source, target = self._view("image"), self._view("logits")
        target[:] = source.reshape(self.batch, -1).mean(axis=1)[:, None] * np.arange(CLASSES)

    def _view(self, name: str) -> Any:
        shape = (self.batch, *self.get_tensor_shape(name)[1:])
        memory: Any = (ctypes.c_char * (int(np.prod(shape)) * 4)).from_address(self.addresses[name])
        return np.frombuffer(memory, np.float32).reshape(shape)


Make = Callable[..., TrtBackend]


@pytest.fixture
def make(library: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    library.double_fail_after(-1)
    cuda = cudart.Cuda(library, "double")
    monkeypatch.setattr(cudart, "load", lambda: cuda)
    (tmp_path / "plan").write_bytes(b"plan")

    def build(cuda_graph: bool = False, mapped: bool = False, size: int = 6, computes: bool = True) -> TrtBackend:
        engine = DoubleEngine(library, size, computes)
        binding = SimpleNamespace(
            __version__="10.3.0.30",
            ILogger=type("ILogger", (), {"__init__": lambda self: None}),
            Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
            TensorIOMode=SimpleNamespace(INPUT="in"),
        )
        monkeypatch.setattr(trt, "import_binding", lambda flavour: binding)
        return TrtBackend(tmp_path / "plan", cuda_graph=cuda_graph, mapped=mapped)

    yield build
    library.double_fail_after(-1)
    assert library.double_live() == 0, "a test left something behind"


def images(n: int, seed: int = 0, size: int = 6) -> Any:
    return np.random.default_rng(seed).uniform(0, 255, (n, 3, size, size)).astype(np.float32)


def expected(batch: Any) -> Any:
    return batch.reshape(len(batch), -1).mean(axis=1)[:, None] * np.arange(CLASSES)


@pytest.mark.parametrize("cuda_graph, mapped", MODES)
def test_each_mode_gives_the_same_answers_for_changing_batches(make: Make, cuda_graph: bool, mapped: bool) -> None:
    backend = make(cuda_graph, mapped)
    for seed, n in enumerate((1, 4, 4, 2, 1, 3, 4)):
        np.testing.assert_allclose(backend.run(images(n, seed)), expected(images(n, seed)), rtol=1e-5)
        assert backend.device_ms() is not None
    backend.close()


def test_a_recorded_run_is_launched_and_recorded_anew_for_another_shape(make: Make, library: Any) -> None:
    backend = make(cuda_graph=True)
    before = library.double_launches()
    backend.run(images(1))
    one = library.double_live()
    for n in (1, 1, 2, 1):
        backend.run(images(n))
        assert library.double_live() == one, "an older recording was kept"
    assert library.double_launches() - before == 5
    backend.close()


def test_mapped_buffers_copy_nothing(make: Make, library: Any) -> None:
    backend = make(mapped=True)
    before = library.double_copied()
    np.testing.assert_allclose(backend.run(images(2)), expected(images(2)), rtol=1e-5)
    assert library.double_copied() == before
    backend.close()


@pytest.mark.parametrize("cuda_graph, mapped", MODES)
def test_ten_thousand_runs_leave_nothing_behind(make: Make, library: Any, cuda_graph: bool, mapped: bool) -> None:
    backend = make(cuda_graph, mapped, computes=False)
    backend.run(images(1))
    live, batches = library.double_live(), [images(n) for n in (1, 2, 4)]
    for run in range(10_000):
        backend.run(batches[run // 100 % 3])
    assert library.double_live() == live
    backend.close()


@pytest.mark.parametrize("cuda_graph, mapped", MODES)
def test_whichever_call_fails_it_is_named_and_nothing_leaks(
    make: Make, library: Any, cuda_graph: bool, mapped: bool
) -> None:
    seen = set()
    for n in range(1, 40):
        library.double_fail_after(n)
        backend, said = None, ""
        try:
            backend = make(cuda_graph, mapped)
            backend.run(images(2))
        except BackendError as error:
            said = error.what
            seen.add(said)
            assert said.startswith("CUDA failed in cuda") and "2 cudaErrorMemoryAllocation" in error.value
        else:
            break  # more calls than there are
        finally:
            library.double_fail_after(-1)
            if backend is not None:
                backend.close()
        assert library.double_live() == 0, said
    else:
        raise AssertionError("never came to the end")
    common = {"cudaSetDevice", "cudaStreamCreateWithFlags", "cudaEventCreate", "cudaStreamSynchronize"}
    graphs = {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", "cudaGraphLaunch"}
    wanted = common | (graphs if cuda_graph else set()) | ({"cudaHostGetDevicePointer"} if mapped else {"cudaMalloc"})
    assert {f"CUDA failed in {name}" for name in wanted} <= seen


def test_a_failing_kernel_ends_the_recording_and_the_stream_lives_on(make: Make, library: Any) -> None:
    backend = make(cuda_graph=True)
    context: Any = backend._context
    works, calls = context.execute_async_v3, []
    context.execute_async_v3 = lambda stream: works(stream) and calls.append(1) is None and len(calls) != 2
    with pytest.raises(BackendError, match="failed while running"):
        backend.run(images(1))
    np.testing.assert_allclose(backend.run(images(1)), expected(images(1)), rtol=1e-5)
    backend.close()


@pytest.mark.parametrize("cuda_graph, mapped", MODES)
def test_a_run_makes_no_call_and_copies_no_byte_more_than_it_needs(
    make: Make, library: Any, cuda_graph: bool, mapped: bool
) -> None:
    """Two events and their difference, the kernel or its recording, one wait; two copies where memory is not shared."""
    backend, batch = make(cuda_graph, mapped), images(2)
    backend.run(batch)  # the first one shapes, and records
    calls, copied = library.double_calls(), library.double_copied()
    backend.run(batch)
    assert library.double_calls() - calls == 4 + cuda_graph + (0 if mapped else 2)  # the double counts no kernel
    assert library.double_copied() - copied == (0 if mapped else batch.nbytes + 2 * CLASSES * 4)
    backend.close()
