"""NVIDIA's real parser and builder, ahead of time and without a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetl.engine import check_parses, coverage, missing
from edgetl.errors import EngineError
from edgetl.monitor import Monitor

pytestmark = [pytest.mark.rtx, pytest.mark.skipif(bool(missing()), reason=missing() or "present")]

MakeGraph = Callable[..., Path]


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_quantised_convolutions_run_in_int8(layer_graph: MakeGraph, rest: str) -> None:
    found = coverage(layer_graph("int8", rest=rest))
    assert found.ok and found.fallbacks() == ()
    assert found.precisions == {"/conv0/Conv": "int8", "/conv1/Conv": "int8", "/conv2/Conv": rest, "/head/Gemm": rest}
    assert {s.node for s in found.sources if s.quantised} == {"/conv0/Conv", "/conv1/Conv"}
    assert found.counts["int8"] == 2 and found.counts[rest] == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_graphs_keep_their_type(layer_graph: MakeGraph, precision: str) -> None:
    found = coverage(layer_graph(precision, rest=precision))
    assert found.counts == {"int8": 0, "fp16": 0, "fp32": 0} | {precision: 4}
    assert found.ok, "nothing is quantised, so nothing can fall back"


def test_a_silent_fallback_to_float_is_seen(layer_graph: MakeGraph) -> None:
    # Per-channel activation scales: the parser takes them, the builder runs the convolutions in float.
    found = coverage(layer_graph("int8", per_channel_input=True))
    assert not found.ok and found.counts["int8"] == 0
    assert found.fallbacks() == ("/conv0/Conv", "/conv1/Conv")
    assert found.fallbacks(["/conv1/Conv"]) == ("/conv1/Conv",)


def test_the_parsers_refusal_names_the_node(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 4, 4])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3, 4, 4])
    node = helper.make_node("Einsum", ["image", "image"], ["logits"], name="/attn/Einsum", equation="Bchw,Bchw->Bchw")
    model = helper.make_model(
        helper.make_graph([node], "g", [image], [out]), opset_imports=[helper.make_opsetid("", 19)]
    )
    onnx.save(model, str(tmp_path / "bad.onnx"))
    for read in (coverage, check_parses):
        with pytest.raises(EngineError, match=r"Einsum '/attn/Einsum': Invalid character"):
            read(tmp_path / "bad.onnx")


def test_an_operator_that_tensorrt_does_not_have_is_told_with_its_node(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 4, 4])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3])
    graph = helper.make_graph([helper.make_node("Det", ["image"], ["logits"], name="/gram/Det")], "g", [image], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]), str(tmp_path / "bad.onnx"))
    with pytest.raises(EngineError, match=r"Det '/gram/Det': an operator that this TensorRT does not know; .*cpu"):
        check_parses(tmp_path / "bad.onnx")


def test_what_parses_says_nothing(layer_graph: MakeGraph, capfd: pytest.CaptureFixture[str]) -> None:
    check_parses(layer_graph())
    assert capfd.readouterr().out == ""


def test_a_file_that_is_no_graph_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("this is not a graph")
    with pytest.raises(EngineError, match="parser refused the graph") as error:
        coverage(path)
    assert "\n" not in str(error.value) and "number -1" not in str(error.value)


def test_progress_is_told(layer_graph: MakeGraph) -> None:
    seen: list[tuple[str, int, int]] = []

    class Watching(Monitor):
        def progress(self, what: str, done: int, total: int) -> None:
            seen.append((what, done, total))

    coverage(layer_graph(), monitor=Watching())
    assert seen and seen[-1][1] == seen[-1][2] > 0
    assert all(0 <= done <= total for _, done, total in seen)


def test_a_monitor_that_raises_does_not_take_the_process_down(layer_graph: MakeGraph) -> None:
    class Broken(Monitor):
        def progress(self, what: str, done: int, total: int) -> None:
            raise BrokenPipeError

    assert coverage(layer_graph(), monitor=Broken()).ok


def test_stdout_stays_empty_in_good_and_bad_cases(layer_graph: MakeGraph, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    code = (
        "import sys; from pathlib import Path; from edgetl.engine import coverage\n"
        "from edgetl.errors import EngineError\n"
        "for path in sys.argv[1:]:\n"
        "    try: coverage(Path(path))\n"
        "    except EngineError: pass\n"
    )
    command = [sys.executable, "-c", code, str(layer_graph("int8")), str(tmp_path / "text.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
