"""The protocol with real graphs on onnxruntime: what rows hold, and that one failure stays one failure."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgetl.bench import BenchData, BenchOptions, Candidate, bench, latency_evidence
from edgetl.errors import BackendError, DataError
from edgetl.images import ReadOptions, read_data, stream
from edgetl.measure import TASKS, predict, softmax
from edgetl.measure.latency import Effort
from edgetl.measure.rows import Row, rows_of
from edgetl.measure.timing import encoded_pool, time_backends
from edgetl.monitor import Monitor
from edgetl.runtime import ort
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Preprocess

MakeGraph = Callable[..., Path]
TASK = TASKS["classification"]
QUICK = BenchOptions(effort=Effort(seconds=0.01, runs=20, warmup=1, turn_seconds=0.005), memory=False, max_batch=4)


class Listening(Monitor):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.seen: list[tuple[str, int, int]] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, what: str, done: int, total: int) -> None:
        self.seen.append((what, done, total))


class DiesWhenTimed(OrtBackend):
    """Scores well and refuses a batch of one, as a graph that was built for another size would."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        if len(batch) == 1:
            raise BackendError("no batch of one", 1)
        return super().run(batch)


class DiesLater(OrtBackend):
    """Fails at its 60th run: long after scoring, in the middle of the timed turns."""

    runs = 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.runs += 1
        if self.runs == 60:
            raise RuntimeError("the device was lost")
        return super().run(batch)


