"""`edgetl bench` from the command line: JSON as promised, rows kept, gates with exit 3, one line for bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from edgetl.bundle import Bundle, NewArtifact, sha256_file, writing
from edgetl.cli import candidates
from edgetl.cli.app import app
from edgetl.measure import answers
from edgetl.measure.rows import rows_of
from edgetl.runtime.cudart import Gpu

MakeGraph = Callable[..., Path]
FAST = ("--seconds", "0.02", "--warmup", "1", "--threads", "1")
LABELS = ("a", "b", "c")


def edgetl(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def bench(*args: object) -> dict[str, Any]:
    done = edgetl("bench", *args, *FAST, "--json")
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_object_is_that_of_the_documentation(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(graphs=("fp32", "fp16", "int8"))
    found = bench(bundle)
    assert list(found) == ["schema", "environments", "rows"]
    rows = rows_of(found, bundle)
    assert [row.id for row in rows] == [
        "onnxruntime-cpu-fp32-b1",
        "onnxruntime-cpu-trt10-fp32-b1",
        "onnxruntime-cpu-trt10-fp16-b1",
        "onnxruntime-cpu-trt10-int8-b1",
    ]
    assert all((row.status, row.split, row.n_images) == ("ok", "test", 6) for row in rows)
    reference, fp32, _, int8 = rows
    assert (reference.drop_pp, reference.drop_ci_pp) == (0.0, (0.0, 0.0))
    assert fp32.agreement == 1.0
    assert fp32.latency_ms is not None
    assert (int8.accuracy_evidence, int8.latency_ms, int8.latency_evidence) == ("simulated", None, None)
    record = Bundle.open(bundle).artifact("graph", precision="int8")
    assert (int8.graph_sha256, int8.size_bytes) == (record["sha256"], record["bytes"])


def test_rows_are_kept_and_the_bundle_is_untouched(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    before = sha256_file(bundle / "manifest.json")
    first = bench(bundle, "--out", tmp_path / "first.json")
    bench(bundle, "--precisions", "fp32")
    lines = [json.loads(line) for line in (bundle / "runs/bench.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "at"} for line in lines[:2]] == first["rows"]
    assert len(lines) == 3
    known = {json.loads(line)["id"] for line in (bundle / "runs/environments.jsonl").read_text().splitlines()}
    assert {line["environment"] for line in lines} <= known
    assert json.loads((tmp_path / "first.json").read_text()) == first
    assert sha256_file(bundle / "manifest.json") == before


def test_answers_are_kept_and_replaced(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    rows = bench(bundle)["rows"]
    first = answers.read(Bundle.open(bundle))
    assert first is not None
    assert [name + "-b1" for name in first.names] == [row["id"] for row in rows]
    assert (first.reference, first.split, first.labels) == ("onnxruntime-cpu-fp32", "test", LABELS)
    hits = (first.top == first.targets).mean(axis=1)
    np.testing.assert_allclose(hits, [row["accuracy"] for row in rows])
    flips = (first.top != first.top[0]).sum(axis=1)
    assert flips.tolist() == [row["flips"] for row in rows]
    lines = (bundle / "runs/bench.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["at"] == first.at
    bench(bundle, "--precisions", "int8", "--batch", "2")
    second = answers.read(Bundle.open(bundle))
    assert second is not None
    assert second.names == ("onnxruntime-cpu-trt10-int8", "onnxruntime-cpu-fp32")
    assert edgetl("verify", bundle).exit_code == 0


def test_an_accuracy_is_reproduced_by_ten_independent_lines(
    make_bundle: Callable[..., Path], make_folder: Callable[..., Path]
) -> None:
    """PIL, numpy and onnxruntime alone, nothing of edgetl: see independent.py."""
    bundle = make_bundle(graphs=("fp32",))
    other = make_folder(LABELS, n=12, size=24, name="other", seed=9)
    row = bench(bundle, "--data", other, "--precisions", "fp32", "--target", "jetpack6")["rows"][-1]
    record = Bundle.open(bundle).artifact("graph", precision="fp32")
    script = Path(__file__).with_name("independent.py")
    assert len(script.read_text().split("from PIL import Image\n")[1].split("\n\n")[-1].splitlines()) <= 10
    assert "import edgetl" not in script.read_text()
    words = [sys.executable, str(script), str(bundle), str(bundle / record["file"]), str(other)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=other)
    n, accuracy = json.loads(done.stdout)
    assert (n, accuracy) == (row["n_images"], pytest.approx(row["accuracy"]))
    assert 0 < accuracy < 1  # neither all nor none: something was told apart


def test_what_was_added_to_rows_is_there(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(graphs=("fp32", "int8"))
    words = ("--seconds", "0.2", "--warmup", "1", "--threads", "1", "--streams", "1,2", "--json")
    done = edgetl("bench", bundle, *words)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    reference, fp32, int8 = found["rows"]
    assert reference["ratio_to"] == fp32["ratio_to"] == reference["id"]
    assert fp32["ratio_p50"][1] <= fp32["ratio_p50"][0] <= fp32["ratio_p50"][2]
    assert fp32["latency_ci_ms"]["p50"][0] <= fp32["latency_ms"]["p50"] <= fp32["latency_ci_ms"]["p50"][1]
    assert set(fp32["end_to_end_parts_ms"]) == {"decode", "resize", "run"}
    assert set(fp32["throughput_by_streams"]) == {"1", "2"}
    assert fp32["noise"]["noisy"] is bool(fp32["noise"]["why"])
    assert [int8[name] for name in ("ratio_p50", "latency_ci_ms", "noise", "throughput_by_streams")] == [None] * 4
    assert 0 <= int8["ece"] <= 1
    assert 0 <= int8["p_mcnemar"] <= 1
    (where,) = found["environments"].values()
    for name in ("affinity_cores", "virtual", "smt", "boost", "power_mode", "thread_variables", "load_1m_before"):
        assert name in where, name


def test_help_labels_the_three_clocks() -> None:
    text = " ".join(edgetl("bench", "--help").stdout.replace("│", " ").split())
    for words in ("array to array", "encoded file (in memory) to the label", "the GPU alone"):
        assert words in text, words


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_results_file_that_is_cut_is_named(make_bundle: Callable[..., Path], tmp_path: Path, share: float) -> None:
    bundle, old = make_bundle(), tmp_path / "old.json"
    bench(bundle, "--out", old)
    text = old.read_text()
    old.write_text(text[: int(share * len(text))])
    done = edgetl("bench", bundle, *FAST, "--compare", old)
    assert done.exit_code == 1
    assert "the earlier bench cannot be read" in " ".join(done.stderr.split())


def test_people_get_a_table(make_bundle: Callable[..., Path]) -> None:
    done = edgetl("bench", make_bundle(), *FAST)
    assert done.exit_code == 0
    for word in ("int8 simulated", "6 test images", "simulated on a CPU", "bench.jsonl"):
        assert word in " ".join(done.stdout.split()), word


def test_choices(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(graphs=("fp32", "int8"))
    assert {r["precision"] for r in bench(bundle, "--precisions", "int8,fp16")["rows"]} == {"int8"}
    rows = bench(bundle, "--precisions", "fp32", "--batch", "1,4", "--target", "jetpack6")["rows"]
    assert [r["batch"] for r in rows] == [1, 4, 1, 4]
    assert [r["profile"] for r in rows] == [None, None, "trt10", "trt10"]


def test_without_a_test_split_val_is_measured_and_said(make_bundle: Callable[..., Path]) -> None:
    done = edgetl("bench", make_bundle(fractions=(0.25, 0.0)), *FAST, "--json")
    assert {row["split"] for row in json.loads(done.stdout)["rows"]} == {"val"}
    assert "no test split" in done.stderr


def test_other_data(make_bundle: Callable[..., Path], make_folder: Callable[..., Path]) -> None:
    bundle = make_bundle()
    other = make_folder(("a", "c"), n=5, size=24, name="other", seed=9)
    rows = bench(bundle, "--data", other, "--precisions", "fp32")["rows"]
    assert {(row["split"], row["n_images"]) for row in rows} == {("all", 10)}
    strange = make_folder(("a", "zebra"), n=2, name="strange")
    done = edgetl("bench", bundle, "--data", strange)
    assert done.exit_code == 1
    assert "zebra" in done.stderr


@pytest.mark.parametrize("condition", ["int8.drop_pp>-101", "latency_ms.p50>1e9", "int4.drop_pp>0", "fp32.accuracy<2"])
def test_a_gate_that_is_not_kept_exits_3_with_the_whole_object(
    make_bundle: Callable[..., Path], condition: str
) -> None:
    bundle = make_bundle()
    done = edgetl("bench", bundle, *FAST, "--fail-if", "size_bytes>1e9", "--fail-if", condition, "--json")
    assert done.exit_code == 3
    assert len(rows_of(json.loads(done.stdout), "stdout")) == 2
    assert condition in " ".join(done.stderr.split())
    assert "size_bytes" not in done.stderr
    assert (bundle / "runs/bench.jsonl").is_file()


def test_a_gate_that_is_not_kept_still_shows_the_table(make_bundle: Callable[..., Path]) -> None:
    done = edgetl("bench", make_bundle(), *FAST, "--precisions", "int8", "--fail-if", "int8.drop_pp>-101")
    assert done.exit_code == 3
    assert "int8 simulated" in done.stdout
    assert "not met" in done.stderr


def test_compare(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle, old = make_bundle(), tmp_path / "old.json"
    first = bench(bundle, "--out", old)
    first["rows"][1]["accuracy"], first["rows"][1]["accuracy_ci"] = 0.0, [0.0, 0.0]
    old.write_text(json.dumps(first))
    found = bench(bundle, "--compare", old)["compared"]
    assert found["with"] == str(old)
    changed = {(c["id"], c["figure"]): c["beyond"] for c in found["changes"]}
    assert ("onnxruntime-cpu-trt10-int8-b1", "accuracy") in changed
    assert "Since" in edgetl("bench", bundle, *FAST, "--compare", old).stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--backends", "openvino"), "openvino"),
        (("--precisions", "int4"), "int4"),
        (("--backends", "torch"), "no checkpoint"),
        (("--backends", "tensorrt"), "edgetl build"),
        (("--target", "jetpack9"), "jetpack9"),
        (("--target", "jetpack5"), "it has: trt10/int8"),
        (("--batch", "0"), "--batch"),
        (("--batch", "many"), "--batch"),
        (("--batch", "99999"), "--batch"),
        (("--streams", "0"), "--streams"),
        (("--streams", "1,two"), "--streams"),
        (("--fail-if", "int8.speed>1"), "int8.speed"),
        (("--compare", "nowhere.json"), "nowhere.json"),
        (("--data", "nowhere"), "nowhere"),
        (("--html", "nowhere/page.html"), "nowhere"),
    ],
)
def test_bad_input_is_one_line(make_bundle: Callable[..., Path], args: tuple[str, ...], said: str) -> None:
    bundle = make_bundle()
    done = edgetl("bench", bundle, *FAST, *args, "--json")
    assert done.exit_code == 1
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert json.loads(done.stdout)["error"]["what"]
    assert not (bundle / "runs").exists()


def test_a_missing_bundle_and_changed_bytes(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    assert "no such bundle" in edgetl("bench", tmp_path / "none").stderr
    bundle = make_bundle()
    opened = Bundle.open(bundle)
    graph = opened.path / opened.artifact("graph", precision="int8")["file"]
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    done = edgetl("bench", bundle, *FAST)
    assert done.exit_code == 1
    assert "bytes of a file in the bundle changed" in " ".join(done.stderr.split())


def test_images_that_moved_are_named(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make_bundle()
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    done = edgetl("bench", bundle, *FAST)
    assert done.exit_code == 1
    assert "--data" in done.stderr


def with_engine(bundle: Path, gpu: str) -> Path:
    """Add an engine's record whose plan is no plan: what this machine says of it is what is tested."""
    key = dict.fromkeys(("precision", "platform", "sm", "board", "timing_cache_sha256"), "")
    key |= {"graph_sha256": "0" * 64, "flavour": "tensorrt", "tensorrt": "10.3.0.30", "gpu": gpu, "batch": "1,1,8"}
    numbers = {"sm_count": 0, "workspace_mib": 0, "level": -1, "tf32": False}
    record = {"kind": "engine", "made_by": "build", "made_from": "0" * 64, "profile": "trt10", "precision": "int8"}
    with writing(bundle, "build") as (opened, scratch):
        (scratch / "plan").write_bytes(b"no plan")
        facts = {**record, "input": "float32", "runs_on": "a certain GPU", "key": {**key, **numbers}}
        opened.add([NewArtifact(scratch / "plan", "engines/{sha12}.plan", facts)])
    return bundle


