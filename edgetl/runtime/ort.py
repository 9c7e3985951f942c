"""The one door to onnxruntime for running graphs: session options, providers and placement live here.

Python 3.8, onnxruntime >= 1.16. Nothing is written on stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Tuple, Type, Union

import numpy as np

from edgetl.errors import BackendError
from edgetl.runtime import openvino
from edgetl.runtime.backend import as_logits, check_batch
from edgetl.runtime.metadata import metadata
from edgetl.spec import Profile, TensorSpec

try:
    import onnxruntime
except ImportError as missing:
    raise BackendError(
        "onnxruntime is not installed for this Python", sys.executable, "pip install onnxruntime"
    ) from missing

if TYPE_CHECKING:
    import numpy.typing as npt

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
OPENVINO = openvino.PROVIDER

_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}
_QUANTISED = frozenset(["QuantizeLinear", "DequantizeLinear"])

_STATE = onnxruntime.capi.onnxruntime_pybind11_state
# What onnxruntime raises: a class for each of its status codes, all of them bare children of Exception.
_ERRORS: Tuple[Type[BaseException], ...] = (RuntimeError, ValueError, MemoryError, OSError) + tuple(
    kind for kind in vars(_STATE).values() if isinstance(kind, type) and issubclass(kind, Exception)
)


def options(threads: int = 0, simulate: bool = True, optimise: bool = True) -> Any:
    """The SessionOptions of every session in the project.

    `simulate` keeps a TensorRT-flavoured Q/DQ graph as it is written. onnxruntime's optimiser otherwise
    rewrites it for its own int8 kernels; with an FP16 rest it even breaks it (0.000 top-1 agreement on
    mobilenet_v2). Graphs of profile `cpu` are written for those kernels: see `simulated`.
    `threads`: 0 lets onnxruntime take one for each core.
    """
    out = onnxruntime.SessionOptions()
    out.intra_op_num_threads = threads
    out.inter_op_num_threads = 1
    out.log_severity_level = 3  # errors; warnings about graph details are not for users
    out.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # It ends the process (segmentation fault, 1.31) on Transpose and MatMul in FP16, which every ViT has.
    out.add_session_config_entry("optimization.disable_specified_optimizers", "MatmulTransposeFusion")
    if simulate:
        out.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimise:
        out.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return out


def simulated(facts: Mapping[str, str]) -> bool:
    """Whether a graph with this metadata is run as it is written, or by onnxruntime's own int8 kernels.

    Only a graph of profile `cpu` is written for those. The one place where this is decided.
    """
    return facts.get("profile") != str(Profile.CPU)


class OrtBackend:
    """A graph on one execution provider; every node must run there. See Backend.

    `simulate` None: as the graph's own metadata wants it (`simulated`).
    Raises BackendError: a provider that does not load, a graph that onnxruntime refuses, a node that
    would run elsewhere.
    """

    name = "onnxruntime"
    output = "logits"  # what `run` returns, whatever the graph ends in

    def __init__(
        self,
        graph: Union[str, Path],
        provider: str = CPU,
        threads: int = 0,
        simulate: Optional[bool] = None,
        optimise: bool = True,
    ) -> None:
        self.provider = provider
        self.graph = Path(graph)
        self.metadata: Dict[str, str] = metadata(self.graph)
        simulate = simulated(self.metadata) if simulate is None else simulate
        session = _open(self.graph, provider, options(threads, simulate, optimise))
        placed = _placement(session)
        _check_placement(placed, provider, self.graph)
        self._session: Optional[Any] = session
        self.input = _input_spec(session, self.graph)
        self._output = str(session.get_outputs()[0].name)
        self.evidence = _evidence(provider, simulate, self.metadata, placed)

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """float32 (B, 3, S, S) or uint8 (B, S, S, 3), as `input` says -> float32 (B, C). Raises BackendError."""
        if self._session is None:
            raise BackendError("onnxruntime was closed already", self.graph)
        check_batch(batch, self.input, self.name)
        try:
            out = self._session.run([self._output], {self.input.name: batch})[0]
        except _ERRORS as error:
            raise BackendError("onnxruntime failed while running", "%s (%s)" % (self.graph, error)) from error
        return as_logits(out, self._output)

    def device_ms(self) -> Optional[float]:
        """None: onnxruntime gives no device time for a run."""
        return None

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def optimised(graph: Path, to: Path) -> None:
    """Write what onnxruntime's CPU provider makes of `graph`, its int8 kernels in place and nodes still named.

    Level "extended": the one after it changes layouts and drops names. Raises BackendError.
    """
    settings = options(threads=1, simulate=simulated(metadata(graph)))
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(to)
    _open(graph, CPU, settings)


def version() -> str:
    """Of onnxruntime, "1.31.1"."""
    return str(onnxruntime.__version__)


def available_providers() -> List[str]:
    """The execution providers that load on this machine and run a node, best first; CPU is always last.

    `onnxruntime.get_available_providers` lists what was compiled in, whether or not its libraries and
    its device are there; so each is tried with a graph of one node.
    """
    return [name for name in listed_providers() if why_not(name) is None]


def listed_providers() -> List[str]:
    """The providers of this project that onnxruntime was compiled with or a plug-in is installed for, best first.

    `available_providers` says which load.
    """
    compiled = onnxruntime.get_available_providers()
    plugins = [OPENVINO] if openvino.installed() is not None else []
    return [name for name in (TENSORRT, CUDA) if name in compiled] + plugins + [CPU]


def why_not(provider: str) -> Optional[BackendError]:
    """What keeps a provider from running a graph of one node here; None where it runs."""
    if provider == CPU:
        return None
    try:
        with _quiet():
            _open(_ONE_NODE, provider, options())
    except BackendError as error:
        return error
    return None


def _has_driver() -> bool:
    """Whether NVIDIA's driver library loads; without it no GPU provider can, and trying is slow and loud."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
            break
        except OSError:
            continue
    else:
        return False
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:  # CUDA and cuDNN from the nvidia-* wheels; it reports with print()
        with contextlib.redirect_stdout(sys.stderr):
            preload()
    return True