class Crashes(OrtBackend):
    """Takes its process down, as a segmentation fault in a runtime does."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGSEGV)
        return batch


class Overflows(OrtBackend):
    def run(self, batch: np.ndarray) -> np.ndarray:
        return super().run(batch) * np.float32(np.inf)


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> BenchData:
    found = read_data(str(make_folder(("a", "b", "c"), n=4, size=20)), ReadOptions(val_fraction=0.0, test_fraction=0.0))
    return BenchData(found.root, found.all(), "test", Preprocess(size=16, resize=16), found.labels)


def candidate(path: Path, precision: str = "fp32", kind: type[OrtBackend] = OrtBackend) -> Candidate:
    evidence = latency_evidence("onnxruntime", "CPUExecutionProvider", "trt10", precision)
    opens = functools.partial(kind, path, threads=1)
    size = path.stat().st_size if path.exists() else None
    return Candidate("onnxruntime", "CPUExecutionProvider", "trt10", precision, opens, evidence, size, "ab" * 32)


def run(candidates: list[Candidate], data: BenchData, options: BenchOptions = QUICK, **how: object) -> list[Row]:
    result = bench(candidates, candidates[0], data, TASK, options, **how).result  # type: ignore[arg-type]
    assert list(result) == ["schema", "environments", "rows"]
    rows = rows_of(result, "here")
    assert {row.environment for row in rows} == set(result["environments"])
    return rows


def test_rows_of_three_precisions(tiny_graph: MakeGraph, data: BenchData) -> None:
    monitor = Listening()
    precisions = ("fp32", "fp16", "int8")
    rows = run([candidate(tiny_graph(precision=p), p) for p in precisions], data, monitor=monitor)
    assert [row.id for row in rows] == [f"onnxruntime-cpu-trt10-{p}-b1" for p in precisions]
    fp32, fp16, int8 = rows
    assert (fp32.drop_pp, fp32.drop_ci_pp, fp32.agreement, fp32.flips) == (0.0, (0.0, 0.0), 1.0, 0)
    assert (fp32.accuracy_evidence, fp32.latency_evidence) == ("host-cpu", "host-cpu")
    assert fp32.latency_ms is not None
    assert fp32.latency_ms["n"] >= 20
    assert fp32.throughput_ips == pytest.approx(1000 / fp32.latency_ms["mean"], rel=1e-6)
    assert fp32.end_to_end_ms["p50"] > 0  # type: ignore[index]
    for lowered in (fp16, int8):
        assert lowered.accuracy_evidence == "simulated"
        assert lowered.drop_ci_pp is not None
        assert lowered.drop_ci_pp[0] < lowered.drop_ci_pp[1]
        assert [lowered.latency_ms, lowered.latency_evidence, lowered.end_to_end_ms, lowered.throughput_ips] == [
            None
        ] * 4
    assert monitor.seen == [("images", 4, 12), ("images", 8, 12), ("images", 12, 12)]


def test_the_accuracy_is_that_of_the_images(tiny_graph: MakeGraph, data: BenchData) -> None:
    path = tiny_graph()
    row = run([candidate(path)], data)[0]
    logits, targets = predict(OrtBackend(path), stream(data.root, data.samples, data.preprocess, 5))
    assert row.accuracy == pytest.approx(float((logits.argmax(1) == targets).mean()))
    assert row.n_images == 12


@pytest.mark.parametrize("what", ["cannot be opened", "dies on images", "overflows", "dies when timed"])
def test_one_failure_is_one_row(tiny_graph: MakeGraph, data: BenchData, tmp_path: Path, what: str) -> None:
    bad = {
        "cannot be opened": candidate(tmp_path / "none.onnx", "bad"),
        "dies on images": candidate(tiny_graph(size=8, name="small"), "bad"),
        "overflows": candidate(tiny_graph(name="inf"), "bad", Overflows),
        "dies when timed": replace(
            candidate(tiny_graph(name="one"), "bad", DiesWhenTimed), latency_evidence="host-cpu"
        ),
    }[what]
    good, failed = run([candidate(tiny_graph()), bad], data)
    assert good.status == "ok"
    assert good.latency_ms is not None
    assert failed.status == "failed"
    said = {"cannot be opened": "no such graph", "dies on images": "another input", "overflows": "not finite"}
    assert said.get(what, "no batch of one") in (failed.error or "")
    assert [failed.accuracy, failed.drop_pp, failed.latency_ms, failed.peak_rss_mb] == [None] * 4


def test_a_backend_that_dies_in_the_middle_is_one_row(tiny_graph: MakeGraph, data: BenchData) -> None:
    bad = replace(candidate(tiny_graph(name="later"), "bad", DiesLater), latency_evidence="host-cpu")
    options = replace(QUICK, effort=Effort(seconds=0.05, runs=100, warmup=10, turn_seconds=0.002))
    good, failed = run([candidate(tiny_graph()), bad], data, options)
    assert (good.status, failed.status) == ("ok", "failed")
    assert failed.error == "RuntimeError: the device was lost"
    assert good.latency_ms is not None
    assert good.latency_ms["n"] >= 100  # its turns went on alone
    assert [failed.accuracy, failed.latency_ms, failed.ratio_p50] == [None] * 3


def test_a_backend_that_crashes_does_so_elsewhere(
    tiny_graph: MakeGraph, data: BenchData, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child finds the class by the name of this module, which pytest's import mode may not have told it.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    bad = candidate(tiny_graph(name="crash"), "bad", Crashes)
    good, failed = run([candidate(tiny_graph()), bad], data, replace(QUICK, memory=True))
    assert (good.status, failed.status) == ("ok", "failed")
    assert "ended the process that it was tried in: SIGSEGV" in (failed.error or "")
    assert good.accuracy is not None


def test_a_node_on_another_provider_is_a_failed_row_that_names_it(tiny_graph: MakeGraph, data: BenchData) -> None:
    """onnxruntime's real placement of a real graph, held against a provider that this machine may not have."""

    class Misplaced(OrtBackend):
        def __init__(self, graph: Path, threads: int = 1) -> None:
            super().__init__(graph, threads=threads)
            ort._check_placement(ort._placement(self._session), ort.CUDA, Path(graph))

    good, failed = run([candidate(tiny_graph()), candidate(tiny_graph(seed=1), "bad", Misplaced)], data)
    assert (good.status, failed.status) == ("ok", "failed")
    assert "not every node runs on CUDAExecutionProvider" in (failed.error or "")
    assert "runs on CPUExecutionProvider" in (failed.error or "")
    assert [failed.accuracy, failed.latency_ms] == [None] * 2


