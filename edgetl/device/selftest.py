"""`selftest`: all of the device side on a tiny bundle that travels inside the app; its JSON is what users send back.

The bundle (made by models/make_selftest.py) holds graphs of both TensorRT profiles with golden photos, pixels and
logits. Each step stands for itself: what fails is told, and the others go on. Python 3.8.
"""

from __future__ import annotations

import io
import pkgutil
import shutil
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from edgetl.bundle import Bundle
from edgetl.device.bench import Effects, bench, images_for
from edgetl.device.build import Wanted, build_on_device
from edgetl.device.chosen import BACKENDS, ONNXRUNTIME, Wish, choose_all, loading
from edgetl.device.probe import probe
from edgetl.device.system import System
from edgetl.device.verify import verify
from edgetl.engine import load
from edgetl.engine.toolkit import line_for
from edgetl.errors import BackendError, EdgetlError
from edgetl.measure.latency import Effort
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.binding import TENSORRT
from edgetl.spec import Precision
from edgetl.target import parse_version

_BUNDLE = "selftest.zip"
Step = Dict[str, Any]


def selftest(
    system: Optional[System] = None, seconds: float = 1.0, keep: Optional[Path] = None, monitor: Monitor = SILENT
) -> Dict[str, Any]:
    """{"probe", "backends", "steps": [{"name", "ok", "seconds", "result"|"error"}], "ok", "seen"}.

    ok: at least one backend loads, and every step of those that load came out right. seen: which TensorRT line
    this run has shown on hardware, and what was known of it before. `keep`: the bundle with its engines stays there.
    """
    system = system or System()
    told, backends = probe(system), loading()
    steps: List[Step] = []
    with tempfile.TemporaryDirectory(prefix="edgetl-selftest-") as scratch:
        folder = unpacked(Path(scratch) / "bundle")
        for backend in BACKENDS:
            if not backends[backend]["ok"]:
                monitor.say("%s does not load: %s" % (backend, backends[backend]["error"]["what"]))
                continue
            steps += _of_backend(folder, backend, seconds, system, monitor)
        if keep is not None:
            shutil.copytree(str(folder), str(keep))
    good = bool(steps) and all(step["ok"] for step in steps)
    result = {"ok": good, "probe": told, "backends": backends, "steps": steps, "seen": _seen(told, steps)}
    if not good:
        bad = next((step for step in steps if not step["ok"]), None)
        said = bad["name"] + ": " + str(bad["error"]["what"]) if bad else "neither TensorRT nor onnxruntime loads"
        result["error"] = EdgetlError("the selftest found a fault", said, "send this JSON with your report").as_json()
    return result


def unpacked(folder: Path) -> Path:
    """The bundle that travels inside the app (a zipapp or a source tree), laid out in `folder`."""
    data = pkgutil.get_data(__package__ or "edgetl.device", _BUNDLE)
    if data is None:
        raise BackendError("the selftest's bundle did not travel with the app", _BUNDLE, "push the app again")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(str(folder))
    return folder


def _of_backend(folder: Path, backend: str, seconds: float, system: System, monitor: Monitor) -> List[Step]:
    steps = _builds(folder, system, monitor) if backend == TENSORRT else []
    # FP16-rest graphs on a CPU are a simulation whose INT8 moves from one onnxruntime to the next by more than its
    # tolerance (1.19 to 1.31: KL .0015), and nothing that a device serves with: trt8's have an FP32 rest.
    wish = Wish(backend, profile="trt8", threads=1) if backend == ONNXRUNTIME else Wish(backend)
    modes = [("", wish)]
    if backend == TENSORRT:
        modes += [(" CUDA graph", Wish(backend, cuda_graph=True)), (" mapped", Wish(backend, mapped=True))]
    for label, one in modes:
        for verb, call in _verbs(folder, one, seconds, system, monitor):
            steps.append(_step("%s %s%s" % (verb, backend, label), call, monitor))
    return steps


def _builds(folder: Path, system: System, monitor: Monitor) -> List[Step]:
    """An engine of each precision, from the graphs that this TensorRT reads."""
    levels = parse_version(load(TENSORRT).version) >= (8, 6)
    steps = []
    for precision in Precision:
        wanted = Wanted(folder, precision, allow_unmet=True)
        call = partial(build_on_device, wanted, levels, system, monitor)
        steps.append(_step("build %s with tensorrt" % precision, call, monitor))
    return steps


def _verbs(
    folder: Path, wish: Wish, seconds: float, system: System, monitor: Monitor
) -> List[Tuple[str, Callable[[], Dict[str, Any]]]]:
    def proved() -> Dict[str, Any]:
        bundle = Bundle.open(folder)
        return verify(bundle, choose_all(bundle, wish), monitor)

    def measured() -> Dict[str, Any]:
        bundle = Bundle.open(folder)
        images = images_for(bundle, None, Path(), "golden")
        effects = Effects(effort=Effort(seconds=seconds), idle_seconds=seconds, power_seconds=seconds, peaks=False)
        return bench(choose_all(bundle, wish), images, effects, None, system, monitor)

    return [("verify", proved), ("bench", measured)]


def _step(name: str, call: Callable[[], Dict[str, Any]], monitor: Monitor) -> Step:
    monitor.say("selftest: " + name)
    start = time.monotonic()
    error: Optional[Dict[str, Any]] = None
    result: Optional[Dict[str, Any]] = None
    try:
        result = call()
        error = result.pop("error", None)
        failed = [row["error"] for row in result.get("rows", []) if row["status"] == "failed"]
        if failed:
            error = EdgetlError("a backend failed while it was measured", failed[0]).as_json()
    except EdgetlError as found:
        error = found.as_json()
    except Exception as found:  # on a board nobody has seen, any fault is the finding that this test is for
        error = EdgetlError("a fault in edgetl's device side", repr(found)).as_json()
    seconds = round(time.monotonic() - start, 3)
    return {"name": name, "ok": error is None, "seconds": seconds, "result": result, "error": error}


def _seen(told: Dict[str, Any], steps: List[Step]) -> Dict[str, Any]:
    """Which TensorRT line ran here, on which SM, and what the app knew of that line before."""
    version = told["tensorrt"]["version"]
    line = None
    if version is not None:
        try:
            line = line_for(version)
        except EdgetlError:
            pass  # a version that is not served: its probe says so
    ran = [step["name"] for step in steps if step["ok"] and TENSORRT in step["name"]]
    return {
        "tensorrt": version,
        "line": line.name if line else None,
        "known_before": line.seen if line else None,
        "sm": told["cuda"]["sm"],
        "ran": ran,
    }
