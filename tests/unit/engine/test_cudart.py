"""The real CUDA runtime library: it loads anywhere; what it does depends on the driver."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from edgetl.errors import BackendError
from edgetl.runtime import cudart


def why_no_gpu() -> str:
    try:
        cudart.gpu()
    except BackendError as error:
        return str(error)
    return ""


NO_GPU = why_no_gpu()
gpu = pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU or "present")


@pytest.fixture
def cuda() -> cudart.Cuda:
    try:
        return cudart.load()
    except BackendError as error:
        pytest.skip(str(error))


def test_the_library_tells_its_version(cuda: cudart.Cuda) -> None:
    major, minor = cuda.version().split(".")
    assert int(major) >= 11 and int(minor) >= 0


def test_every_prototype_is_a_symbol_of_the_library(cuda: cudart.Cuda) -> None:
    for name, arguments in cudart._PROTOTYPES.items():
        function = getattr(cuda._library, name)
        assert list(function.argtypes) == list(arguments) and function.restype is ctypes.c_int


def test_no_argument_that_takes_an_address_would_cut_it() -> None:
    for name in ("cudaFree", "cudaFreeHost", "cudaMemcpyAsync", "cudaStreamDestroy", "cudaEventRecord"):
        assert cudart._PROTOTYPES[name][0] is ctypes.c_void_p


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_without_a_driver_the_error_has_cudas_name_and_advice(cuda: cudart.Cuda) -> None:
    with pytest.raises(BackendError) as error:
        cuda.gpus()
    assert "cudaGetDeviceCount" in error.value.what
    code, _, words = error.value.value.partition(" ")
    assert code in ("35", "100") and words.startswith(("cudaErrorInsufficientDriver: ", "cudaErrorNoDevice: "))
    assert "driver" in error.value.do or "GPU" in error.value.do


def test_a_wrong_call_is_named(cuda: cudart.Cuda) -> None:
    with pytest.raises(BackendError, match="CUDA failed in cudaSetDevice"):
        cuda.use(9999)


def test_a_library_without_the_symbols_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudart, "_candidates", lambda: iter(["libc.so.6", "libnothing.so.1"]))
    cudart.load.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"no CUDA runtime library.*libc\.so\.6 .*libnothing"):
            cudart.load()
    finally:
        cudart.load.cache_clear()


def test_the_loaders_own_search_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcudart.so.12").touch()
    monkeypatch.setattr(cudart, "_TOOLKIT", tmp_path)
    found = list(cudart._candidates())
    assert found[:3] == ["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
    assert found[3] == str(tmp_path / "libcudart.so.12")


@pytest.mark.gpu
@gpu
def test_bytes_go_to_the_gpu_and_back(cuda: cudart.Cuda) -> None:
    data = np.arange(1000, dtype=np.float32)
    back = np.zeros_like(data)
    stream, memory = cuda.stream(), cuda.malloc(data.nbytes)
    start, end = cuda.event(), cuda.event()
    cuda.event_record(start, stream)
    cuda.copy_in(memory, data.ctypes.data, data.nbytes, stream)
    cuda.copy_out(back.ctypes.data, memory, data.nbytes, stream)
    cuda.event_record(end, stream)
    cuda.stream_wait(stream)
    assert cuda.elapsed_ms(start, end) > 0
    np.testing.assert_array_equal(back, data)
    for free, value in (
        (cuda.free, memory),
        (cuda.stream_free, stream),
        (cuda.event_free, start),
        (cuda.event_free, end),
    ):
        free(value)
