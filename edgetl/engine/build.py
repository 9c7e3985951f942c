"""`edgetl build`: the bundle's graph -> an engine in the bundle, or the one that is there if its key is identical.

Python 3.8; below the graph layer, so the graph is bytes and what the manifest says of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edgetl.bundle import Bundle, NewArtifact, atomic_write, sha256_bytes, writing
from edgetl.engine.cache import keep, restored
from edgetl.engine.layers import Coverage
from edgetl.engine.plan import Plan, PlanOptions, make_plan
from edgetl.engine.toolkit import Toolkit, load
from edgetl.errors import BackendError, BundleError, EngineError, InputError
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import cudart
from edgetl.runtime.binding import TENSORRT, TENSORRT_RTX
from edgetl.runtime.machine import jetson_board, platform_name
from edgetl.spec import BatchProfile, Precision, Profile
from edgetl.target import (
    DEFAULT_TARGET,
    RTX_PORTABLE,
    Decision,
    EngineKey,
    decide,
    parse_target,
    profile_for,
    sm_text,
    units,
)

_AHEAD = "`--with tensorrt-rtx` builds ahead of time without a GPU"


@dataclass(frozen=True)
class BuildOptions:
    """`edgetl build`. `target` None: the profile that the TensorRT here reads (ahead of time: that of jetpack6).

    `workspace_mib` 0 and `level` -1 leave TensorRT its own defaults. `timing_cache` is read and written back.
    """

    precision: Precision
    flavour: str = TENSORRT
    target: Optional[str] = None
    batch: BatchProfile = field(default_factory=BatchProfile)
    workspace_mib: int = 0
    level: int = -1
    timing_cache: Optional[Path] = None
    allow_unmet: bool = False
    cache: Optional[Path] = None  # a folder of engines by key that several bundles share (edgetl.engine.cache)

    def __post_init__(self) -> None:
        if self.flavour not in (TENSORRT, TENSORRT_RTX):
            raise InputError("unknown --with", self.flavour, "use tensorrt or tensorrt-rtx")
        if not -1 <= self.level <= 5:
            raise InputError("--level is 0 to 5", self.level, "for example --level 3")
        if self.workspace_mib < 0:
            raise InputError("--workspace is in MiB, above zero", self.workspace_mib, "for example --workspace 1024")
        if self.timing_cache is not None and self.flavour == TENSORRT_RTX:
            raise InputError("TensorRT for RTX keeps no timing cache", self.timing_cache, "leave --timing-cache out")


@dataclass(frozen=True)
class _Place:
    """Where an engine will run: what goes into its key, and the line for people."""

    gpu: str
    sm: str
    sm_count: int
    board: str
    runs_on: str


def build(path: Path, options: BuildOptions, monitor: Monitor = SILENT) -> Dict[str, Any]:
    """Build the engine of `options.precision`, or take the one with an identical key; returns the JSON of cli.md.

    Raises BundleError (no such graph), InputError (a graph that misses its contract), BackendError (no
    TensorRT or GPU here), EngineError (refused, or the engine lost its precision). Nothing is left behind then.
    """
    Bundle.open(path)  # a wrong path is the first thing to hear of, not a missing GPU
    tools = _tools(options)
    profile = _profile(tools, options)
    place = _place(tools, options)
    with writing(path, "build") as (bundle, scratch):
        graph = _graph(bundle, tools, profile, options)
        data = bundle.file(graph).read_bytes()
        wanted = _key(tools, place, graph, options, _cache_bytes(options))
        decision = _decide(bundle, wanted, monitor)
        if decision[0].action == "reuse" and decision[1] is not None:
            return {"artifacts": [_report(decision[1], reused=True)]}
        kept = restored(options.cache, wanted)
        if kept is not None:
            monitor.say("reuse: an engine with an identical key is on this machine")
            added = bundle.add([NewArtifact(kept[0], _place_of(wanted), kept[1])])
            return {"artifacts": [_report(added[0], reused=True)]}
        plan = make_plan(tools, data, options.precision.value, _plan_options(options), monitor)
        _prove(options.precision, plan.coverage, monitor)
        key = replace(wanted, timing_cache_sha256=_digest(plan.timing_cache))
        record = _record(key, place, graph, tools, plan, options)
        (scratch / "plan").write_bytes(plan.data)
        added = bundle.add([NewArtifact(scratch / "plan", _place_of(key), record)])
        keep(options.cache, key, plan.data, record)
        if options.timing_cache is not None and plan.timing_cache is not None:
            atomic_write(options.timing_cache, plan.timing_cache)
    return {"artifacts": [_report(added[0], reused=False)]}


def _place_of(key: EngineKey) -> str:
    return "engines/%s.plan" % key.digest12


def check_machine(options: BuildOptions) -> None:
    """Raise what `build` would of this machine, whatever the bundle holds: no TensorRT, no GPU, a target not read here.

    BackendError, InputError, EngineError. For a caller that has much to do before it builds.
    """
    tools = _tools(options)
    _profile(tools, options)
    _place(tools, options)


def _tools(options: BuildOptions) -> Toolkit:
    try:
        return load(options.flavour)
    except BackendError as error:
        if options.flavour == TENSORRT:
            error = BackendError(error.what, error.value, error.do + "; " + _AHEAD)
        raise error from None


def _profile(tools: Toolkit, options: BuildOptions) -> str:
    """The graph profile to build. Raises where this TensorRT does not read the target's."""
    if options.target is not None:
        profile = parse_target(options.target).profile
    else:
        profile = parse_target(DEFAULT_TARGET).profile if tools.line.ahead_of_time else profile_for(tools.version)
    if profile == Profile.CPU.value:
        raise InputError("a CPU graph has no engine", options.target, "run it with onnxruntime: `edgetl bench`")
    if profile not in tools.line.profiles:
        do = "leave --target out, build on the device, or check the graph with --with tensorrt-rtx"
        raise EngineError("%s does not build %s graphs" % (tools.title, profile), options.target, do)
    if tools.line.ahead_of_time and profile == Profile.TRT8.value and options.precision is Precision.FP16:
        do = "build it on a JetPack 5 or 6.0 device, or look at --precision int8 or fp32"
        raise EngineError("TensorRT 8's FP16 is a flag that TensorRT for RTX lacks", "fp16 of trt8", do)
    return profile


