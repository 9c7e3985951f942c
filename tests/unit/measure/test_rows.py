"""Rows go out and come back the same; anything else is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from edgetl.errors import InputError
from edgetl.measure.rows import ADDED, FIELDS, Row, rows_of

# The contract: the keys of a row in the order of the command line's documentation.
KEYS = """
id environment backend provider profile precision graph_sha256 engine_key status error split batch n_images
accuracy accuracy_ci drop_pp drop_ci_pp agreement flips accuracy_evidence latency_evidence latency_ms device_ms
end_to_end_ms throughput_ips size_bytes peak_rss_mb energy_mj
"""
SUMMARY = {"p50": 1.0, "p90": 2.0, "p95": None, "p99": None, "mean": 1.2, "n": 120}
INTERVAL = {"p50": [0.9, 1.1], "p90": [1.8, 2.4], "p95": None, "p99": None}
ROW = Row(
    id="onnxruntime-cpu-trt10-fp32-b1",
    environment="0123456789ab",
    backend="onnxruntime",
    provider="CPUExecutionProvider",
    profile="trt10",
    precision="fp32",
    graph_sha256="ab" * 32,
    engine_key=None,
    status="ok",
    error=None,
    split="test",
    batch=1,
    n_images=30,
    accuracy=0.9,
    accuracy_ci=(0.8, 0.95),
    drop_pp=0.0,
    drop_ci_pp=(-1.0, 1.0),
    agreement=1.0,
    flips=0,
    accuracy_evidence="host-cpu",
    latency_evidence="host-cpu",
    latency_ms=SUMMARY,
    end_to_end_ms=SUMMARY,
    throughput_ips=800.0,
    size_bytes=9_000_000,
    peak_rss_mb=120.5,
    macro_f1=0.88,
    p_mcnemar=1.0,
    latency_ci_ms=INTERVAL,
    end_to_end_parts_ms={"decode": 0.4, "resize": 0.2, "run": 1.1},
    ratio_p50=(0.5, 0.48, 0.52),
    ratio_to="torch-cpu-fp32-b1",
    noise={"noisy": True, "why": ["other processes used 1.5 of 2 cores"], "spread": 0.08},
    throughput_by_streams={"1": {"throughput_ips": 800.0, "p50_ms": 1.0, "p99_ms": None, "n": 90}, "4": None},
)


def test_the_keys_are_the_contract() -> None:
    assert list(ROW.to_json()) == [*FIELDS, *ADDED]
    assert list(FIELDS) == KEYS.split()


def test_a_row_survives_json() -> None:
    assert Row.from_json(json.loads(json.dumps(ROW.to_json()))) == ROW
    failed = replace(ROW, status="failed", error="died", accuracy=None, accuracy_ci=None, latency_ms=None)
    assert Row.from_json(json.loads(json.dumps(failed.to_json()))) == failed


def test_a_row_of_an_older_edgetl_lacks_what_was_added() -> None:
    older = {key: value for key, value in ROW.to_json().items() if key in FIELDS}
    found = Row.from_json(older)
    assert [getattr(found, key) for key in ADDED] == [None] * len(ADDED)
    assert replace(found, **{key: getattr(ROW, key) for key in ADDED}) == ROW


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ratio_p50", [1.0, 2.0]),
        ("ratio_p50", [1.0, 2.0, None]),
        ("ratio_to", 3),
        ("ece", "low"),
        ("latency_ci_ms", {"p50": [1, 2]}),
        ("latency_ci_ms", dict(INTERVAL, p99=4)),
        ("end_to_end_parts_ms", {"decode": 1.0}),
        ("noise", {"why": []}),
        ("noise", ["loud"]),
        ("throughput_by_streams", {"four": None}),
        ("throughput_by_streams", {"4": {"throughput_ips": 1.0}}),
        ("id", None),
        ("batch", None),
        ("batch", 1.5),
        ("batch", True),
        ("accuracy", "0.9"),
        ("accuracy", False),
        ("accuracy_ci", [0.1]),
        ("accuracy_ci", [0.1, None]),
        ("drop_ci_pp", 3),
        ("latency_ms", {"p50": 1.0}),
        ("latency_ms", dict(SUMMARY, p50="fast")),
        ("latency_ms", 4),
        ("profile", 10),
        ("flips", 1.0),
    ],
)
def test_a_value_of_another_type_is_named(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"another type: {key} = "):
        Row.from_json(dict(ROW.to_json(), **{key: value}))


def test_missing_and_unknown_keys_are_named() -> None:
    data = ROW.to_json()
    with pytest.raises(InputError, match="watts"):
        Row.from_json(dict(data, watts=3))
    del data["split"]
    with pytest.raises(InputError, match="split"):
        Row.from_json(data)
    with pytest.raises(InputError, match="not an object"):
        Row.from_json([1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "fine"},
        {"status": "failed"},
        {"error": "odd"},
        {"accuracy_evidence": "hearsay"},
        {"latency_evidence": ""},
    ],
)
def test_a_row_that_contradicts_itself_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        replace(ROW, **change)


@pytest.mark.parametrize("result", [{}, {"schema": 2, "rows": []}, {"schema": 1, "rows": 3}])
def test_another_json_is_not_a_bench(result: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"not the JSON of `edgetl bench`: old\.json"):
        rows_of(result, "old.json")
    assert rows_of({"schema": 1, "rows": [ROW.to_json()]}, "new.json") == [ROW]
