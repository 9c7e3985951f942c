"""`build` on the device: memory first, each try in a process of its own, and the ladder when it is killed. Python 3.8.

A try runs `edgetl.engine.build` on the bundle; engines are shared by key through a cache folder, and the timing
cache of a (graph, precision, batch) lies beside them, so that a second build of the same is a look-up.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from edgetl.bundle import Bundle, atomic_json, canonical_json, read_json, sha256_bytes
from edgetl.device.chosen import Wish, choose
from edgetl.device.jobs import command_for, environment
from edgetl.device.ladder import Attempt, after_kill, preflight, was_memory
from edgetl.device.probe import memory
from edgetl.device.system import System
from edgetl.engine import BuildOptions, build
from edgetl.errors import BundleError, EdgetlError, EngineError
from edgetl.monitor import SILENT, Monitor
from edgetl.protocol import read_answer
from edgetl.spec import BatchProfile, Precision

_HELP = "stop the desktop (sudo systemctl isolate multi-user.target) and what else runs, then build again"

_KILL_ME_FIRST = "800"  # of 1000; raising one's own score needs no rights


@dataclass(frozen=True)
class Wanted:
    """The options of the verb. `engines`: the cache folder, None keeps none. `flavour`: "tensorrt" (or its RTX)."""

    bundle: Path
    precision: Precision
    batch: BatchProfile = field(default_factory=BatchProfile)
    attempt: Attempt = field(default_factory=Attempt)
    engines: Optional[Path] = None
    flavour: str = "tensorrt"
    allow_unmet: bool = False

    @property
    def rung_file(self) -> Optional[Path]:
        """Where it is noted which rung of the ladder this build needs."""
        return None if self.engines is None else self.engines / ("rung-%s.json" % self._name)

    @property
    def timing_cache(self) -> Optional[Path]:
        """TensorRT's tactics for this graph; none for TensorRT for RTX, which keeps none."""
        if self.engines is None or self.flavour != "tensorrt":
            return None
        return self.engines / ("timing-%s.cache" % self._name)

    @property
    def _name(self) -> str:
        among = Bundle.open(self.bundle).artifacts("graph")
        graphs = sorted(str(r["sha256"]) for r in among if r["precision"] in (str(self.precision), "fp32"))
        return sha256_bytes(canonical_json([graphs, str(self.precision), str(self.batch), self.flavour]))[:12]


def build_here(wanted: Wanted, monitor: Monitor = SILENT) -> Dict[str, Any]:
    """One try, in this process: cli.md's object of `build`.

    It offers itself to the kernel first: where memory runs out, this process is to be killed, and neither the one
    that goes down the ladder nor somebody's service.
    """
    try:
        Path("/proc/self/oom_score_adj").write_text(_KILL_ME_FIRST, encoding="ascii")
    except OSError:
        pass  # no Linux, or a container that does not let us: the kernel chooses for itself
    options = BuildOptions(
        precision=wanted.precision,
        flavour=wanted.flavour,
        batch=wanted.batch,
        workspace_mib=wanted.attempt.workspace_mib,
        level=wanted.attempt.level,
        timing_cache=wanted.timing_cache,
        allow_unmet=wanted.allow_unmet,
        cache=wanted.engines,
    )
    return build(wanted.bundle, options, monitor)


def open_graph(bundle: Bundle, wish: Wish) -> Dict[str, Any]:
    """`build` for onnxruntime: there is nothing to build, so the graph is opened and answers one batch of zeros.

    {"artifacts": [], "opened": {"file", "sha256", "profile", "precision", "ms"}}. Raises BundleError, BackendError.
    """
    one = choose(bundle, wish)
    start = time.monotonic()
    backend = one.opens()
    try:
        shape = (max(backend.input.shape[0], 1),) + tuple(backend.input.shape[1:])
        backend.run(np.zeros(shape, dtype=backend.input.dtype))
    finally:
        backend.close()
    said = {name: one.record[name] for name in ("file", "sha256", "profile", "precision")}
    return {"artifacts": [], "opened": dict(said, ms=round((time.monotonic() - start) * 1e3, 3))}