def _place(tools: Toolkit, options: BuildOptions) -> _Place:
    if tools.line.ahead_of_time:
        where = "NVIDIA RTX GPUs of SM " + ", ".join(sm_text(sm) for sm in RTX_PORTABLE) + "; " + tools.title
        return _Place("", "", 0, "", where)
    try:
        gpu = cudart.gpu()
    except BackendError as error:
        raise BackendError("no GPU to build on: " + error.what, error.value, "%s; %s" % (error.do, _AHEAD)) from error
    if options.precision is Precision.INT8 and not units(gpu.sm).int8:
        raise EngineError("this GPU has no INT8 units", "%s (SM %s)" % (gpu.name, sm_text(gpu.sm)), "use fp16")
    board = jetson_board()
    name = board.name if board else ""
    where = "%s (SM %s), %s, %s" % (name or gpu.name, sm_text(gpu.sm), tools.title, platform_name())
    return _Place(gpu.name, sm_text(gpu.sm), gpu.sm_count, name, where)


def _graph(bundle: Bundle, tools: Toolkit, profile: str, options: BuildOptions) -> Dict[str, Any]:
    """The graph's record. TensorRT 8's FP16 engine is made of the FP32 graph: opset 13 has no FP16 one."""
    source = options.precision.value
    if profile == Profile.TRT8.value and options.precision is Precision.FP16:
        source = Precision.FP32.value
    graph = bundle.artifact("graph", profile=profile, precision=source)
    if graph.get("met") is False and not options.allow_unmet:
        do = "export it again within its contract, or use --allow-unmet"
        raise InputError("the graph does not meet its contract", graph["file"], do)
    return graph