def _open(graph: Union[Path, bytes], provider: str, settings: Any) -> Any:
    """A session of `provider`; a node that it does not take is the CPU's (see `_check_placement`)."""
    given: Any = str(graph) if isinstance(graph, Path) else graph
    shown = str(graph) if isinstance(graph, Path) else "a graph of one node"
    names: Optional[List[str]] = [provider]
    if provider == OPENVINO:
        threads = int(settings.intra_op_num_threads)
        settings.add_provider_for_devices([_openvino_cpu()], openvino.session_options(threads))
        names = None  # they are in the settings already
    elif provider != CPU:
        if provider not in onnxruntime.get_available_providers() or not _has_driver():
            raise BackendError("onnxruntime cannot load this provider here", provider, "see `edgetl doctor`")
        if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
            # Older than 1.23: nothing tells where a node went, so a node on the CPU must fail the session.
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        # Without the last word a provider that fails, now or in any later run, is replaced by the CPU with a print().
        session = onnxruntime.InferenceSession(given, settings, providers=names, enable_fallback=0)
    except _ERRORS as error:
        raise BackendError("onnxruntime refuses the graph", "%s (%s)" % (shown, error)) from error
    session.disable_fallback()  # onnxruntime before 1.17 does not know the word
    if session.get_providers()[0] != provider:
        raise BackendError("onnxruntime cannot load this provider here", provider, "see `edgetl doctor`")
    return session


def _openvino_cpu() -> Any:
    """OpenVINO's device for this machine's CPU. Raises BackendError that says why there is none."""
    library = openvino.library()
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise BackendError("this onnxruntime takes no plug-ins", version(), "OpenVINO's wants 1.23 or newer")
    if not _openvino_devices():  # a program around edgetl may have loaded it
        _register(library)
    for device in _openvino_devices():
        if device.ep_metadata.get("ov_device") == "CPU":
            return device
    makers = {found.device.vendor for found in onnxruntime.get_ep_devices() if found.ep_name == CPU}
    value = "%s %s beside a CPU by %s" % (openvino.PACKAGE, openvino.installed(), ", ".join(sorted(makers)) or "nobody")
    raise BackendError("OpenVINO's plug-in offers no CPU here", value, openvino.NO_DEVICE)


def _openvino_devices() -> List[Any]:
    return [found for found in onnxruntime.get_ep_devices() if found.ep_name == OPENVINO]


@functools.lru_cache(maxsize=None)
def _register(library: str) -> None:
    """Load a plug-in, once in a process: onnxruntime refuses a second time."""
    try:
        onnxruntime.register_execution_provider_library("edgetl-openvino", library)
    except _ERRORS as error:
        do = "see `edgetl doctor`; " + openvino.INSTALL
        raise BackendError("onnxruntime cannot load OpenVINO's plug-in", "%s (%s)" % (library, error), do) from error


def _placement(session: Any) -> List[Tuple[str, str, str]]:
    """(provider, operator, node name) of each node; empty where this onnxruntime does not tell."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return []
    return [(part.ep_name, node.op_type, node.name) for part in ask() for node in part.get_nodes()]


def _check_placement(placed: List[Tuple[str, str, str]], provider: str, graph: Path) -> None:
    elsewhere = [entry for entry in placed if entry[0] != provider]
    if elsewhere:
        where, operator, node = elsewhere[0]
        raise BackendError(
            "not every node runs on " + provider,
            "%s %s runs on %s, %d of %d nodes elsewhere (%s)"
            % (operator, node or "(no name)", where, len(elsewhere), len(placed), graph),
            "measure it on %s instead" % where,
        )


def _input_spec(session: Any, graph: Path) -> TensorSpec:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or not outputs:
        raise BackendError("a graph wants one image input", "%s has %d inputs" % (graph, len(inputs)))
    first = inputs[0]
    if first.type not in _DTYPES or len(first.shape) != 4:
        raise BackendError(
            "the graph's input is not an image batch",
            "%s %s %s in %s" % (first.name, first.type, first.shape, graph),
            "float32 (N, 3, S, S) or uint8 (N, S, S, 3)",
        )
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in first.shape)
    return TensorSpec(str(first.name), _DTYPES[first.type], shape)


def _evidence(provider: str, simulate: bool, facts: Dict[str, str], placed: List[Tuple[str, str, str]]) -> str:
    """TensorRT arithmetic (Q/DQ or FP16) run by another provider is simulated; all else is the host's own."""
    lowered = facts.get("precision", "fp32") != "fp32" or any(entry[1] in _QUANTISED for entry in placed)
    if provider == TENSORRT:
        return "host-gpu"
    if provider == CUDA:
        return "simulated" if simulate and any(entry[1] in _QUANTISED for entry in placed) else "host-gpu"
    return "simulated" if simulate and lowered else "host-cpu"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep a failed probe's log off stderr; the answer is the return value."""
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)


# Relu on float32 (1,), opset 13, as ONNX bytes, so that the probe needs neither a file nor `onnx`.
_ONE_NODE = bytes.fromhex(
    "080712003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08"
    "080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
