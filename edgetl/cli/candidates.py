"""Which backends a bundle can be run with on this machine. Decided here, measured by edgetl.bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from edgetl.errors import BackendError, BundleError, InputError

if TYPE_CHECKING:
    from edgetl.bench import Candidate
    from edgetl.bundle import Bundle
    from edgetl.runtime import Backend
    from edgetl.runtime.cudart import Gpu

BACKENDS = ("torch", "onnxruntime", "tensorrt")
PRECISIONS = ("fp32", "fp16", "int8")
PROVIDERS = {  # the name in `--providers`, and onnxruntime's own
    "cpu": "CPUExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
ADOPTED = "source-graph"  # the artifact that `edgetl adopt` starts a bundle with
Record = dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What the user asked for. `backends`, `precisions`, `providers` (onnxruntime's; names of PROVIDERS) empty:
    all; `profile` None: all that the bundle has."""

    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    profile: str | None = None
    threads: int = 0
    providers: tuple[str, ...] = ()

    def wants(self, backend: str) -> bool:
        """Whether this backend is to be measured."""
        return not self.backends or backend in self.backends


def parse_names(text: str | None, allowed: Sequence[str], option: str) -> tuple[str, ...]:
    """`"a,b"` as names out of `allowed`; () for None. Raises InputError."""
    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    for name in names:
        if name not in allowed:
            raise InputError(f"{option} knows no such name", name, "use some of " + ",".join(allowed))
    return names


def pick(bundle: Bundle, wish: Wish, say: Callable[[str], None]) -> tuple[list[Candidate], Candidate]:
    """The candidates of a bench, and the reference of all drops (the checkpoint; of an adopted graph: itself).

    Raises BackendError / BundleError where something was asked for by name and is not there.
    """
    origin = _torch(bundle, wish.threads) or _adopted(bundle, wish.threads)
    found: dict[str, list[Candidate]] = {name: [] for name in BACKENDS}
    for candidate in origin:
        if wish.wants(candidate.backend) and _precision_wanted(candidate.precision, wish):
            found[candidate.backend].append(candidate)
    if wish.wants("onnxruntime"):
        found["onnxruntime"] += _onnxruntime(bundle, wish, say)
    if wish.wants("tensorrt"):
        found["tensorrt"] = _tensorrt(bundle, wish, say)
    for name in wish.backends:
        if not found[name]:
            raise BackendError("nothing to measure with this backend", name, _NEXT[name].format(path=bundle.path))
    candidates = [candidate for name in BACKENDS for candidate in found[name]]
    if not candidates:
        raise BundleError("nothing in the bundle fits what was asked for", bundle.path, "see `edgetl inspect`")
    if not bundle.artifacts("graph"):
        say(f"no graph in this bundle yet: edgetl export {bundle.path} --int8 makes them")
    return candidates, origin[0]


_CPU = PROVIDERS["cpu"]
_NEXT = {
    "torch": "the bundle has no checkpoint at this precision (an adopted graph has none)",
    "onnxruntime": "make the graphs with `edgetl export {path} --int8`",
    "tensorrt": "engines are made by `edgetl build {path} --precision int8` on a machine that has TensorRT and a GPU",
}


def newest_graphs(bundle: Bundle, profile: str | None, precisions: Sequence[str] = ()) -> list[Record]:
    """The current graph of each (profile, precision, input), in the order of PRECISIONS."""
    current = {(r["profile"], r["precision"], r["input"]): r for r in bundle.artifacts("graph")}
    kept = [
        record
        for record in current.values()
        if profile in (None, record["profile"]) and (not precisions or record["precision"] in precisions)
    ]
    return sorted(kept, key=lambda r: (r["profile"], PRECISIONS.index(r["precision"]), r["input"]))


def open_graph(bundle: Bundle, record: Record, threads: int = 0, provider: str = _CPU) -> Callable[[], Backend]:
    """How to open a recorded graph with onnxruntime."""
    from edgetl.runtime.ort import OrtBackend

    return partial(OrtBackend, bundle.file(record), provider=provider, threads=threads)


def open_checkpoint(bundle: Bundle, threads: int = 0, device: str = "cpu") -> Callable[[], Backend]:
    """How to open the checkpoint with PyTorch."""
    from edgetl.transfer.network import TorchBackend

    return partial(TorchBackend, bundle, device=device, threads=threads)


def _precision_wanted(precision: str, wish: Wish) -> bool:
    return not wish.precisions or precision in wish.precisions


def _torch(bundle: Bundle, threads: int) -> list[Candidate]:
    from edgetl.bench import Candidate, latency_evidence

    checkpoints = bundle.artifacts("checkpoint")
    if not checkpoints:
        return []
    return [
        Candidate(
            backend="torch",
            provider=device,
            profile=None,
            precision="fp32",
            opens=open_checkpoint(bundle, threads, device),
            latency_evidence=latency_evidence("torch", device, None, "fp32"),
            size_bytes=checkpoints[-1]["bytes"],
        )
        for device in ("cpu", *(["cuda:0"] if _gpu() else []))
    ]


