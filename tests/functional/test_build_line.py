"""`edgetl build` on real bundles with NVIDIA's real builder, ahead of time."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edgetl.bundle import Bundle, sha256_file
from edgetl.cli.build import build as build_command
from edgetl.engine import TENSORRT, TENSORRT_RTX, BuildOptions, build, missing
from edgetl.errors import BackendError, BundleError, EngineError, InputError
from edgetl.monitor import Monitor
from edgetl.runtime import cudart
from edgetl.spec import BatchProfile, Precision

MakeGraph = Callable[..., Path]
MakeBundle = Callable[..., Path]
rtx = pytest.mark.skipif(bool(missing()), reason=missing() or "present")

runner = CliRunner()
app = typer.Typer(pretty_exceptions_enable=False)
app.command("build")(build_command)


@app.callback()
def _root(ctx: typer.Context) -> None:
    ctx.obj = {"verbosity": 0}


class Heard(Monitor):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.warnings.append(line)


def ahead(precision: str = "int8", **more: Any) -> BuildOptions:
    return BuildOptions(Precision(precision), flavour=TENSORRT_RTX, **more)


@pytest.fixture
def bundle(tiny_graph: MakeGraph, graph_bundle: MakeBundle) -> Path:
    graphs = {("trt10", p): tiny_graph(precision=p) for p in ("fp32", "fp16", "int8")}
    return graph_bundle({**graphs, ("trt8", "fp32"): tiny_graph(precision="fp32", seed=1)})


def snapshot(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


@rtx
@pytest.mark.rtx
def test_an_engine_is_built_recorded_and_taken_again(bundle: Path) -> None:
    first = build(bundle, ahead())["artifacts"][0]
    assert set(first) == {
        "kind", "profile", "precision", "file", "sha256", "bytes", "key", "runs_on", "layers", "reused",
    }  # fmt: skip
    assert (first["kind"], first["profile"], first["precision"], first["reused"]) == ("engine", "trt10", "int8", False)
    assert first["layers"]["int8"] == 3
    assert "8.9" in first["runs_on"] and "TensorRT for RTX 1." in first["runs_on"]

    opened = Bundle.open(bundle)
    record = opened.artifact("engine", precision="int8")
    assert record["made_from"] == opened.artifact("graph", precision="int8")["sha256"] == first["key"]["graph_sha256"]
    assert record["fallbacks"] == [] and record["layers_read_from"] == "build log, ahead of time"
    plan = opened.file(record)
    assert plan.name.endswith(".plan") and plan.parent.name == "engines" and plan.stat().st_size == first["bytes"]
    assert first["key"]["tf32"] is False and first["key"]["gpu"] == ""

    before = snapshot(bundle)
    again = build(bundle, ahead())["artifacts"][0]
    assert again == {**first, "reused": True} and snapshot(bundle) == before


@rtx
@pytest.mark.rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_engines_keep_their_precision(bundle: Path, precision: str) -> None:
    layers = build(bundle, ahead(precision))["artifacts"][0]["layers"]
    assert layers[precision] == 3 and sum(layers.values()) == 3


@rtx
@pytest.mark.rtx
def test_another_option_is_another_engine_beside_the_first(bundle: Path) -> None:
    heard = Heard()
    one = build(bundle, ahead())["artifacts"][0]
    two = build(bundle, ahead(batch=BatchProfile(1, 2, 4)), heard)["artifacts"][0]
    assert one["file"] != two["file"] and not two["reused"]
    assert heard.lines == ["rebuild: batch was 1,1,8, is 1,2,4"]
    assert build(bundle, ahead())["artifacts"][0]["reused"], "the older engine still answers to its own key"


@rtx
@pytest.mark.rtx
def test_an_engine_whose_bytes_changed_is_built_again(bundle: Path) -> None:
    heard = Heard()
    first = build(bundle, ahead())["artifacts"][0]
    (bundle / first["file"]).write_bytes(b"cut short")
    again = build(bundle, ahead(), heard)["artifacts"][0]
    assert not again["reused"] and heard.warnings
    Bundle.open(bundle).file(Bundle.open(bundle).artifact("engine"))


@rtx
@pytest.mark.rtx
def test_ctrl_c_during_the_build_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    class Impatient(Monitor):
        def progress(self, what: str, done: int, total: int) -> None:
            if done == 0:
                os.kill(os.getpid(), signal.SIGINT)

    before = snapshot(bundle)
    with pytest.raises(KeyboardInterrupt):
        build(bundle, ahead(), Impatient())
    assert snapshot(bundle) == before
    assert not (bundle.parent / "bundle.work").exists()


@rtx
@pytest.mark.rtx
def test_an_engine_that_lost_its_precision_is_refused(tiny_graph: MakeGraph, graph_bundle: MakeBundle) -> None:
    # Recorded as fp16, but the file computes in fp32: the engine must not pass for what the record says.
    path = graph_bundle({("trt10", "fp16"): tiny_graph(precision="fp32")})
    before = snapshot(path)
    with pytest.raises(EngineError, match="no layer runs in fp16"):
        build(path, ahead("fp16"))
    assert snapshot(path) == before
    with pytest.raises(EngineError, match="layers of a lower precision"):
        build(graph_bundle({("trt10", "fp32"): tiny_graph(precision="fp16")}, name="other"), ahead("fp32"))


@rtx
@pytest.mark.rtx
def test_a_graph_that_missed_its_contract_wants_a_word(tiny_graph: MakeGraph, graph_bundle: MakeBundle) -> None:
    path = graph_bundle({("trt10", "int8"): tiny_graph(precision="int8")}, met=False)
    with pytest.raises(InputError, match="--allow-unmet"):
        build(path, ahead())
    assert not build(path, ahead(allow_unmet=True))["artifacts"][0]["reused"]


@rtx
@pytest.mark.rtx
def test_the_newest_graph_is_built(tiny_graph: MakeGraph, graph_bundle: MakeBundle, bundle: Path) -> None:
    from edgetl.bundle import NewArtifact, writing

    old = build(bundle, ahead())["artifacts"][0]
    newer = tiny_graph(precision="int8", seed=5)
    facts = {"kind": "graph", "made_by": "export", "profile": "trt10", "precision": "int8", "input": "float32"}
    with writing(bundle, "export") as (opened, _):
        opened.add([NewArtifact(newer, "graphs/trt10/int8-{sha12}.onnx", {**facts, "met": True})])
    new = build(bundle, ahead())["artifacts"][0]
    assert new["key"]["graph_sha256"] == sha256_file(newer) != old["key"]["graph_sha256"] and not new["reused"]


@rtx
@pytest.mark.rtx
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp16", "target": "jetpack5"}, EngineError, "TensorRT 8's FP16 is a flag"),
        ({"precision": "int8", "target": "jetpack5"}, BundleError, "it has: .*trt8/fp32"),
        ({"target": "cpu"}, InputError, "no engine"),
        ({"target": "jetpack4"}, InputError, "JetPack 4"),
        ({"target": "nano"}, InputError, "unknown target"),
    ],
)
def test_what_cannot_be_built_says_why(bundle: Path, options: dict[str, Any], error: type, message: str) -> None:
    before = snapshot(bundle)
    with pytest.raises(error, match=message):
        build(bundle, ahead(**options))
    assert snapshot(bundle) == before


@pytest.mark.parametrize(
    "options",
    [{"level": 6}, {"level": -2}, {"workspace_mib": -1}, {"timing_cache": Path("cache")}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ahead(**options)
    with pytest.raises(InputError, match="--with"):
        BuildOptions(Precision.INT8, flavour="onnx")


def test_a_wrong_path_is_heard_of_before_a_missing_gpu(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        build(tmp_path / "nothing", BuildOptions(Precision.INT8))
    assert list(tmp_path.iterdir()) == []


def test_without_tensorrt_or_gpu_the_line_names_the_way_out(bundle: Path) -> None:
    try:
        cudart.gpu()
        pytest.skip("there is a GPU")
    except BackendError:
        pass
    with pytest.raises(BackendError, match="--with tensorrt-rtx"):
        build(bundle, BuildOptions(Precision.INT8, flavour=TENSORRT))


@rtx
@pytest.mark.rtx
def test_the_command_prints_one_object(bundle: Path) -> None:
    arguments = ["build", str(bundle), "--precision", "int8", "--with", "tensorrt-rtx", "--json"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["artifacts"][0]["precision"] == "int8"
    shown = runner.invoke(app, arguments[:-1])
    assert shown.exit_code == 0 and "3 int8" in shown.stdout and "identical" in shown.stdout


def test_the_commands_errors_are_one_line(bundle: Path) -> None:
    shutil.rmtree(bundle / "graphs")
    done = runner.invoke(app, ["build", str(bundle), "--precision", "int8", "--batch", "3,1"])
    assert done.exit_code == 1 and done.stdout == ""
    assert done.stderr.startswith("error: --batch wants") and done.stderr.count("\n") == 1


@pytest.mark.gpu
def test_an_engine_of_this_gpu(bundle: Path) -> None:
    try:
        from edgetl.engine import load

        load(TENSORRT)
        cudart.gpu()
    except BackendError as error:
        pytest.skip(str(error))
    found = build(bundle, BuildOptions(Precision.INT8))["artifacts"][0]
    assert found["layers"]["int8"] >= 1 and build(bundle, BuildOptions(Precision.INT8))["artifacts"][0]["reused"]
