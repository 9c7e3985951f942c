"""The CUDA runtime through ctypes: no aarch64 wheel of pycuda or cuda-python fits every JetPack. Python 3.8.

Seen here: loading, return codes and a machine without a driver. Not yet seen on hardware: the rest.
"""

from __future__ import annotations

import ctypes
import importlib.util
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from edgetl.errors import BackendError

_SONAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_TOOLKIT = Path("/usr/local/cuda/lib64")

# Each argument's type is set: ctypes takes Python integers for C ints and would cut 64-bit pointers.
_PROTOTYPES: Dict[str, Tuple[Any, ...]] = {
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaDriverGetVersion": (POINTER(c_int),),
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaSetDevice": (c_int,),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaGetDeviceProperties": (c_void_p, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (POINTER(c_void_p), c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaHostGetDevicePointer": (POINTER(c_void_p), c_void_p, c_uint),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (POINTER(c_void_p), c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaEventCreate": (POINTER(c_void_p),),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    # Not plain cudaGraphInstantiate, whose arguments changed with CUDA 12.
    "cudaGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
}

_STREAM_NON_BLOCKING = 1
_TO_DEVICE, _TO_HOST = 1, 2
_HOST_MAPPED = 2
_CAPTURE_THREAD_LOCAL = 1  # other threads of the process may go on using CUDA meanwhile
_SM_COUNT, _SM_MAJOR, _SM_MINOR = 16, 75, 76  # cudaDeviceAttr
_NAME_BYTES = 256
_PROPERTIES_ROOM = 1 << 14  # the struct grows with each CUDA; its name is the first field in all of them

_ADVICE = {
    2: "out of GPU memory: take a smaller batch or close what else uses the GPU",
    35: "no NVIDIA driver, or one older than this CUDA: install or update it (`nvidia-smi` shows it)",
    100: "no NVIDIA GPU is visible here (CUDA_VISIBLE_DEVICES, container without --gpus)",
}


@dataclass(frozen=True)
class Gpu:
    """What CUDA says of a GPU. `sm` is (major, minor); `memory_mb` in units of 1e6 bytes."""

    name: str
    sm: Tuple[int, int]
    sm_count: int
    memory_mb: int


class Cuda:
    """The calls that running an engine needs. Every return code is checked; failures raise BackendError."""

    def __init__(self, library: ctypes.CDLL, path: str) -> None:
        self.path = path
        self._library = library
        library.cudaGetErrorName.argtypes = library.cudaGetErrorString.argtypes = [c_int]
        library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = c_char_p
        for name, arguments in _PROTOTYPES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = list(arguments), c_int

    def call(self, name: str, *arguments: Any) -> None:
        """Call `name`. Raises BackendError with CUDA's own name and words for a code other than 0."""
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            said = [getattr(self._library, f)(code) for f in ("cudaGetErrorName", "cudaGetErrorString")]
            words = ": ".join(text.decode("ascii", "replace") for text in said if text)
            raise BackendError("CUDA failed in " + name, "%d %s" % (code, words), _ADVICE.get(code, ""))

    def version(self) -> str:
        """Of the runtime library, "13.0"."""
        number = self._int("cudaRuntimeGetVersion")
        return "%d.%d" % (number // 1000, number % 1000 // 10)

    def gpus(self) -> List[Gpu]:
        """The GPUs, in CUDA's order. Raises BackendError without a driver or a GPU."""
        return [self._gpu(index) for index in range(self._int("cudaGetDeviceCount"))]

    def use(self, device: int) -> None:
        """Make `device` the current one of this thread."""
        self.call("cudaSetDevice", device)

    def malloc(self, n_bytes: int) -> int:
        """A device address; `free` it."""
        return self._pointer("cudaMalloc", n_bytes)

    def free(self, address: int) -> None:
        """Give back what `malloc` gave."""
        self.call("cudaFree", address)

    def host_malloc(self, n_bytes: int) -> int:
        """A page-locked host address (copies from it need no staging); `host_free` it."""
        return self._pointer("cudaHostAlloc", n_bytes, 0)

    def mapped_malloc(self, n_bytes: int) -> Tuple[int, int]:
        """(host address, the GPU's address of the same memory): no copies; `host_free` the host's.

        What it is for: on a Jetson the CPU's and the GPU's memory are one. On a PC each access crosses PCIe.
        """
        host = self._pointer("cudaHostAlloc", n_bytes, _HOST_MAPPED)
        try:
            return host, self._pointer("cudaHostGetDevicePointer", host, 0)
        except BackendError:
            self.host_free(host)
            raise

    def host_free(self, address: int) -> None:
        """Give back what `host_malloc` gave."""
        self.call("cudaFreeHost", address)

    def stream(self) -> int:
        """A stream that does not wait for the default one; `stream_free` it."""
        return self._pointer("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING)

    def stream_wait(self, stream: int) -> None:
        """Block until everything queued on `stream` is done; raises what went wrong there."""
        self.call("cudaStreamSynchronize", stream)

    def stream_free(self, stream: int) -> None:
        """Give back what `stream` gave."""
        self.call("cudaStreamDestroy", stream)

    def event(self) -> int:
        """An event that takes the time; `event_free` it."""
        return self._pointer("cudaEventCreate")

    def event_record(self, event: int, stream: int) -> None:
        """Queue `event` on `stream`."""
        self.call("cudaEventRecord", event, stream)

    def event_free(self, event: int) -> None:
        """Give back what `event` gave."""
        self.call("cudaEventDestroy", event)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds of GPU time between two events that have happened."""
        value = c_float()
        self.call("cudaEventElapsedTime", byref(value), start, end)
        return float(value.value)

    def copy_in(self, device: int, host: int, n_bytes: int, stream: int) -> None:
        """Queue a copy from the host."""
        self.call("cudaMemcpyAsync", device, host, n_bytes, _TO_DEVICE, stream)

    def copy_out(self, host: int, device: int, n_bytes: int, stream: int) -> None:
        """Queue a copy to the host."""
        self.call("cudaMemcpyAsync", host, device, n_bytes, _TO_HOST, stream)

    @contextmanager
    def capturing(self, stream: int) -> Iterator[List[int]]:
        """What is queued on `stream` meanwhile is recorded and not run; the list then holds one CUDA graph.

        `graph_free` it. Nothing is left behind where the body raises.
        """
        made: List[int] = []
        self.call("cudaStreamBeginCapture", stream, _CAPTURE_THREAD_LOCAL)
        try:
            yield made
        except BaseException:
            graph = c_void_p()
            # A capture that failed leaves no graph, and CUDA says so with an error of its own: the first one is told.
            self._library.cudaStreamEndCapture(stream, byref(graph))
            if graph.value:
                self.graph_free(int(graph.value))
            raise
        graph = c_void_p()
        self.call("cudaStreamEndCapture", stream, byref(graph))
        made.append(int(graph.value or 0))

    def graph_free(self, graph: int) -> None:
        """Give back what `capturing` gave."""
        self.call("cudaGraphDestroy", graph)

    def launchable(self, graph: int) -> int:
        """A captured graph made ready to launch; `launchable_free` it."""
        return self._pointer("cudaGraphInstantiateWithFlags", graph, 0)

    def launch(self, launchable: int, stream: int) -> None:
        """Queue all of a captured graph with one call."""
        self.call("cudaGraphLaunch", launchable, stream)

    def launchable_free(self, launchable: int) -> None:
        """Give back what `launchable` gave."""
        self.call("cudaGraphExecDestroy", launchable)

    def _gpu(self, index: int) -> Gpu:
        room = ctypes.create_string_buffer(_PROPERTIES_ROOM)
        self.call("cudaGetDeviceProperties", ctypes.cast(room, c_void_p), index)
        name = room.raw[:_NAME_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")
        count, major, minor = (self._attribute(a, index) for a in (_SM_COUNT, _SM_MAJOR, _SM_MINOR))
        self.use(index)
        free, total = c_size_t(), c_size_t()
        self.call("cudaMemGetInfo", byref(free), byref(total))
        return Gpu(name, (major, minor), count, int(total.value) // 1000000)

    def _attribute(self, attribute: int, index: int) -> int:
        value = c_int()
        self.call("cudaDeviceGetAttribute", byref(value), attribute, index)
        return int(value.value)

    def _int(self, name: str) -> int:
        value = c_int()
        self.call(name, byref(value))
        return int(value.value)

    def _pointer(self, name: str, *arguments: Any) -> int:
        value = c_void_p()
        self.call(name, byref(value), *arguments)
        return int(value.value or 0)


@lru_cache(maxsize=1)
def load() -> Cuda:
    """The CUDA runtime of this machine. Raises BackendError when there is none."""
    tried = []
    for candidate in _candidates():
        try:
            return Cuda(ctypes.CDLL(candidate), candidate)
        except OSError:
            tried.append(candidate)
        except AttributeError as error:  # a symbol of _PROTOTYPES is missing
            tried.append("%s (%s)" % (candidate, error))
    raise BackendError(
        "no CUDA runtime library here",
        "tried " + ", ".join(tried),
        "a Jetson has it with JetPack; on a PC `pip install nvidia-cuda-runtime`",
    )


def gpu(device: int = 0) -> Gpu:
    """The GPU number `device`. Raises BackendError: no library, no driver, no GPU, no such number."""
    found = load().gpus()
    if not 0 <= device < len(found):
        raise BackendError("no such GPU", "number %d of %d" % (device, len(found)))
    return found[device]


def _candidates() -> Iterator[str]:
    """Names for the loader's own search first, then the toolkit's folder, then pip's wheels."""
    yield from _SONAMES
    for folder in [_TOOLKIT] + _wheel_folders():
        for name in _SONAMES:
            if (folder / name).is_file():
                yield str(folder / name)


def _wheel_folders() -> List[Path]:
    spec: Optional[Any] = importlib.util.find_spec("nvidia")
    roots = [Path(p) for p in (spec.submodule_search_locations or [])] if spec is not None else []
    return [root / part / "lib" for root in roots for part in ("cu13", "cuda_runtime")]