def test_ratio_noise_and_intervals_are_in_the_rows(tiny_graph: MakeGraph, data: BenchData) -> None:
    slow = replace(candidate(tiny_graph(name="slow"), "int8", Slow), latency_evidence="host-cpu")
    # One run a turn, so that there are twenty turns however long a busy machine makes one of them.
    options = replace(QUICK, effort=Effort(seconds=0.0, runs=20, warmup=5, turn_seconds=0.0), streams=(1, 2))
    fast, slowed = run([candidate(tiny_graph()), slow], data, options)
    assert fast.ratio_to == slowed.ratio_to == fast.id
    assert fast.ratio_p50 == (1.0, 1.0, 1.0)
    assert slowed.latency_ms is not None
    assert fast.latency_ms is not None
    assert (slowed.latency_ms["p50"] or 0) >= 5.0  # a sleep never ends early, and on a busy machine late
    assert slowed.ratio_p50 is not None
    point, low, high = slowed.ratio_p50
    assert low <= point <= high  # its value: test_turns.py, where nothing is timed
    for row in (fast, slowed):
        assert row.latency_ci_ms is not None
        assert row.latency_ms is not None
        low, high = row.latency_ci_ms["p50"] or (0, 0)
        assert low <= row.latency_ms["p50"] <= high
        assert set(row.end_to_end_parts_ms or ()) == {"decode", "resize", "run"}
        assert row.noise is not None
        assert row.noise["noisy"] is bool(row.noise["why"])
        assert row.noise["spread"] >= 0
        assert set(row.throughput_by_streams or ()) == {"1", "2"}
    one, two = ((slowed.throughput_by_streams or {})[n]["throughput_ips"] for n in "12")
    assert 0 < one <= 200.0
    assert 0 < two <= 400.0


def test_a_stream_that_cannot_be_opened_is_null_and_said(tiny_graph: MakeGraph, data: BenchData) -> None:
    opened = []

    def opens() -> OrtBackend:
        opened.append(1)
        if len(opened) > 2:
            raise BackendError("no more licences", len(opened))
        return OrtBackend(path, threads=1)

    path = tiny_graph()
    monitor = Listening()
    few = replace(candidate(path), opens=opens)
    (row,) = run([few], data, replace(QUICK, streams=(1, 2)), monitor=monitor)
    assert row.status == "ok"
    assert (row.throughput_by_streams or {})["2"] is None
    assert any("2 streams: no more licences" in line for line in monitor.lines)


def test_a_batch_that_fails_leaves_the_others(tiny_graph: MakeGraph, data: BenchData) -> None:
    bound = candidate(tiny_graph(batch=2))
    rows = run([bound], data, replace(QUICK, batches=(1, 2)))
    assert [(row.batch, row.status) for row in rows] == [(1, "failed"), (2, "ok")]
    assert rows[1].accuracy is not None


def test_without_its_reference_a_bench_has_no_meaning(tiny_graph: MakeGraph, data: BenchData, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="the reference failed"):
        run([candidate(tmp_path / "none.onnx"), candidate(tiny_graph(), "int8")], data)


def test_a_reference_outside_the_candidates_is_scored_and_has_no_row(tiny_graph: MakeGraph, data: BenchData) -> None:
    reference, other = candidate(tiny_graph(seed=1)), candidate(tiny_graph(precision="int8"), "int8")
    found = bench([other], reference, data, TASK, QUICK)
    rows = rows_of(found.result, "here")
    assert (found.answers.names, found.answers.reference) == ((other.name, reference.name), reference.name)
    assert [row.precision for row in rows] == ["int8"]
    assert rows[0].agreement is not None
    assert rows[0].agreement < 1.0  # other weights


def test_answers_are_those_of_the_images(tiny_graph: MakeGraph, data: BenchData, tmp_path: Path) -> None:
    path = tiny_graph()
    sharp = replace(candidate(path, "int8"), temperature=4.0)
    found = bench(
        [candidate(path), sharp, candidate(tmp_path / "none.onnx", "bad")], candidate(path), data, TASK, QUICK
    )
    logits, targets = predict(OrtBackend(path), stream(data.root, data.samples, data.preprocess, 5))
    answers = found.answers
    assert answers.names == tuple(f"onnxruntime-cpu-trt10-{p}" for p in ("fp32", "int8", "bad"))
    assert answers.seen.tolist() == [True, True, False]
    assert answers.paths == tuple(sample.path for sample in data.samples)
    np.testing.assert_array_equal(answers.targets, targets)
    np.testing.assert_array_equal(answers.top, [logits.argmax(1), logits.argmax(1), [-1] * 12])
    np.testing.assert_allclose(answers.top_probability[0], softmax(logits).max(1), rtol=1e-5)
    # What the graph divides by inside is taken out again: here 4 where there was none, so answers are surer.
    np.testing.assert_allclose(answers.top_probability[1], softmax(4 * logits).max(1), rtol=1e-5)
    np.testing.assert_allclose(answers.target_probability[0], softmax(logits)[range(12), targets], rtol=1e-5)
    assert np.isnan(answers.target_probability[2]).all()


