"""Reading precisions back: the build log of TensorRT for RTX and the inspector JSON of 8.5 to 10."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.engine.layers import (
    Coverage,
    Layer,
    Source,
    dtype_of,
    from_build_log,
    from_inspector,
    onnx_nodes,
    precision_of,
)
from edgetl.errors import EngineError


def tensor(dtype: str) -> str:
    shape = "Dimensions: [-1,16,32,32], Strides: [16384,1,512,16], StrideOrder: [3,0,2,1]"
    return f"{{ Name: t, {shape}, Datatype: {dtype}, Format: (NHWC) Channel major format }}"


def log_line(name: str, kind: str, inputs: list[str], constants: list[str], nodes: list[str], sep: str = "\x1f") -> str:
    parts = [", ".join(tensor(d) for d in side) for side in (inputs, constants, ["Half"])]
    listed = "Inputs: [ {}], Constants: [ {}], Outputs: [ {}]".format(*parts)
    metadata = sep.join(f"[ONNX Layer: {node}]" for node in nodes)
    return f"Name: {name}, LayerType: {kind}, {listed}, TacticName: __stub, StreamId: 0, Metadata: {metadata}"


def log_block(*lines: str) -> str:
    tail = "\n\nI/O Tensors:\n Name: image, IOMode: Input, DataType: Float, Dimensions: [-1,3,32,32]\n"
    return "Layers:\n" + "\n".join(lines) + tail


SHAPES = "Name: __mye486, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: "


def test_the_build_log_is_read() -> None:
    block = log_block(
        SHAPES,
        log_line("q_myl0_1", "kgen", ["Float"], ["Half"], ["/conv0/Q"]),
        log_line("/conv0/Conv_myl0_2", "correlation", ["Int8"], ["Int8", "Float"], ["/conv0/Conv", "/conv0/DQ"]),
        log_line("/conv1/Conv_myl0_3", "correlation", ["Half"], ["Half"], ["/conv1/Conv"]),
        log_line("__myl_FcAddCast_myl0_4", "runtime_fusion", ["Half"], ["Half", "Half"], ["/fc/Gemm", "castout"]),
    )
    layers = from_build_log(block)
    assert [layer.precision for layer in layers] == ["", "fp32", "int8", "fp16", "fp16"]
    assert layers[2].onnx_nodes == ("/conv0/Conv", "/conv0/DQ")
    assert layers[2].kind == "correlation" and layers[2].inputs == ("int8",)


@pytest.mark.parametrize("block", ["", "Layers:\n", "Layers:\nsomething else"])
def test_a_log_without_layers_does_not_pass_for_one(block: str) -> None:
    with pytest.raises(EngineError, match="lists no layers"):
        from_build_log(block)


def test_a_changed_line_format_is_an_error_and_not_a_missing_layer() -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        from_build_log("Layers:\nName: a, LayerType: correlation, Something: new")


NODE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20).filter(
    lambda n: "[ONNX" not in n and "Metadata:" not in n
)


@given(st.lists(NODE, min_size=1, max_size=4), st.sampled_from(["\x1f", "\x1e", ""]))
def test_any_node_names_survive(nodes: list[str], separator: str) -> None:
    if not separator and any("]" in n or "[" in n for n in nodes):
        separator = "\x1f"  # without one such names are ambiguous; TensorRT writes one
    line = log_line("layer", "correlation", ["Int8"], ["Int8"], nodes, separator)
    assert from_build_log(log_block(line))[0].onnx_nodes == tuple(nodes)


# Formats of tensors as 8.5/8.6 (phrases), 10.x (words) and later ones (two keys) write them.
INT8_8X = "Thirty-two wide channel vectorized row major Int8 format."


def conv(name: str, dtype: str, weights: str, metadata: str = "", key: str = "Format/Datatype") -> dict[str, object]:
    tensors = [{"Name": "x", "Location": "Device", "Dimensions": [-1, 16, 8, 8], key: dtype}]
    row: dict[str, object] = {"Name": name, "LayerType": "CaskConvolution", "Inputs": tensors, "Outputs": tensors}
    row["Weights"] = {"Type": weights, "Count": 864}
    return row | ({"Metadata": metadata} if metadata else {})


def test_the_inspector_of_8x_is_read() -> None:
    rows = [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to Conv_9",
            "LayerType": "Reformat",
            "Inputs": [{"Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Format/Datatype": INT8_8X}],
        },
        conv("w0 + QuantizeLinear_7 + Conv_9 + Relu_11", INT8_8X, "Int8"),
        conv("Conv_12", "Channel major FP16 format where channel % 8 == 0", "Half"),
        {"Name": "shape", "LayerType": "NoOp", "Inputs": [{"Format/Datatype": "Row major Int32"}], "Outputs": []},
    ]
    layers = from_inspector(json.dumps({"Layers": rows, "Bindings": ["image", "logits"]}))
    assert [layer.precision for layer in layers] == ["fp32", "int8", "fp16", ""]
    found = Coverage(layers, (Source("Conv_9", True), Source("Conv_12", True)))
    assert found.counts == {"int8": 1, "fp16": 1, "fp32": 0}
    assert found.fallbacks() == ("Conv_12",)


@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype"])
def test_the_inspector_of_10x_is_read(key: str) -> None:
    row = conv("/conv0/Conv + /relu", "Int8", "Int8", "[ONNX Layer: /conv0/Conv]\x1e[ONNX Layer: /relu]", key)
    layer = from_inspector(json.dumps({"Layers": [row]}))[0]
    assert (layer.precision, layer.onnx_nodes) == ("int8", ("/conv0/Conv", "/relu"))


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": []}', '{"Layers": ["a", "b"]}', '{"Layers": null}', "[1]"])
def test_an_inspector_without_details_is_an_error(text: str) -> None:
    with pytest.raises(EngineError, match="inspector"):
        from_inspector(text)


@pytest.mark.parametrize(
    ("inputs", "constants", "precision"),
    [
        (("int8",), ("int8", "fp32"), "int8"),
        (("int8",), (), "int8"),
        (("int8",), ("fp16",), "fp16"),  # reads INT8, multiplies in Half: fell back
        (("int8", "fp16"), ("int8",), "int8"),  # a fused residual in Half
        (("int8", "int8"), ("",), "int8"),
        (("fp16",), ("int8",), "fp16"),  # weight-only quantisation is not INT8 arithmetic
        (("fp16",), ("fp16", "fp32"), "fp16"),
        (("fp32", "fp16"), (), "fp32"),
        (("bf16",), ("bf16",), "bf16"),
        (("fp8",), ("fp8",), "fp8"),
        (("",), (), ""),
        ((), (), ""),
    ],
)
def test_precision_of_a_layer(inputs: tuple[str, ...], constants: tuple[str, ...], precision: str) -> None:
    assert precision_of(inputs, constants) == precision


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Half", "fp16"),
        ("Row major linear FP16 format", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("BFloat16", "bf16"),
        ("BF16", "bf16"),
        ("Int8", "int8"),
        ("UInt8", ""),
        ("Int32", ""),
        ("Bool", ""),
        ("FP8E4M3", "fp8"),
        ("N/A due to dynamic shapes", ""),
    ],
)
def test_words_for_types(text: str, word: str) -> None:
    assert dtype_of(text) == word


def test_a_node_spread_over_layers_is_judged_by_the_one_that_multiplies() -> None:
    layers = (
        Layer("pad", ("/fc/Gemm",), "kgen", ("fp32",), "fp32"),
        Layer("mm", ("/fc/Gemm",), "gemm", ("int8",), "int8"),
        Layer("slice", ("/fc/Gemm",), "kgen", ("fp32",), "fp32"),
    )
    assert Coverage(layers, (Source("/fc/Gemm", True),)).precisions == {"/fc/Gemm": "int8"}


def test_a_convolution_inside_a_pointwise_kernel_is_read_off_its_name() -> None:
    # EfficientNet-B0's second squeeze-excite convolution (4 channels) as TensorRT for RTX 1.7 builds it.
    inside = "__myl_MulCastAddSiluMulMinMaxRounCastCorrMulCastAddSigmMulMinMax_myl0_18"
    widened = "__myl_MulCastAddSiluMulMinMaxRounCastCastMulCorrAddSigm_myl0_18"
    block = log_block(
        log_line("fc1", "correlation", ["Int8"], ["Int8"], ["/fc1"]),
        log_line("__myl_CastMul_myl0_17", "kgen", ["Float"], [], ["/fc2"]),
        log_line(inside, "kgen", ["Float"], ["Half", "Int8"], ["/fc1", "/fc2"]),
        log_line(widened, "kgen", ["Float"], ["Half", "Int8"], ["/fc3"]),
        log_line(inside, "kgen", ["Float"], ["Half", "Half"], ["/fc4"]),
    )
    found = Coverage(from_build_log(block), tuple(Source(f"/fc{i}", True) for i in (1, 2, 3, 4)))
    assert found.precisions == {"/fc1": "int8", "/fc2": "int8", "/fc3": "fp32", "/fc4": "fp32"}
    assert found.fallbacks() == ("/fc3", "/fc4")


def test_fused_attention_multiplies_what_it_reads() -> None:
    # swin_t as TensorRT for RTX 1.7 builds it: the constant is the relative position bias.
    block = log_block(
        log_line("_gemm_mha_v2_myl0_8", "kgen", ["Int8", "Int8", "Int8"], ["Half"], ["/attn/MatMul_1"]),
        log_line("_gemm_mha_v2_myl0_9", "kgen", ["Int8", "Half", "Half"], ["Half"], ["/attn/MatMul_2"]),
        log_line("/mha/fc", "gemm", ["Int8", "Int8"], ["Half"], ["/mha/fc"]),
    )
    assert [layer.precision for layer in from_build_log(block)] == ["int8", "fp16", "fp16"]


def test_two_nodes_fused_into_one_layer_count_once_and_a_lost_node_is_a_fallback() -> None:
    layers = (Layer("both", ("a", "b"), "correlation", ("int8",), "int8"),)
    found = Coverage(layers, (Source("a", True), Source("b", True), Source("gone", True)))
    assert found.counts["int8"] == 1
    assert found.fallbacks() == ("gone",) and found.precision_of("gone") == "" and not found.ok


def test_where_no_layer_names_a_node_the_kinds_are_counted() -> None:
    layers = (
        Layer("fused_17", (), "CaskConvolution", ("int8",), "int8"),
        Layer("r", (), "Reformat", ("fp32",), "fp32"),
    )
    assert Coverage(layers, (Source("a", True),)).counts == {"int8": 1, "fp16": 0, "fp32": 0}


def test_names_without_metadata() -> None:
    assert onnx_nodes("", "w + QuantizeLinear_7 + Conv_9") == ("w", "QuantizeLinear_7", "Conv_9")
    assert onnx_nodes("") == ()
