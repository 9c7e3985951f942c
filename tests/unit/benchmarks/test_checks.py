"""The checks that the bench is put to: each timer alone, what counts as held, and benches that are repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from benchmarks import checks, repeat
from benchmarks.rows import SCHEMA, Case, row
from edgetl.errors import StageError
from edgetl.measure.latency import Effort, Timing, measure
from edgetl.runtime.ort import OrtBackend

QUICK = Effort(seconds=0.05, runs=10, turn_seconds=0.01)


def slept() -> None:
    time.sleep(0.002)


def test_each_timer_times_each_run() -> None:
    for name, timer in (("loop", checks.loop), ("torch", checks.torch_timer), ("pyperf", checks.pyperf_worker)):
        found = timer(slept, 5)
        assert len(found) == 5, name
        assert all(value >= 2.0 for value in found), name


def test_pyperf_can_take_many_turns() -> None:
    assert [len(checks.pyperf_worker(slept, runs)) for runs in (1, 3, 2)] == [1, 3, 2]


def test_timers_take_turns_on_the_same_call(tiny_graph: Callable[..., Path]) -> None:
    found = checks.beside(checks.one_run(tiny_graph()), QUICK)
    assert found["n"] >= QUICK.runs
    for name in ("loop", "torch", "pyperf"):
        assert found[f"{name}_low"] <= found[f"{name}_ratio"] <= found[f"{name}_high"]
    jsonschema.validate(row(Case("checks", "timers", True), 1, found), SCHEMA)


def test_a_timer_that_is_off_is_caught() -> None:
    rng = np.random.default_rng(0)
    ours = [list(rng.normal(1.0, 0.01, 50)) for _ in range(10)]
    right = [list(rng.normal(1.0, 0.01, 50)) for _ in range(10)]
    wrong = [list(rng.normal(1.05, 0.01, 50)) for _ in range(10)]
    assert checks.compared(ours, {"loop": right}, [])["held"] is True
    off = checks.compared(ours, {"loop": right, "torch": wrong}, [])
    assert (off["held"], off["furthest_percent"]) == (False, pytest.approx(4.8, abs=0.5))
    assert checks.compared(ours, {"torch": wrong}, ["other processes"])["held"] is None


@pytest.mark.parametrize(("lost_ms", "held"), [(0.0, True), (1.0, False)])
def test_a_planted_sleep_under_a_clock_of_the_tests_own(
    monkeypatch: pytest.MonkeyPatch, lost_ms: float, held: bool
) -> None:
    """`lost_ms`: what a bench that reads its clock too late would miss of every run with a sleep in it."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def call() -> None:
        nonlocal now
        now += 0.002

    def late(*given: Any) -> dict[str, Timing]:
        seen = measure(*given)
        seen["slept"].wall_ms = [value - lost_ms for value in seen["slept"].wall_ms]
        return seen

    monkeypatch.setattr(checks, "measure", late)
    monkeypatch.setattr(checks.time, "sleep", sleep)
    monkeypatch.setattr(checks.Watch, "__call__", lambda watch: None)
    monkeypatch.setattr(checks.Watch, "found", lambda watch: {"why": []})
    effort = Effort(seconds=0.1, runs=10, warmup=0, turn_seconds=0.02)
    found = checks.planted(call, effort, lambda: now)
    assert (found["alone_ms"], found["plain_ms"], found["network_ms"], found["held"]) == (5.0, 2.0, 2.0, held)
    assert found["shown_ms"] == pytest.approx(5.0 - lost_ms)


def test_what_our_own_code_adds_is_told_beside_the_session_itself() -> None:
    found = checks.added(QUICK)
    assert found["n"] >= QUICK.runs
    assert found["added_ms"] == pytest.approx(found["ours_ms"] - found["its_own_ms"], abs=2e-4)
    jsonschema.validate(row(Case("checks", "added", True), 1, found), SCHEMA)


def test_more_than_it_may_add_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(calls: dict[str, Any], *given: Any) -> dict[str, Timing]:
        return {name: Timing([1.0 if name == "ours" else 0.5]) for name in calls}

    monkeypatch.setattr(checks, "measure", slower)
    monkeypatch.setattr(checks.Watch, "found", lambda watch: {"why": []})
    assert (checks.added(QUICK)["added_ms"], checks.added(QUICK)["held"]) == (0.5, False)


def test_what_falls_back_is_named_or_could_not_be_asked() -> None:
    found = checks.fallback()
    assert found["held"] is (None if found["provider"] is None else True)
    jsonschema.validate(row(Case("checks", "fallback", True), 1, found), SCHEMA)


def test_the_graph_with_a_node_for_the_cpu_alone_is_one(tmp_path: Path) -> None:
    onnx.save(checks.with_a_determinant(), tmp_path / "left.onnx")
    backend = OrtBackend(tmp_path / "left.onnx")
    assert backend.run(np.eye(4, dtype=np.float32)[None, None].repeat(3, axis=1)).tolist() == [[1.0, 1.0, 1.0]]


def test_a_check_that_fails_ends_the_suite_after_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "bundle_of", lambda network, target: tmp_path)
    monkeypatch.setattr(checks.Bundle, "open", lambda path: type("B", (), {"path": path, "artifact": _graph})())
    monkeypatch.setattr(checks, "one_run", lambda graph: slept)
    monkeypatch.setattr(checks, "beside", lambda call, effort: {"held": True})
    monkeypatch.setattr(checks, "planted", lambda call, effort: {"held": False})
    monkeypatch.setattr(checks, "added", lambda effort: {"held": True})
    monkeypatch.setattr(checks, "fallback", lambda: {"held": None})
    rows: Iterator[dict[str, Any]] = checks.run(quick=True)
    assert [next(rows)["values"]["held"] for _ in range(4)] == [True, False, True, None]
    with pytest.raises(StageError, match="a planted sleep"):
        next(rows)


def _graph(*_: object, **__: object) -> dict[str, str]:
    return {"file": "graph.onnx"}


def bench(ratio: float, noisy: bool = False) -> list[dict[str, Any]]:
    noise = {"noisy": noisy, "why": ["others"] if noisy else []}
    fp32 = {"latency_ms": {"p50": 2.0}, "ratio_p50": [1, 1, 1], "noise": noise}
    return [fp32, {"latency_ms": {"p50": 2 * ratio}, "ratio_p50": [ratio, ratio, ratio], "noise": noise}]


@pytest.mark.parametrize(
    ("benches", "apart", "held"),
    [
        ([bench(0.50), bench(0.52)], 4.0, True),
        ([bench(0.50), bench(0.50), bench(0.60)], 20.0, False),
        ([bench(0.50), bench(0.50), bench(0.60, noisy=True)], 20.0, True),
        ([bench(0.50, noisy=True), bench(0.50), bench(0.60)], 20.0, False),  # the wrong one owned up
    ],
)
def test_repeated_benches(benches: list[list[dict[str, Any]]], apart: float, held: bool) -> None:
    found = repeat.values(benches)
    assert (found["apart_percent"], found["held"]) == (apart, held)
    jsonschema.validate(row(Case("repeat", "a network", True), 1, found), SCHEMA)


def test_of_reasons_that_differ_in_figures_the_worst_is_told() -> None:
    benches = [bench(0.50) for _ in range(3)]
    told = ["its turns differ by +-9 %", "its turns differ by +-22 %", "the CPU throttled itself 3 times"]
    for (_, int8), why in zip(benches, told, strict=True):
        int8["noise"] = {"noisy": True, "why": [why]}
    assert repeat.values(benches)["reasons"].split("; ") == [told[2], told[1]]
