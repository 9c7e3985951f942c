"""What people read: 80 columns, intervals, and the reason behind each dash."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

from rich.console import Console

from edgetl.bench import Change
from edgetl.bench.table import render_changes, render_streams, render_table
from edgetl.measure.rows import Row

FULL = Row(
    id="onnxruntime-cpu-trt10-fp32-b1",
    environment="e",
    backend="onnxruntime",
    provider="CPUExecutionProvider",
    profile="trt10",
    precision="fp32",
    graph_sha256=None,
    engine_key=None,
    status="ok",
    error=None,
    split="test",
    batch=1,
    n_images=270,
    accuracy=0.9333,
    accuracy_ci=(0.897, 0.957),
    drop_pp=0.37,
    drop_ci_pp=(-0.8, 1.55),
    agreement=0.985,
    flips=4,
    accuracy_evidence="host-cpu",
    latency_evidence="host-cpu",
    latency_ms={"p50": 2.31, "p90": 2.6, "p95": 2.8, "p99": None, "mean": 2.4, "n": 500},
    end_to_end_ms={"p50": 3.3, "p90": 3.6, "p95": 3.8, "p99": 4.0, "mean": 3.4, "n": 500},
    throughput_ips=416.6,
    size_bytes=8_910_000,
    peak_rss_mb=121.4,
    end_to_end_parts_ms={"decode": 0.61, "resize": 0.22, "run": 2.4},
    ratio_p50=(0.412, 0.4051, 0.4249),
    ratio_to="torch-cpu-fp32-b1",
    noise={"noisy": False, "why": [], "reference_spread": 0.012},
)
SIMULATED = replace(
    FULL,
    id="i",
    precision="int8",
    accuracy_evidence="simulated",
    latency_evidence=None,
    latency_ms=None,
    end_to_end_ms=None,
    end_to_end_parts_ms=None,
    throughput_ips=None,
    ratio_p50=None,
    ratio_to=None,
    noise=None,
)
FAILED = replace(SIMULATED, id="dead", status="failed", error="no [red] memory", accuracy=None, accuracy_evidence=None)


def shown(*rows: Row, width: int = 80) -> str:
    out = StringIO()
    Console(width=width, file=out).print(render_table(rows, "models/flowers"))
    return out.getvalue()


def test_it_fits_80_columns_without_cutting_a_figure() -> None:
    text = shown(FULL, SIMULATED, replace(FULL, backend="torch", provider="cpu"))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for figure in ("93.3", "89.7-95.7", "+0.37", "-0.8 +1.6", "98.5", "2.31", "2.60", "3.30", "417", "8.91", "121"):
        assert figure in text, figure
    assert "int8 simulated" in text
    assert "fp32 cpu" in text


def test_the_clocks_are_labelled_and_the_ratio_has_its_reference() -> None:
    text = " ".join(shown(FULL).split())
    for words in ("p50: array to array", "encoded file in memory to label", "decode 0.61, resize 0.22", "0.405-0.425"):
        assert words in text, words
    assert "x ref: p50 beside torch-cpu-fp32-b1" in text
    assert "Device only" not in text
    on_gpu = replace(FULL, device_ms={"p50": 0.812, "p90": 1.0, "p95": 1.0, "p99": None, "mean": 1.0, "n": 500})
    assert "Device only, by the GPU's own events, p50: onnxruntime-cpu-trt10-fp32-b1 0.812 ms" in " ".join(
        shown(on_gpu).split()
    )
    assert " 1 " in shown(replace(FULL, ratio_p50=(1.0, 1.0, 1.0), ratio_to=FULL.id))


def test_a_noisy_machine_is_said_to_be_and_by_how_much() -> None:
    assert "Noisy" not in shown(FULL)
    others = "other processes used 1.5 of 2 cores"
    noise = {"noisy": True, "why": [others], "reference_spread": 0.123, "waited": 0.05}
    text = " ".join(shown(FULL, replace(FULL, id="b", noise=noise)).split())
    assert f"Noisy (the reference's turns differ by +-12.3 %): {others}. Quote ratios, not milliseconds." in text
    alone = dict(noise, why=[others, "its turns differ by +-9 %"], waited=0.4)
    text = " ".join(shown(*(replace(FULL, id=n, noise=found) for n, found in (("b", noise), ("c", alone)))).split())
    assert f"{others}; 1 of 2 rows for reasons of their own. Not even ratios hold" in text


def test_wide_figures_still_fit() -> None:
    slow = {"p50": 2345.6, "p90": 12345.6, "p95": 12399.0, "p99": 12999.9, "mean": 2400.0, "n": 5000}
    row = replace(FULL, provider="CUDAExecutionProvider", latency_ms=slow, end_to_end_ms=slow, ratio_p50=(9.87, 1, 11))
    text = shown(row, width=110)
    assert "…" not in text
    assert "12346, 13000" in text


def test_streams_have_a_table_of_their_own() -> None:
    assert render_streams([FULL]) is None
    four = {"throughput_ips": 1234.5, "p50_ms": 3.0, "p99_ms": 4.56, "n": 2000}
    row = replace(FULL, throughput_by_streams={"1": dict(four, p99_ms=None), "4": four, "8": None})
    out = StringIO()
    table = render_streams([row, SIMULATED])
    assert table is not None
    Console(width=80, file=out).print(table)
    line = next(line for line in out.getvalue().splitlines() if "fp32" in line)
    assert line.split() == ["onnxruntime", "fp32", "x1", "1234", "(-)", "1234", "(4.56)", "-"]
    assert "int8" not in out.getvalue()


def test_each_dash_has_its_reason() -> None:
    assert "simulated on a CPU" in shown(SIMULATED)
    assert "fewer than 10 runs" in shown(FULL)
    whole = replace(FULL, latency_ms=dict(FULL.latency_ms or {}, p99=3.0))
    assert "fewer than 10 runs" not in shown(whole)
    assert "simulated on a CPU" not in shown(whole)
    assert "270 test images" in shown(whole)


def test_a_failed_row_says_why_and_markup_in_it_is_text() -> None:
    text = " ".join(shown(FULL, FAILED).split())
    assert "dead failed: no [red] memory" in text


def test_batches_are_told_apart_only_where_there_are_several() -> None:
    assert "x1" not in shown(FULL)
    assert "onnxruntime x8" in shown(FULL, replace(FULL, batch=8))


def test_changes() -> None:
    out = StringIO()
    found = [
        Change("a", "accuracy", 0.9123456, 0.5, True),
        Change("a", "latency_ms.p50", 1.0, 1.1, None, "measured in another environment"),
    ]
    Console(width=120, file=out).print(render_changes(found, "old.json"))
    text = out.getvalue()
    assert "0.9123" in text
    assert "cannot be told (measured in another environment)" in text
    assert "Since old.json" in text