def _adopted(bundle: Bundle, threads: int) -> list[Candidate]:
    """The graph that an adopted bundle was made from. Raises BundleError in a bundle without any origin."""
    graphs = bundle.artifacts(ADOPTED)
    if not graphs:
        raise BundleError("the bundle has neither a checkpoint nor an adopted graph", bundle.path)
    return [_ort_candidate(bundle, {"precision": "fp32", **graphs[-1]}, _CPU, threads)]


def _onnxruntime(bundle: Bundle, wish: Wish, say: Callable[[str], None]) -> list[Candidate]:
    providers = _providers(wish.providers, say)
    graphs = newest_graphs(bundle, wish.profile, wish.precisions)
    if wish.profile and not graphs:
        there = ", ".join(f"{r['profile']}/{r['precision']}" for r in newest_graphs(bundle, None)) or "none"
        raise BundleError("the bundle has no such graph for this target", wish.profile, "it has: " + there)
    return [
        _ort_candidate(bundle, record, provider, wish.threads)
        for record in graphs
        for provider in providers
        if _suits(provider, record)
    ]


def _providers(wanted: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """onnxruntime's names of the providers to measure, the CPU's first; none wanted: all that run here.

    Raises BackendError with the reason where one was asked for and does not run. A plug-in that was installed
    and does not run is spoken of; providers that are merely compiled in are not.
    """
    from edgetl.runtime.ort import OPENVINO, listed_providers, why_not

    asked = [PROVIDERS[name] for name in wanted]
    reasons = {provider: why_not(provider) for provider in asked or listed_providers()}
    for provider, reason in reasons.items():
        if reason is not None and asked:
            raise reason
        if reason is not None and provider == OPENVINO:
            say(f"no row of {OPENVINO}: {reason}")
    return [provider for provider in PROVIDERS.values() if provider in reasons and reasons[provider] is None]


def _suits(provider: str, record: Record) -> bool:
    """Whether a graph's arithmetic is one that this provider is for; onnxruntime's own CPU kernels run every graph.

    TensorRT does not take the cpu profile's unsigned activations. OpenVINO runs Q/DQ and FP16 in its own way on a
    CPU: neither fast as on a TensorRT device nor a simulation of it, which the CPU provider's row is.
    """
    on_cpus = record["profile"] == "cpu"
    if provider == PROVIDERS["tensorrt"]:
        return not on_cpus
    return provider != PROVIDERS["openvino"] or on_cpus or record["precision"] == "fp32"


def _ort_candidate(bundle: Bundle, record: Record, provider: str, threads: int) -> Candidate:
    from edgetl.bench import Candidate, latency_evidence

    profile, precision = record.get("profile"), record["precision"]
    return Candidate(
        backend="onnxruntime",
        provider=provider,
        profile=profile,
        precision=precision,
        opens=open_graph(bundle, record, threads, provider),
        latency_evidence=latency_evidence("onnxruntime", provider, profile, precision),
        size_bytes=record["bytes"],
        graph_sha256=record["sha256"],
        input=record.get("input", "float32"),
        temperature=record.get("temperature") or 1.0,
    )


def _tensorrt(bundle: Bundle, wish: Wish, say: Callable[[str], None]) -> list[Candidate]:
    """Engines that were built for this machine's GPU; the others are named and left out."""
    from edgetl.bench import Candidate, latency_evidence
    from edgetl.runtime.trt import TrtBackend

    current = {(r["profile"], r["precision"], r["input"]): r for r in bundle.artifacts("engine")}
    out = []
    for record in current.values():
        if wish.profile not in (None, record["profile"]) or not _precision_wanted(record["precision"], wish):
            continue
        key, gpu = record["key"], _gpu()
        if not _made_for(key, gpu):
            here = gpu.name if gpu else "no GPU"
            say(f"engine {record['precision']} is left out: it runs on {record['runs_on']}; here is {here}")
            continue
        provider = f"{key['flavour']} {key['tensorrt']}"
        out.append(
            Candidate(
                backend="tensorrt",
                provider=provider,
                profile=record["profile"],
                precision=record["precision"],
                opens=partial(TrtBackend, bundle.file(record), flavour=key["flavour"]),
                latency_evidence=latency_evidence("tensorrt", provider, record["profile"], record["precision"]),
                size_bytes=record["bytes"],
                graph_sha256=record["made_from"],
                engine_key=_digest(key),
                input=record["input"],
                temperature=_temperature(bundle, record),
            )
        )
    return out


def _temperature(bundle: Bundle, engine: Record) -> float:
    """What the graph that an engine was made from has inside."""
    made_from = bundle.artifacts("graph", sha256=engine["made_from"])
    return float((made_from[-1].get("temperature") if made_from else None) or 1.0)


def _digest(key: Record) -> str:
    from edgetl.target import EngineKey

    return EngineKey.from_json(key).digest12


def _made_for(key: Record, gpu: Gpu | None) -> bool:
    """Whether an engine with this key was built for this GPU; one built ahead of time has a list instead of a name."""
    from edgetl.target import RTX_PORTABLE

    if gpu is None:
        return False
    return key["gpu"] == gpu.name if key["gpu"] else gpu.sm in RTX_PORTABLE


def _gpu() -> Gpu | None:
    """This machine's first NVIDIA GPU, as CUDA itself tells; None without one."""
    from edgetl.runtime import cudart

    try:
        return cudart.gpu()
    except BackendError:
        return None
