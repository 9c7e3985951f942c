"""Which file of a bundle runs here, and with what: decided once for all verbs. Python 3.8.

Nothing is swapped: a precision that is not there, an engine of another device or a runtime that does not load is
an error that names what is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional

from edgetl.bundle import Bundle
from edgetl.device.store import SERVE
from edgetl.errors import BackendError, BundleError, EdgetlError
from edgetl.measure import evidence
from edgetl.runtime import Backend, cudart
from edgetl.runtime.binding import TENSORRT, import_binding
from edgetl.runtime.machine import jetson_board, platform_name
from edgetl.spec import Precision
from edgetl.target import EngineKey, sm_text

ONNXRUNTIME = "onnxruntime"
BACKENDS = (TENSORRT, ONNXRUNTIME)
Record = Dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """One file of a bundle on one backend. `record` is the graph's or engine's; `opens` makes the backend anew."""

    bundle: Bundle
    record: Record
    backend: str
    opens: Callable[[], Backend]

    @property
    def precision(self) -> Precision:
        """What it computes in; an engine's own, not that of the graph it was built from."""
        return Precision(self.record["precision"])

    @property
    def graph_sha256(self) -> str:
        """Of the graph that runs, or that the engine was built from."""
        return str(self.record["sha256"] if self.backend == ONNXRUNTIME else self.record["made_from"])

    @property
    def engine_key(self) -> Optional[str]:
        """The engine's key, None for a graph."""
        return EngineKey.from_json(self.record["key"]).digest12 if self.backend == TENSORRT else None

    @property
    def name(self) -> str:
        """ "tensorrt-trt10-int8", the same in every run."""
        return "-".join((self.backend, str(self.record["profile"]), str(self.precision)))


@dataclass(frozen=True)
class Wish:
    """What a verb was asked to run. `profile` None: of each precision the newest, whichever profile it has."""

    backend: str = TENSORRT
    precision: Optional[str] = None
    profile: Optional[str] = None
    threads: int = 0
    cuda_graph: bool = False
    mapped: bool = False


def choose(bundle: Bundle, wish: Wish) -> Chosen:
    """The one file that `wish` names. Raises BundleError (none, or several), BackendError (none for this device)."""
    found = choose_all(bundle, as_served(bundle, wish))
    if len({c.precision for c in found}) > 1:
        there = ", ".join(sorted(str(c.precision) for c in found))
        raise BundleError("the bundle has several precisions", there, "choose one with --precision")
    return found[-1]


def as_served(bundle: Bundle, wish: Wish) -> Wish:
    """`wish`, where it names no precision, with that of the variant that a deploy found best on this device."""
    try:
        serve = json.loads((bundle.path / SERVE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return wish
    if wish.precision is not None or not isinstance(serve, dict) or serve.get("backend") != wish.backend:
        return wish
    return replace(wish, precision=serve["precision"], profile=wish.profile or serve["profile"])


def choose_all(bundle: Bundle, wish: Wish) -> List[Chosen]:
    """The newest of each (profile, precision, input) that fits `wish`; at least one. Raises as `choose`."""
    kind = "engine" if wish.backend == TENSORRT else "graph"
    fitting = {
        (r["profile"], r["precision"], r["input"]): r
        for r in bundle.artifacts(kind)
        if wish.precision in (None, r["precision"]) and wish.profile in (None, r["profile"])
    }
    records = list(fitting.values())
    if not records:
        raise _none_there(bundle, kind, wish)
    if wish.backend == ONNXRUNTIME:
        return [Chosen(bundle, r, ONNXRUNTIME, _graph(bundle, r, wish)) for r in records]
    here = Here.read()
    mine = [r for r in records if not here.differs(r["key"])]
    if not mine:
        why = "; ".join(here.differs(records[-1]["key"]))
        do = "build it here: `python3 -m edgetl.device build BUNDLE --precision %s`" % records[-1]["precision"]
        raise BackendError("the engine was made for another device", why, do)
    return [Chosen(bundle, r, TENSORRT, _engine(bundle, r, wish)) for r in mine]


@dataclass(frozen=True)
class Here:
    """What an engine's key must say to be for this device: its TensorRT, platform and GPU."""

    tensorrt: str
    platform: str
    gpu: str
    sm: str
    sm_count: int

    @classmethod
    def read(cls) -> Here:
        """Of this machine. Raises BackendError: no TensorRT, no GPU."""
        gpu = cudart.gpu()
        version = str(import_binding(TENSORRT).__version__)
        return cls(version, platform_name(), gpu.name, sm_text(gpu.sm), gpu.sm_count)

    def differs(self, key: Mapping[str, Any]) -> List[str]:
        """In which words an engine's key is another device's; empty where it is this one's."""
        pairs = [
            (name, getattr(self, name), key.get(name)) for name in ("tensorrt", "platform", "gpu", "sm", "sm_count")
        ]
        return ["%s is %s, the engine's %s" % (name, mine, its) for name, mine, its in pairs if mine != its]


def _graph(bundle: Bundle, record: Record, wish: Wish) -> Callable[[], Backend]:
    from edgetl.runtime.ort import OrtBackend

    return partial(OrtBackend, bundle.file(record), threads=wish.threads)


def _engine(bundle: Bundle, record: Record, wish: Wish) -> Callable[[], Backend]:
    from edgetl.runtime.trt import TrtBackend

    return partial(TrtBackend, bundle.file(record), cuda_graph=wish.cuda_graph, mapped=wish.mapped)


def _none_there(bundle: Bundle, kind: str, wish: Wish) -> BundleError:
    there = ", ".join("%s/%s" % (r["profile"], r["precision"]) for r in bundle.artifacts(kind)) or "none"
    wanted = " ".join(part for part in (wish.profile, wish.precision, kind) if part)
    do = "it has: " + there
    if kind == "engine":
        do += "; build one here (the verb build), or run a graph with --backend onnxruntime"
    return BundleError("the bundle has no " + wanted, bundle.path, do)


def evidence_here(backend: Backend) -> str:
    """The backend's evidence; what a Jetson's own CPU computes is evidence of the device too."""
    return "device" if backend.evidence == "host-cpu" and jetson_board() is not None else backend.evidence


def latency_evidence(chosen: Chosen, backend: Backend) -> Optional[str]:
    """Where its time would be taken, None where that means nothing."""
    record, jetson = chosen.record, jetson_board() is not None
    return evidence.latency_evidence(chosen.backend, backend.provider, record["profile"], record["precision"], jetson)


def loading() -> Dict[str, Any]:
    """Which backends load here: {"tensorrt": {"ok", "version"|"error"}, "onnxruntime": the same}."""
    out: Dict[str, Any] = {}
    for name, ask in ((TENSORRT, _tensorrt_version), (ONNXRUNTIME, _onnxruntime_version)):
        try:
            out[name] = {"ok": True, "version": ask()}
        except EdgetlError as error:
            out[name] = {"ok": False, "error": error.as_json()}
    return out


def _tensorrt_version() -> str:
    return Here.read().tensorrt


def _onnxruntime_version() -> str:
    from edgetl.runtime.ort import version

    return version()