def test_an_engine_for_another_gpu_is_left_out_and_named(make_bundle: Callable[..., Path]) -> None:
    done = edgetl("bench", with_engine(make_bundle(), "NVIDIA Nothing"), *FAST, "--precisions", "int8", "--json")
    assert [row["backend"] for row in json.loads(done.stdout)["rows"]] == ["onnxruntime"]
    assert "it runs on a certain GPU; here is" in " ".join(done.stderr.split())


def test_an_engine_that_does_not_open_is_a_failed_row(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu("NVIDIA Here", (8, 7), 8, 8000)
    monkeypatch.setattr(candidates, "_gpu", lambda: gpu)  # this machine's own GPU, if any, did not build it
    found = bench(with_engine(make_bundle(), gpu.name), "--precisions", "int8")
    graph, engine = rows_of(found, "here")
    assert (graph.status, engine.status, engine.backend) == ("ok", "failed", "tensorrt")
    assert engine.error
    assert engine.engine_key


@pytest.mark.parametrize(
    ("name", "sm", "made_for"),
    [("Orin", (8, 7), True), ("Thor", (8, 7), False), ("", (8, 6), True), ("", (8, 7), False)],
)
def test_engines_are_measured_on_the_gpu_they_were_built_for(name: str, sm: tuple[int, int], made_for: bool) -> None:
    assert candidates._made_for({"gpu": name}, Gpu("Orin", sm, 8, 8000)) is made_for
    assert not candidates._made_for({"gpu": name}, None)
