"""The grammar of --fail-if, and that a gate which could not look does not let through."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.bench import check_all, parse
from edgetl.errors import InputError
from edgetl.measure.rows import NUMERIC, Row

SUMMARY = {"p50": 1.0, "p90": 2.0, "p95": 2.5, "p99": None, "mean": 1.2, "n": 120}
INT8 = Row(
    id="onnxruntime-cpu-trt10-int8-b1",
    environment="e",
    backend="onnxruntime",
    provider="CPUExecutionProvider",
    profile="trt10",
    precision="int8",
    graph_sha256=None,
    engine_key=None,
    status="ok",
    error=None,
    split="test",
    batch=1,
    n_images=100,
    accuracy=0.9,
    drop_pp=0.6,
    drop_ci_pp=(-0.2, 1.4),
    latency_ms=SUMMARY,
    size_bytes=4_000_000,
    macro_f1=0.8,
    latency_ci_ms={"p50": [0.9, 1.1], "p90": None, "p95": None, "p99": None},
    ratio_p50=(0.4, 0.3, 0.5),
    throughput_by_streams={"4": {"throughput_ips": 400.0, "p50_ms": 1.0, "p99_ms": None, "n": 9}, "2": None},
)
FP32 = replace(INT8, id="torch-cpu-fp32-b1", backend="torch", profile=None, precision="fp32", drop_pp=0.0)
FP32 = replace(FP32, ratio_p50=None)
FAILED = replace(FP32, id="dead", precision="fp16", status="failed", error="out of memory", drop_pp=None)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("int8.drop_pp>0.5", False),
        ("int8.drop_pp>0.6", True),
        ("int8.drop_pp>=0.6", False),
        ("fp32.drop_pp>0.5", True),
        ("drop_pp>0.5", False),
        ("drop_pp<0", True),
        ("torch.drop_pp!=0", True),
        ("torch.drop_pp==0", False),
        ("trt10.drop_ci_pp.hi>1", False),
        ("trt10.drop_ci_pp.lo>1", True),
        ("size_bytes>5e6", True),
        (" size_bytes <= 4e+6 ", False),
        ("onnxruntime.latency_ms.p50>8", True),
        ("int8.latency_ms.p95>.5", False),
        ("onnxruntime-cpu-trt10-int8-b1.flips>-1", False),  # null
        ("latency_ms.p99>8", False),  # null
        ("int8.ratio_p50>0.5", True),
        ("int8.ratio_p50>0.2", False),
        ("int8.ratio_p50.hi>0.4", False),
        ("int8.ratio_p50.lo>0.4", True),
        ("int8.latency_ci_ms.p50.hi>1.1", True),
        ("int8.latency_ci_ms.p50.lo<1", False),
        ("int8.latency_ci_ms.p99.hi>1e9", False),  # null
        ("int8.throughput_by_streams.4<100", True),
        ("onnxruntime-cpu-trt10-int8-b1.throughput_by_streams.4<500", False),
        ("int8.throughput_by_streams.2<1", False),  # null: it failed
        ("int8.throughput_by_streams.8<1", False),  # not measured
        ("int8.macro_f1<0.9", False),
        ("fp32.ratio_p50>9", False),  # null
        ("int4.drop_pp>0.5", False),  # no such row
    ],
)
def test_conditions(text: str, kept: bool) -> None:
    assert (check_all([parse(text)], [INT8, FP32]) == []) is kept


def test_the_lines_say_which_row_and_why() -> None:
    lines = check_all([parse("int8.drop_pp>0.5"), parse("latency_ms.p99>8"), parse("x.flips>1")], [INT8])
    assert lines[0] == "int8.drop_pp>0.5: it is 0.6 in onnxruntime-cpu-trt10-int8-b1"
    assert lines[1].endswith("has no such figure (null)")
    assert lines[2] == "x.flips>1: no row matches 'x' (there are: int8, onnxruntime, trt10)"


def test_a_failed_row_is_not_kept_whatever_the_condition() -> None:
    assert check_all([parse("fp16.drop_pp>1e9")], [FAILED]) == ["fp16.drop_pp>1e9: dead failed (out of memory)"]
    assert check_all([parse("drop_pp>1e9")], []) == ["drop_pp>1e9: no row matches '' (there are: none)"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "drop_pp",
        "drop_pp>",
        "drop_pp>high",
        "drop_pp>0.5>1",
        "drop_pp=0.5",
        "int8.speed>1",
        "int8.latency_ms>1",
        "latency_ms.p42>1",
        "drop_ci_pp.p50>1",
        "latency_ci_ms.p50>1",
        "latency_ci_ms.hi>1",
        "ratio_p50.p50>1",
        "throughput_by_streams>1",
        "throughput_by_streams.many>1",
        "noise.spread>1",
        "noise>1",
        "error>1",
        "__class__>1",
        "drop_pp.real>1",
        "drop_pp>nan",
        "print()>1",
    ],
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--fail-if"):
        parse(text)


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_an_error(text: str) -> None:
    try:
        condition = parse(text)
    except InputError:
        return
    assert condition.text == text.strip()


@given(
    st.sampled_from(["", "int8", "onnxruntime-cuda:0-trt10-int8.x-b1"]),
    st.sampled_from(NUMERIC),
    st.sampled_from([">", ">=", "<", "<=", "==", "!="]),
    st.floats(-1e6, 1e6, allow_nan=False),
)
def test_what_is_written_is_read(prefix: str, field: str, compare: str, limit: float) -> None:
    found = parse((prefix + "." if prefix else "") + field + compare + repr(limit))
    assert (found.prefix, found.field, found.part, found.compare, found.limit) == (prefix, field, "", compare, limit)
