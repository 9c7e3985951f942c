"""The one door to onnxruntime: the setting that keeps INT8 graphs right, placement, and its errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgetl.errors import BackendError
from edgetl.runtime import ort
from edgetl.runtime.classify import softmax
from edgetl.runtime.ort import CPU, CUDA, OrtBackend, available_providers

MakeGraph = Callable[..., Path]


def images(n: int = 8, size: int = 16) -> np.ndarray:
    """Pictures that differ in brightness and colour, float32 (n, 3, size, size)."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (n, 3, size, size)) * np.linspace(0.2, 1, n)[:, None, None, None]
    return np.clip(noise + rng.integers(-60, 60, (n, 3, 1, 1)), 0, 255).astype(np.float32)


def test_an_int8_graph_says_what_it_says_without_the_optimiser(tiny_graph: MakeGraph) -> None:
    """onnxruntime's optimiser rewrites the biases of an FP16-rest Q/DQ graph beyond what FP16 holds."""
    path = tiny_graph(precision="int8")
    plain = OrtBackend(path, optimise=False).run(images())
    simulated = OrtBackend(path).run(images())
    np.testing.assert_allclose(simulated, plain, atol=1e-3 * float(plain.std()))
    rewritten = OrtBackend(path, simulate=False).run(images())
    # Should this fail one day, onnxruntime has mended its optimiser and `simulate` may go.
    assert not np.allclose(rewritten, plain, atol=1e-2 * float(plain.std()), equal_nan=False)


def test_a_uint8_graph_and_a_float_graph_agree(tiny_graph: MakeGraph) -> None:
    floats, bytes_ = OrtBackend(tiny_graph()), OrtBackend(tiny_graph(kind="uint8"))
    assert (floats.input.dtype, floats.input.shape) == ("float32", (-1, 3, 16, 16))
    assert (bytes_.input.dtype, bytes_.input.shape) == ("uint8", (-1, 16, 16, 3))
    pixels = images().astype(np.uint8)
    nhwc = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    out = bytes_.run(nhwc)
    np.testing.assert_allclose(out, floats.run(pixels.astype(np.float32)), atol=1e-5)
    assert out.dtype == np.float32


def test_probabilities_come_back_as_logits(tiny_graph: MakeGraph) -> None:
    logits = OrtBackend(tiny_graph()).run(images())
    answers = OrtBackend(tiny_graph(ends="probabilities")).run(images())
    np.testing.assert_allclose(softmax(answers), softmax(logits), atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "simulate", "evidence"),
    [("fp32", True, "host-cpu"), ("fp16", True, "simulated"), ("int8", True, "simulated"), ("int8", False, "host-cpu")],
)
def test_evidence(tiny_graph: MakeGraph, precision: str, simulate: bool, evidence: str) -> None:
    backend = OrtBackend(tiny_graph(precision=precision), simulate=simulate)
    assert (backend.evidence, backend.provider, backend.device_ms()) == (evidence, CPU, None)


def test_threads_are_handed_on() -> None:
    settings = ort.options(threads=1)
    assert settings.intra_op_num_threads == 1
    assert settings.get_session_config_entry("session.disable_quant_qdq") == "1"
    with pytest.raises(RuntimeError):
        ort.options(simulate=False).get_session_config_entry("session.disable_quant_qdq")


