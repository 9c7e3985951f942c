"""OpenVINO's plug-in as an execution provider: absent, broken, and (where it is installed) at work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgetl.errors import BackendError
from edgetl.runtime import openvino
from edgetl.runtime.ort import OPENVINO, OrtBackend, available_providers, listed_providers, why_not

MakeGraph = Callable[..., Path]
DOUBLES = Path(__file__).resolve().parents[2] / "doubles"
PACKAGE = "onnxruntime_ep_openvino"
with_plugin = pytest.mark.skipif(openvino.installed() is None, reason=f"needs {openvino.PACKAGE} (extra openvino)")


def on_intel(code: str, *arguments: str) -> Any:
    """The JSON that `code` prints last, run where the CPU says it is Intel's (tests/doubles/intel_cpu.py)."""
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); import intel_cpu; intel_cpu.pretend()\n"
    words = [sys.executable, "-c", start + code, str(DOUBLES), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_without_the_plug_in_the_provider_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tiny_graph: MakeGraph
) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # import then says: not found
    reason = why_not(OPENVINO)
    assert reason is not None and "not installed" in reason.what and openvino.PACKAGE in reason.do
    with pytest.raises(BackendError, match="not installed"):
        OrtBackend(tiny_graph(), provider=OPENVINO)


def test_a_plug_in_that_is_not_installed_is_not_listed() -> None:
    assert (OPENVINO in listed_providers()) is (openvino.installed() is not None)


def test_a_plug_in_that_is_no_library_is_an_error_with_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "plugin.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setitem(sys.modules, PACKAGE, SimpleNamespace(get_library_path=lambda: str(broken)))
    if OPENVINO in available_providers():
        pytest.skip("the real plug-in is loaded in this process already")
    reason = why_not(OPENVINO)
    assert reason is not None and "cannot load OpenVINO's plug-in" in reason.what and str(broken) in reason.value


def test_a_plug_in_with_a_file_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError("no plugin.so")

    monkeypatch.setitem(sys.modules, PACKAGE, SimpleNamespace(get_library_path=missing))
    with pytest.raises(BackendError, match=r"not whole: no plugin\.so"):
        openvino.library()


@pytest.mark.parametrize(("threads", "said"), [(0, None), (3, "3")])
def test_a_session_is_told_its_threads_and_that_fp32_is_fp32(threads: int, said: str | None) -> None:
    cpu = json.loads(openvino.session_options(threads)["load_config"])["CPU"]
    assert cpu.get("INFERENCE_NUM_THREADS") == said
    assert cpu["INFERENCE_PRECISION_HINT"] == "f32"


@with_plugin
def test_where_the_plug_in_offers_no_cpu_the_reason_says_whose_cpu_it_is() -> None:
    reason = why_not(OPENVINO)
    if reason is None:
        pytest.skip("the plug-in takes this machine's CPU")
    assert "offers no CPU" in reason.what and str(openvino.installed()) in reason.value
    assert OPENVINO in listed_providers() and OPENVINO not in available_providers()


@with_plugin
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_plug_in_says_what_the_cpu_says(tiny_graph: MakeGraph, precision: str) -> None:
    """1e-4 of the spread: BF16, OpenVINO's own choice on newer CPUs, is a hundred times further off."""
    code = """
import json, sys
import numpy as np
from edgetl.runtime.ort import CPU, OPENVINO, OrtBackend, available_providers
images = np.random.default_rng(0).integers(0, 255, (8, 3, 16, 16)).astype(np.float32)
theirs, ours = OrtBackend(sys.argv[1], OPENVINO, 1), OrtBackend(sys.argv[1], CPU, 1)
apart = np.abs(theirs.run(images) - ours.run(images)).max() / ours.run(images).std()
print(json.dumps([theirs.provider, theirs.evidence, available_providers()[-2:], float(apart)]))
"""
    provider, evidence, providers, apart = on_intel(code, str(tiny_graph(precision=precision)))
    assert (provider, providers) == (OPENVINO, [OPENVINO, "CPUExecutionProvider"])
    assert evidence == ("host-cpu" if precision == "fp32" else "simulated")
    assert apart < (1e-4 if precision == "fp32" else 0.1)


@with_plugin
def test_a_node_that_the_plug_in_leaves_to_the_cpu_is_named(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    nodes = [helper.make_node("Relu", ["x"], ["r"], name="taken"), helper.make_node("Det", ["r"], ["y"], name="left")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.save(model, tmp_path / "det.onnx")
    code = """
import json, sys
from edgetl.errors import BackendError
from edgetl.runtime.ort import OPENVINO, OrtBackend
try:
    OrtBackend(sys.argv[1], OPENVINO)
except BackendError as error:
    print(json.dumps(str(error)))
"""
    said = on_intel(code, str(tmp_path / "det.onnx"))
    assert "not every node runs on OpenVINOExecutionProvider" in said
    assert "Det left runs on CPUExecutionProvider, 1 of 2 nodes" in said


@with_plugin
@pytest.mark.parametrize("config", ['{"CPU": {"NO_SUCH_KEY": "1"}}', "{"])
def test_a_plug_in_that_fails_is_not_replaced_by_the_cpu(tiny_graph: MakeGraph, config: str) -> None:
    """onnxruntime's own session falls back to the CPU there, with a print()."""
    code = """
import contextlib, io, json, sys
from edgetl.errors import BackendError
from edgetl.runtime import openvino
from edgetl.runtime.ort import OPENVINO, OrtBackend
openvino.session_options = lambda threads: {"load_config": sys.argv[2]}
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    try:
        said = OrtBackend(sys.argv[1], OPENVINO).provider
    except BackendError as error:
        said = error.what
print(json.dumps([said, printed.getvalue()]))
"""
    assert on_intel(code, str(tiny_graph()), config) == ["onnxruntime refuses the graph", ""]