def _plan_options(options: BuildOptions) -> PlanOptions:
    cache = _cache_bytes(options)
    return PlanOptions(options.batch, options.workspace_mib, options.level, cache)


def _cache_bytes(options: BuildOptions) -> Optional[bytes]:
    """The timing cache's bytes, b"" where the file is not there yet, None where none is asked for."""
    if options.timing_cache is None:
        return None
    return options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""


def _digest(cache: Optional[bytes]) -> str:
    return sha256_bytes(cache) if cache else ""


def _key(
    tools: Toolkit, place: _Place, graph: Mapping[str, Any], options: BuildOptions, cache: Optional[bytes]
) -> EngineKey:
    return EngineKey(
        graph_sha256=str(graph["sha256"]),
        precision=options.precision.value,
        flavour=tools.flavour,
        tensorrt=tools.version,
        platform=platform_name(),
        gpu=place.gpu,
        sm=place.sm,
        sm_count=place.sm_count,
        board=place.board,
        batch=str(options.batch),
        workspace_mib=options.workspace_mib,
        level=options.level,
        tf32=False,
        timing_cache_sha256=_digest(cache),
    )


def _decide(bundle: Bundle, wanted: EngineKey, monitor: Monitor) -> Tuple[Decision, Optional[Dict[str, Any]]]:
    """What to do, and the record that may be used again."""
    records: List[Dict[str, Any]] = [
        r for r in bundle.artifacts("engine") if r["key"].get("precision") == wanted.precision
    ]
    records.sort(key=lambda r: bool(r["key"] == wanted.to_json()))  # an identical one wins over a newer one
    if not records:
        return decide(None, wanted), None
    newest = records[-1]
    decision = decide(EngineKey.from_json(newest["key"]), wanted)
    if decision.action == "reuse":
        try:
            bundle.file(newest)
        except BundleError as error:
            monitor.warn("built again: %s" % error.what)
            return Decision("rebuild", error.what), None
    monitor.say("%s: %s" % (decision.action, decision.reason))
    return decision, newest


def _prove(precision: Precision, coverage: Coverage, monitor: Monitor) -> None:
    """Raise EngineError where the engine lost the graph's precision; name the layers that did."""
    counts = coverage.counts
    if precision is Precision.FP32 and any(n > 0 for p, n in counts.items() if p != "fp32"):
        raise EngineError("the fp32 engine holds layers of a lower precision", _said(counts), "report your versions")
    if precision is not Precision.FP32 and not counts[precision.value]:
        raise EngineError("the engine lost its precision: no layer runs in " + precision.value, _said(counts))
    lost = coverage.fallbacks()
    if lost:
        names = ", ".join(lost[:5]) + (" ..." if len(lost) > 5 else "")
        monitor.warn("%d quantised layers run in float: %s" % (len(lost), names))


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join("%d %s" % (n, p) for p, n in counts.items())


def _record(
    key: EngineKey, place: _Place, graph: Mapping[str, Any], tools: Toolkit, plan: Plan, options: BuildOptions
) -> Dict[str, Any]:
    return {
        "kind": "engine",
        "made_by": "build",
        "made_from": graph["sha256"],
        "profile": graph["profile"],
        "precision": options.precision,
        "input": graph["input"],
        "key": key.to_json(),
        "runs_on": place.runs_on,
        "layers": plan.coverage.counts,
        "fallbacks": list(plan.coverage.fallbacks()),
        "layers_read_from": "build log, ahead of time" if tools.line.ahead_of_time else "engine inspector",
        "options": {"batch": key.batch, "workspace_mib": key.workspace_mib, "level": key.level, "tf32": key.tf32},
        "versions": {tools.flavour: tools.version},
    }


def _report(record: Mapping[str, Any], reused: bool) -> Dict[str, Any]:
    """The object of cli.md."""
    keys = ("kind", "profile", "precision", "file", "sha256", "bytes", "key", "runs_on", "layers")
    return dict({k: record[k] for k in keys}, reused=reused)
