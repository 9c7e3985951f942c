"""The bench checked by others: independent timers, a planted sleep, our own share of a run, a node on the wrong device.

    python -m benchmarks checks

All timers take turns on one session: edgetl's own (`measure.latency`), a plain loop as `onnxruntime_perf_test` has it,
`torch.utils.benchmark.Timer`, and pyperf. Each run is timed for itself by all of them, so medians are compared.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyperf
import torch.utils.benchmark
from onnx import TensorProto, helper

from benchmarks.rows import Case, Row, row
from benchmarks.suite import Network
from benchmarks.suite_bundles import bundle_of
from edgetl.bundle import Bundle
from edgetl.errors import BackendError, StageError
from edgetl.measure import turns
from edgetl.measure.latency import Clock, Effort, Timed, measure
from edgetl.measure.noise import Watch
from edgetl.runtime import ort

LIMIT = 0.03  # what two timers' medians of the same runs may differ by
PLANTED_MS = 5.0
SLACK_MS = 0.25  # 5 % of it
ADDED_MS = 0.3  # what our own code may add to a run, array to array
NETWORK = Network("mobilenet_v2 at 128 px, random weights", "mobilenet_v2", 128)
POOLED = "the mean of a 224 px image"
QUICK_NETWORK = Network("squeezenet1_1 at 64 px, random weights", "squeezenet1_1", 64)

Call = Callable[[], object]
Timer = Callable[[Call, int], list[float]]
Values = dict[str, Any]


def run(quick: bool) -> Iterator[Row]:
    """A row for each check (timers, planted sleep, own share, fallback); `held` None: could not be told here.

    Raises StageError, after the rows, where one does not hold on a machine that was quiet.
    """
    network = QUICK_NETWORK if quick else NETWORK
    bundle = Bundle.open(bundle_of(network, "cpu"))
    graph = bundle.path / bundle.artifact("graph", profile="cpu", precision="fp32")["file"]
    call = one_run(graph)
    effort = Effort(seconds=0.5 if quick else 10.0, runs=20, turn_seconds=0.05 if quick else 0.2)
    found = {
        f"independent timers: {network.name}": beside(call, effort),
        f"a planted sleep of 5 ms: {network.name}": planted(call, effort),
        f"what edgetl adds to a run: {POOLED}": added(effort),
        "a node that its provider does not take": fallback(),
    }
    for name, values in found.items():
        yield row(Case("checks", name, quick), 1, values)
    failed = [name for name, values in found.items() if values["held"] is False]
    if failed:
        raise StageError("the bench fails a check of itself", "; ".join(failed), "its figures are not to be believed")


def one_run(graph: Path) -> Call:
    """A run of one image on one thread, array to array, as `edgetl bench` times it."""
    backend = ort.OrtBackend(graph, threads=1)
    size = backend.input.shape[2]
    image = np.random.default_rng(0).integers(0, 256, (1, 3, size, size)).astype(np.float32)
    return lambda: backend.run(image)


def loop(call: Call, runs: int) -> list[float]:
    """What onnxruntime_perf_test does: read the clock, run, read the clock. Milliseconds of each run."""
    found = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        found.append((time.perf_counter_ns() - start) / 1e6)
    return found


def torch_timer(call: Call, runs: int) -> list[float]:
    """torch.utils.benchmark.Timer, one run a measurement."""
    timer = torch.utils.benchmark.Timer("call()", globals={"call": call}, num_threads=1)
    return [float(timer.timeit(1).median) * 1000.0 for _ in range(runs)]


def pyperf_worker(call: Call, runs: int) -> list[float]:
    """pyperf's runner as a worker in this process: its own loop, its own clock."""
    runner = _runner()
    runner.args = None  # it parses its options once; the number of values is one of them
    with contextlib.redirect_stdout(io.StringIO()):
        runner.parse_args(["--worker", "--warmups=0", f"--values={runs}", "--loops=1", "--quiet"])
        found = runner.bench_func(f"turn {next(_turn)}", call)  # it takes no name twice
    return [value * 1000.0 for value in found.get_values()]


_turn = itertools.count()


@functools.cache
def _runner() -> Any:
    return pyperf.Runner()  # it allows one in a process


@dataclass
class _Others:
    """The other timers' turns, taken after each of edgetl's, with as many runs as it had."""

    call: Call
    timers: dict[str, Timer]
    watch: Watch = field(default_factory=Watch)
    done: int = 0
    turns: dict[str, list[list[float]]] = field(default_factory=dict)

    def take(self, runs: int) -> None:
        for name, timer in self.timers.items():
            self.call()  # untimed, as edgetl's own turns begin
            self.turns.setdefault(name, []).append(timer(self.call, runs))