def test_no_images(tiny_graph: MakeGraph, data: BenchData) -> None:
    with pytest.raises(DataError, match="no images"):
        run([candidate(tiny_graph())], replace(data, samples=[]))


def test_memory_is_measured_or_null_with_a_warning(tiny_graph: MakeGraph, data: BenchData) -> None:
    # A class of a test module cannot be found by the child: its memory is unknown, its row is not.
    class Local(OrtBackend):
        pass

    monitor = Listening()
    good, odd = run(
        [candidate(tiny_graph()), candidate(tiny_graph(seed=2), "odd", Local)],
        data,
        replace(QUICK, memory=True),
        monitor=monitor,
    )
    assert good.peak_rss_mb is None or good.peak_rss_mb > 10
    assert (odd.status, odd.peak_rss_mb) == ("ok", None)
    assert any("no peak memory" in line for line in monitor.lines)


class Slow(OrtBackend):
    """Five milliseconds slower than it could be."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        time.sleep(0.005)
        return super().run(batch)


class Slowing(OrtBackend):
    """Takes longer with every run, by a clock of the test's own: it never comes to rest."""

    runs, now = 0, 0.0

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.runs += 1
        Slowing.now += 0.001 * self.runs
        return super().run(batch)


def test_a_backend_that_never_settles_is_warned_of(tiny_graph: MakeGraph, data: BenchData) -> None:
    monitor = Listening()
    effort = Effort(seconds=0.01, runs=3, warmup_seconds=3.0)
    options = replace(QUICK, effort=effort, clock=lambda: Slowing.now)
    row = run([candidate(tiny_graph(), kind=Slowing)], data, options, monitor=monitor)[0]
    assert row.status == "ok"
    assert any("not steady" in line for line in monitor.lines)


def test_times_are_of_the_batch(tiny_graph: MakeGraph, data: BenchData) -> None:
    pool = encoded_pool(data.root, data.samples)
    assert len(pool) == 12
    backend = OrtBackend(tiny_graph(), threads=1)
    now = iter(range(1, 10**6))
    times, failed = time_backends({"x": backend}, pool, data.preprocess, 4, QUICK.effort, lambda: next(now) * 0.001)
    assert failed == {}
    # Each reading of this clock is a millisecond later, so each run takes exactly one.
    assert times["x"].latency_ms["mean"] == pytest.approx(1.0)
    assert times["x"].throughput_ips == pytest.approx(4000.0)


@pytest.mark.parametrize(
    ("backend", "provider", "profile", "precision", "evidence"),
    [
        ("torch", "cpu", None, "fp32", "host-cpu"),
        ("torch", "cuda:0", None, "fp32", "host-gpu"),
        ("onnxruntime", "CPUExecutionProvider", "trt8", "fp32", "host-cpu"),
        ("onnxruntime", "CPUExecutionProvider", "trt10", "fp16", None),
        ("onnxruntime", "CPUExecutionProvider", "trt10", "int8", None),
        ("onnxruntime", "CPUExecutionProvider", "cpu", "int8", "host-cpu"),
        ("onnxruntime", "CUDAExecutionProvider", "trt10", "fp16", "host-gpu"),
        ("onnxruntime", "CUDAExecutionProvider", "trt10", "int8", None),
        ("onnxruntime", "TensorrtExecutionProvider", "trt10", "int8", "host-gpu"),
        ("tensorrt", "tensorrt 10.3.0.30", "trt10", "int8", "host-gpu"),
    ],
)
def test_where_a_time_means_something(
    backend: str, provider: str, profile: str | None, precision: str, evidence: str | None
) -> None:
    assert latency_evidence(backend, provider, profile, precision) == evidence


def test_names_tell_candidates_apart(tmp_path: Path) -> None:
    first = candidate(tmp_path / "a.onnx", "int8")
    assert first.name == "onnxruntime-cpu-trt10-int8"
    assert replace(first, input="uint8").name == "onnxruntime-cpu-trt10-int8-uint8"
    assert replace(first, provider="cuda:0", profile=None).name == "onnxruntime-cuda:0-int8"
    assert replace(first, backend="tensorrt", provider="tensorrt 10.3.0").name == "tensorrt-10.3.0-trt10-int8"