def build_on_device(
    wanted: Wanted, levels: bool = True, system: Optional[System] = None, monitor: Monitor = SILENT
) -> Dict[str, Any]:
    """Build with the ladder; cli.md's object with "attempts" and "memory" beside its artifacts.

    Raises EngineError: too little memory to begin with, killed on the last rung, or the builder's own error.
    """
    available = memory(system or System())["available_mb"]
    attempt, plan = _first(wanted, available, monitor)
    attempts: List[Dict[str, Any]] = []
    while True:
        monitor.say("building %s: %s" % (wanted.precision, attempt))
        start = time.monotonic()
        code, answer = _child(replace(wanted, attempt=attempt))
        error = answer.get("error")
        ended = "built" if error is None and code == 0 else "killed (%d)" % code if not answer else "failed"
        seconds = round(time.monotonic() - start, 3)
        attempts.append(dict(attempt.to_json(), ended=ended, seconds=seconds))
        if ended == "built":
            _note(wanted, attempt)
            return {"artifacts": answer["artifacts"], "attempts": attempts, "memory": plan}
        if not was_memory(code, error):
            said = error or {"what": "the build ended without an answer", "value": "exit %d" % code, "do": ""}
            raise EngineError(said["what"], said["value"], said["do"])
        following = after_kill(attempt, levels)
        if following is None:
            raise EngineError("memory ran out on every rung", "%d tries, last: %s" % (len(attempts), attempt), _HELP)
        monitor.warn("%s for memory with %s; next: %s" % (ended, attempt, following))
        attempt = following


def _first(wanted: Wanted, available_mb: Optional[int], monitor: Monitor) -> Tuple[Attempt, Dict[str, Any]]:
    """The rung to begin with: one that an earlier build of the same needed, else what the memory allows."""
    bundle = Bundle.open(wanted.bundle)
    graph_bytes = max([int(r["bytes"]) for r in bundle.artifacts("graph")] or [0])
    found = preflight(wanted.attempt, available_mb, graph_bytes)
    monitor.say("memory: " + found.why)
    if found.start is None:
        raise EngineError("too little memory to build here", found.why, _HELP)
    noted = _noted(wanted) if wanted.attempt == Attempt() else None
    plan = {"available_mb": available_mb, "need_mb": found.need_mb}
    return (noted or found.start), plan


def _child(wanted: Wanted) -> Tuple[int, Dict[str, Any]]:
    """(exit status, its answer; empty where it was killed before it gave one). Its log goes on to our stderr."""
    arguments = ["build", str(wanted.bundle), "--precision", str(wanted.precision), "--batch", str(wanted.batch)]
    arguments += ["--workspace", str(wanted.attempt.workspace_mib), "--level", str(wanted.attempt.level)]
    arguments += ["--with", wanted.flavour.replace("_", "-"), "--in-process"]
    arguments += ["--allow-unmet"] if wanted.allow_unmet else []
    arguments += ["--engines", str(wanted.engines)] if wanted.engines is not None else []
    done = subprocess.run(
        command_for(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment(), check=False
    )
    try:
        return done.returncode, read_answer(done.stdout.decode("utf-8", "replace"))
    except EdgetlError:
        return done.returncode, {}


def _note(wanted: Wanted, attempt: Attempt) -> None:
    if wanted.rung_file is not None and attempt != wanted.attempt:
        atomic_json(wanted.rung_file, attempt.to_json())


def _noted(wanted: Wanted) -> Optional[Attempt]:
    if wanted.rung_file is None or not wanted.rung_file.is_file():
        return None
    try:
        found = read_json(wanted.rung_file, "note")
        return Attempt(int(found["workspace_mib"]), int(found["level"]))
    except (BundleError, KeyError, TypeError, ValueError):
        return None  # a damaged note: begin at the top
