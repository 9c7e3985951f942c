"""`edgetl bench --providers`: which of onnxruntime's execution providers have rows, and what is said of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgetl.cli.app import app
from edgetl.runtime import openvino
from edgetl.runtime.ort import CPU, CUDA, OPENVINO, available_providers, why_not

DOUBLES = Path(__file__).resolve().parents[1] / "doubles"
with_plugin = pytest.mark.skipif(openvino.installed() is None, reason=f"needs {openvino.PACKAGE} (extra openvino)")
FAST = ("--seconds", "0.02", "--warmup", "1", "--threads", "1", "--json")


@pytest.fixture
def bench_words(
    tiny_graph: Callable[..., Path], make_folder: Callable[..., Path], tmp_path: Path
) -> Callable[..., list[str]]:
    """The words of a bench of an adopted bundle with its fp32 graph for a CPU."""
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    preprocess = {"size": 16, "resize": 16, "mean": [0, 0, 0], "std": [1, 1, 1]}
    (tmp_path / "preprocess.json").write_text(json.dumps(preprocess))
    photos, bundle = make_folder(("a", "b", "c"), n=4, size=20), tmp_path / "bundle"
    adopt = ["adopt", tiny_graph(name="source"), "--labels", tmp_path / "labels.txt"]
    for words in (
        [*adopt, "--preprocess", tmp_path / "preprocess.json", "--to", bundle],
        ["export", bundle, "--target", "cpu", "--calib", photos],
    ):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
    return lambda *more: ["bench", str(bundle), "--data", str(photos), *more, *FAST]


def test_the_cpu_alone_where_it_is_asked_for(bench_words: Callable[..., list[str]]) -> None:
    done = CliRunner().invoke(app, bench_words("--providers", "cpu", "--target", "cpu"))
    assert done.exit_code == 0, done.stderr
    assert {row["provider"] for row in json.loads(done.stdout)["rows"]} == {CPU}


def test_a_provider_that_is_asked_for_and_does_not_run_is_an_error_with_its_reason(
    bench_words: Callable[..., list[str]],
) -> None:
    missing = {"openvino": OPENVINO, "cuda": CUDA}
    absent = [name for name, provider in missing.items() if provider not in available_providers()]
    if not absent:
        pytest.skip("every provider runs here")
    for name in absent:
        done = CliRunner().invoke(app, bench_words("--providers", name))
        assert done.exit_code == 1
        reason = why_not(missing[name])
        assert reason is not None and json.loads(done.stdout)["error"]["what"] == reason.what


def test_an_unknown_provider_is_named_with_those_that_are_known(bench_words: Callable[..., list[str]]) -> None:
    done = CliRunner().invoke(app, bench_words("--providers", "coreml"))
    assert done.exit_code == 1
    error = json.loads(done.stdout)["error"]
    assert error["value"] == "coreml" and "cpu,openvino,cuda,tensorrt" in error["do"]


@with_plugin
def test_a_plug_in_that_is_installed_and_offers_nothing_is_spoken_of(bench_words: Callable[..., list[str]]) -> None:
    reason = why_not(OPENVINO)
    if reason is None:
        pytest.skip("the plug-in takes this machine's CPU")
    done = CliRunner().invoke(app, bench_words("--target", "cpu"))
    assert done.exit_code == 0, done.stderr
    assert {row["provider"] for row in json.loads(done.stdout)["rows"]} == {CPU}
    assert f"no row of {OPENVINO}: {reason.what}" in " ".join(done.stderr.split())


@with_plugin
def test_the_plug_in_has_rows_beside_the_cpus_without_being_asked_for(bench_words: Callable[..., list[str]]) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import intel_cpu; intel_cpu.pretend()\n"
        "from edgetl.cli.app import main; main()"
    )
    words = [sys.executable, "-c", code, str(DOUBLES), *bench_words("--target", "cpu")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in json.loads(done.stdout)["rows"]}
    theirs, ours = rows["onnxruntime-openvino-cpu-fp32-b1"], rows["onnxruntime-cpu-cpu-fp32-b1"]
    assert theirs["provider"] == OPENVINO and theirs["status"] == "ok", theirs["error"]
    assert theirs["latency_evidence"] == theirs["accuracy_evidence"] == "host-cpu"
    assert (theirs["accuracy"], theirs["flips"]) == (ours["accuracy"], 0)
    assert theirs["latency_ms"]["n"] > 0
