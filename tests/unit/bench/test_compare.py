"""Two benches side by side: what counts as a change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgetl.bench import Change, changes
from edgetl.measure.rows import Row


def summary(p50: float, p90: float) -> dict[str, Any]:
    return {"p50": p50, "p90": p90, "p95": None, "p99": None, "mean": p50, "n": 200}


ROW = Row(
    id="a",
    environment="e",
    backend="onnxruntime",
    provider="CPUExecutionProvider",
    profile="trt10",
    precision="int8",
    graph_sha256="1" * 64,
    engine_key=None,
    status="ok",
    error=None,
    split="test",
    batch=1,
    n_images=100,
    accuracy=0.90,
    accuracy_ci=(0.85, 0.95),
    drop_pp=0.0,
    drop_ci_pp=(-1.0, 1.0),
    latency_ms=summary(10, 11),
)


def only(before: Row, now: Row) -> dict[str, Change]:
    return {change.figure: change for change in changes([before], [now])}


def test_the_same_bench_again_changes_nothing_beyond_noise() -> None:
    assert [c.figure for c in changes([ROW], [ROW])] == ["latency_ms.p50"]
    assert not any(c.beyond for c in changes([ROW], [ROW]))


def test_accuracy_within_and_beyond_its_interval() -> None:
    near = replace(ROW, accuracy=0.89, accuracy_ci=(0.84, 0.94), drop_pp=1.0, drop_ci_pp=(0.0, 2.0))
    far = replace(ROW, accuracy=0.5, accuracy_ci=(0.4, 0.6), drop_pp=40.0, drop_ci_pp=(38.0, 42.0))
    assert (only(ROW, near)["accuracy"].beyond, only(ROW, near)["drop_pp"].beyond) == (False, False)
    assert (only(ROW, far)["accuracy"].beyond, only(ROW, far)["drop_pp"].beyond) == (True, True)
    unknown = replace(far, accuracy_ci=None)
    assert only(ROW, unknown)["accuracy"].beyond is None


def test_other_images_cannot_be_compared() -> None:
    found = only(ROW, replace(ROW, split="val", n_images=40, accuracy=0.5))["accuracy"]
    assert found.beyond is None
    assert found.note == "on other images: test 100, now val 40"


def test_times_count_when_the_median_leaves_the_spread() -> None:
    assert only(ROW, replace(ROW, latency_ms=summary(10.5, 12)))["latency_ms.p50"].beyond is False
    assert only(ROW, replace(ROW, latency_ms=summary(12, 13)))["latency_ms.p50"].beyond is True
    assert only(ROW, replace(ROW, latency_ms=summary(5, 6)))["latency_ms.p50"].beyond is True
    elsewhere = only(ROW, replace(ROW, environment="f", latency_ms=summary(99, 100)))["latency_ms.p50"]
    assert (elsewhere.beyond, elsewhere.note) == (None, "measured in another environment")
    assert "latency_ms.p50" not in only(ROW, replace(ROW, latency_ms=None))


def test_rows_that_come_go_fail_or_recover() -> None:
    failed = replace(ROW, status="failed", error="no memory")
    assert only(ROW, failed)["status"].note == "no memory"
    assert only(failed, ROW)["status"].now == "ok"
    assert only(failed, failed) == {}
    gone = changes([ROW], [replace(ROW, id="b")])
    assert [(c.id, c.now) for c in gone] == [("b", "new"), ("a", None)]


def test_another_graph_is_said() -> None:
    found = only(ROW, replace(ROW, graph_sha256="2" * 64))
    assert found["graph_sha256"].beyond is True
    assert found["graph_sha256"].as_json()["before"] == "1" * 64