def test_a_transpose_before_a_product_in_fp16_does_not_end_the_process(tmp_path: Path) -> None:
    """With onnxruntime's own choice of optimisers it is a segmentation fault: hence a process of its own."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Transpose", ["half"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float16), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    path = tmp_path / "turned.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    code = (
        "import sys, onnxruntime; from edgetl.runtime.ort import options; "
        "onnxruntime.InferenceSession(sys.argv[1], options(threads=1), providers=['CPUExecutionProvider'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 3, 16, 16), np.float64),
        np.zeros((1, 3, 15, 16), np.float32),
        np.zeros((3, 16, 16), np.float32),
        np.zeros((0, 3, 16, 16), np.float32),
    ],
)
def test_another_input_is_refused(tiny_graph: MakeGraph, batch: np.ndarray) -> None:
    with pytest.raises(BackendError, match="another input"):
        OrtBackend(tiny_graph()).run(batch)


def test_no_graph_a_broken_graph_and_a_closed_session(tiny_graph: MakeGraph, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no such graph"):
        OrtBackend(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(BackendError, match=r"not an ONNX file.*broken\.onnx"):
        OrtBackend(broken)
    backend = OrtBackend(tiny_graph())
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(images())


def test_a_graph_that_fails_while_running_is_a_backend_error(tmp_path: Path) -> None:
    # Reshape to a fixed batch of 2: the file is sound, a batch of 1 is not.
    value = onnx.helper.make_tensor_value_info
    shape = onnx.numpy_helper.from_array(np.array([2, 3]), "shape")
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("GlobalAveragePool", ["image"], ["p"]),
            onnx.helper.make_node("Reshape", ["p", "shape"], ["logits"]),
        ],
        "g",
        [value("image", onnx.TensorProto.FLOAT, ["N", 3, 4, 4])],
        [value("logits", onnx.TensorProto.FLOAT, ["M", 3])],
        [shape],
    )
    path = tmp_path / "two.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    backend = OrtBackend(path)
    assert backend.run(np.zeros((2, 3, 4, 4), np.float32)).shape == (2, 3)
    with pytest.raises(BackendError, match="failed while running"):
        backend.run(np.zeros((1, 3, 4, 4), np.float32))


@pytest.mark.parametrize("shape", [["N", 5], ["N", 3, 4, 4]])
def test_a_graph_without_an_image_input_is_refused(tmp_path: Path, shape: list[str | int]) -> None:
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT if len(shape) == 2 else onnx.TensorProto.INT64
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value("x", kind, shape)], [value("y", kind, shape)]
    )
    path = tmp_path / "odd.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    with pytest.raises(BackendError, match="not an image batch"):
        OrtBackend(path)


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 4, 4])
    other = onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 3, 4, 4])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3, 4, 4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "z"], ["y"])], "g", [value, other], [out])
    path = tmp_path / "two-inputs.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8), path)
    with pytest.raises(BackendError, match="one image input"):
        OrtBackend(path)


def test_a_node_elsewhere_is_named() -> None:
    placed = [(CUDA, "Conv", "stem"), (CPU, "Resize", "up")]
    with pytest.raises(BackendError, match="Resize up runs on CPUExecutionProvider, 1 of 2 nodes"):
        ort._check_placement(placed, CUDA, Path("g.onnx"))
    ort._check_placement(placed[:1], CUDA, Path("g.onnx"))


def test_onnxruntime_tells_where_each_node_went(tiny_graph: MakeGraph) -> None:
    session = onnxruntime.InferenceSession(str(tiny_graph()), ort.options(), providers=[CPU])
    placed = ort._placement(session)
    assert {provider for provider, _, _ in placed} == {CPU}
    assert {"Conv", "Gemm"} <= {operator for _, operator, _ in placed}


def test_the_providers_listed_are_those_that_run(tiny_graph: MakeGraph) -> None:
    providers = available_providers()
    assert providers[-1] == CPU
    for provider in providers:
        backend = OrtBackend(tiny_graph(), provider=provider)
        assert backend.run(images(2)).shape == (2, 3)


def test_a_provider_that_does_not_load_is_an_error_and_not_the_cpu(tiny_graph: MakeGraph) -> None:
    if CUDA in available_providers():
        pytest.skip("CUDA loads here")
    for provider in (CUDA, "NoSuchExecutionProvider"):
        with pytest.raises(BackendError, match="cannot load this provider"):
            OrtBackend(tiny_graph(), provider=provider)


def test_nothing_is_written_on_stdout(tiny_graph: MakeGraph) -> None:
    code = (
        "import sys, numpy as np; from edgetl.runtime.ort import OrtBackend, available_providers;"
        "available_providers(); OrtBackend(sys.argv[1]).run(np.zeros((1, 3, 16, 16), np.float32))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_graph(precision="int8"))], capture_output=True, check=True, text=True
    )
    assert done.stdout == ""