def beside(call: Call, effort: Effort, timers: dict[str, Timer] | None = None) -> Values:
    """The row's values: the p50 of edgetl over that of each other timer, with its interval."""
    others = _Others(call, timers or {"loop": loop, "torch": torch_timer, "pyperf": pyperf_worker})
    ours: list[list[float]] = []
    # One turn at a time, so that the others' come between: a rotation of four.
    once = Effort(seconds=0.0, runs=1, warmup=0, turn_seconds=effort.turn_seconds)
    measure({"edgetl": Timed(call)}, Effort(seconds=0.0, runs=1, warmup_seconds=effort.warmup_seconds))
    spent = 0.0
    while spent < effort.seconds or sum(map(len, ours)) < effort.runs or len(ours) < turns.MIN_TURNS:
        others.watch()
        turn = measure({"edgetl": Timed(call)}, once)["edgetl"].wall_ms
        others.take(len(turn))
        ours.append(turn)
        spent += sum(turn) / 1000.0
    return compared(ours, others.turns, others.watch.found()["why"])


def compared(ours: Sequence[Sequence[float]], others: dict[str, list[list[float]]], why: Sequence[str]) -> Values:
    """The row's values from every timer's turns, milliseconds by run.

    A ratio beyond the limit whose interval reaches within it cannot be told from one within: `held` is None then.
    """
    found: Values = {"n": sum(map(len, ours)), "p50_ms": round(float(np.median(np.concatenate(ours))), 4)}
    furthest, surely = 0.0, False
    for name, theirs in others.items():
        ratio = turns.ratio(ours, theirs)
        assert ratio is not None
        for key, value in zip(("ratio", "low", "high"), ratio, strict=True):
            found[f"{name}_{key}"] = round(value, 4)
        furthest = max(furthest, abs(ratio[0] - 1))
        surely = surely or ratio[1] > 1 + LIMIT or ratio[2] < 1 - LIMIT  # all of its interval
    held = None if furthest > LIMIT and not surely else _held(furthest <= LIMIT, why)
    found.update(furthest_percent=round(100 * furthest, 2), held=held, noise="; ".join(why))
    return found


def _held(within: bool, why: Sequence[str]) -> bool | None:
    return True if within else None if why else False


def planted(call: Call, effort: Effort, clock: Clock = time.perf_counter) -> Values:
    """The row's values: p50 with a sleep in the run, less what the network took in those runs, beside the sleep alone.

    Not less p50 without a sleep, which stands beside it: a core that wakes up runs the same network more slowly.
    """
    after: list[float] = []

    def slept() -> object:
        time.sleep(PLANTED_MS / 1000.0)
        woke = clock()
        result = call()
        after.append((clock() - woke) * 1000.0)
        return result

    watch = Watch()
    calls = {"plain": Timed(call), "slept": Timed(slept), "alone": Timed(lambda: time.sleep(PLANTED_MS / 1000.0))}
    seen = measure(calls, effort, clock, watch)
    p50 = {name: float(np.median(found.wall_ms)) for name, found in seen.items()}
    network_ms = float(np.median(after))
    shown, why = p50["slept"] - network_ms, watch.found()["why"]
    return {
        "n": len(seen["slept"].wall_ms),
        "planted_ms": PLANTED_MS,
        "alone_ms": round(p50["alone"], 3),
        "plain_ms": round(p50["plain"], 3),
        "network_ms": round(network_ms, 3),
        "shown_ms": round(shown, 3),
        "held": _held(abs(shown - p50["alone"]) <= SLACK_MS, why),
        "noise": "; ".join(why),
    }


def added(effort: Effort, clock: Clock = time.perf_counter) -> Values:
    """The row's values: a backend's run beside its session's own, on a graph that takes next to nothing itself."""
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 224, 224)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        graph = Path(folder) / "pooled.onnx"
        onnx.save(pooled(), graph)
        backend = ort.OrtBackend(graph, threads=1)
        session = onnxruntime.InferenceSession(graph, ort.options(threads=1), providers=[ort.CPU])
    watch = Watch()
    calls = {"ours": Timed(lambda: backend.run(image)), "its_own": Timed(lambda: session.run(["y"], {"x": image}))}
    seen = measure(calls, effort, clock, watch)
    backend.close()
    ours, its_own = (float(np.median(seen[name].wall_ms)) for name in calls)
    why = watch.found()["why"]
    return {
        "n": len(seen["ours"].wall_ms),
        "ours_ms": round(ours, 4),
        "its_own_ms": round(its_own, 4),
        "added_ms": round(ours - its_own, 4),
        "held": _held(ours - its_own < ADDED_MS, why),
        "noise": "; ".join(why),
    }


def pooled() -> onnx.ModelProto:
    """The mean of each channel of a 224 px image: an input of a usual size, and hardly any work."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3]),
    ]
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def fallback() -> Values:
    """The row's values: what is said of a graph whose one node its provider leaves to the CPU."""
    provider = next((name for name in ort.available_providers() if name != ort.CPU), None)
    if provider is None:
        return {"provider": None, "said": "not checked: no provider beside the CPU's runs here", "held": None}
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        graph = Path(folder) / "left.onnx"
        onnx.save(with_a_determinant(), graph)
        try:
            ort.OrtBackend(graph, provider)
        except BackendError as error:
            said = str(error).replace(folder, "")
            return {"provider": provider, "said": said, "held": "Det left-to-the-cpu runs on" in said}
    return {"provider": provider, "said": "nothing", "held": False}


def with_a_determinant() -> onnx.ModelProto:
    """Relu, which every provider takes, and Det, which none but the CPU's does."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="taken"),
        helper.make_node("Det", ["r"], ["y"], name="left-to-the-cpu"),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
