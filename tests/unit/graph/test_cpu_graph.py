"""INT8 for onnxruntime's CPU kernels: placement, ranges, what is stored, and that the kernels really take it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from edgetl.errors import EngineError, GraphError
from edgetl.graph import surgery
from edgetl.graph.calibrate import Calibration
from edgetl.graph.cpu import counted, cpu_placement, kernels
from edgetl.graph.cpu_qdq import cpu_inserted, cpu_ranges, host_weight_bits, unsigned, weight_bits
from edgetl.graph.placement import Placement
from edgetl.graph.ranges import Histogram
from edgetl.runtime.ort import OrtBackend

# A stem, a residual sum, a gate, a ReLU6, a pooling and a concatenation: what stands between products in classifiers.
NETWORK = """<ir_version: 8, opset_import: ["" : 13]>
net (float[batch, 3, 16, 16] image) => (float[batch, 4] logits) {
    stem = Conv<pads = [1, 1, 1, 1]>(image, w0, b0)
    low = Constant<value = float {0.0}>()
    high = Constant<value = float {6.0}>()
    six = Clip(stem, low, high)
    pooled = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(six)
    inner = Conv<pads = [1, 1, 1, 1]>(pooled, w1, b1)
    sum = Add(inner, pooled)
    rectified = Relu(sum)
    squeezed = GlobalAveragePool(rectified)
    scored = Conv(squeezed, w2, b2)
    gate = Sigmoid(scored)
    gated = Mul(rectified, gate)
    signed = Conv(gated, w3, b3)
    joined = Concat<axis = 1>(gated, signed)
    mean = GlobalAveragePool(joined)
    flat = Flatten(mean)
    logits = Gemm<transB = 1>(flat, w4, b4)
}"""
SHAPES = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 1, 1), "w3": (8, 8, 1, 1), "w4": (4, 16)}


def network(text: str = NETWORK, shapes: dict[str, tuple[int, ...]] | None = None) -> onnx.ModelProto:
    """The graph of `text` with seeded weights w0, w1, ... and biases b0, b1, ...; nodes are named by their outputs."""
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (shapes or SHAPES).items():
        fan_in = np.prod(shape[1:])
        values = {name: rng.normal(size=shape) / np.sqrt(fan_in), name.replace("w", "b"): rng.normal(size=shape[0])}
        model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items())
    for node in model.graph.node:
        node.name = node.output[0]
    return surgery.anonymous(model)


def products(model: onnx.ModelProto) -> Placement:
    """As modelopt says it: the weights of all products (its activations are not looked at here)."""
    axes = {"Conv": 0, "Gemm": 0, "MatMul": 1}
    return Placement({}, {(n.name, 1): axes[n.op_type] for n in model.graph.node if n.op_type in axes}, ())


def images(n: int = 16) -> np.ndarray:
    """uint8 (n, 16, 16, 3): flat colours under noise."""
    rng = np.random.default_rng(1)
    return np.clip(rng.integers(0, 200, (n, 1, 1, 3)) + rng.integers(0, 56, (n, 16, 16, 3)), 0, 255).astype(np.uint8)


def histograms(model: onnx.ModelProto, placement: Placement) -> dict[str, Histogram]:
    run = Calibration(model, counted(model, placement), threads=1)
    run.feed(images())
    return run.statistics.histograms


def quantised(model: onnx.ModelProto, placement: Placement, bits: int = 8) -> tuple[Placement, onnx.ModelProto]:
    placed = cpu_placement(model, placement)
    limits = cpu_ranges(histograms(model, placement), "max", placed.groups)
    return placed, cpu_inserted(model, placed, limits, bits)


def run(model: onnx.ModelProto, path: Path, simulate: bool | None = None) -> np.ndarray:
    backend = OrtBackend(surgery.save(model, path), threads=1, simulate=simulate)
    try:
        return backend.run(np.ascontiguousarray(images().transpose(0, 3, 1, 2)).astype(np.float32))
    finally:
        backend.close()


def test_every_product_and_all_between_them_run_in_int8_kernels(tmp_path: Path) -> None:
    model = network()
    _, graph = quantised(model, products(model))
    found = kernels(graph, surgery.save(graph, tmp_path / "q.onnx"))
    assert found.int8_macs_share == 1.0 and found.fallbacks == ()
    assert found.precisions == dict.fromkeys(("stem", "inner", "scored", "signed", "logits"), "int8")
    of_two = {"QLinearAdd": 1, "QLinearMul": 1, "QLinearConcat": 1}
    assert found.layers == {
        **of_two,
        "QLinearConv": 4,
        "QGemm": 1,
        "QLinearSigmoid": 1,
        "QLinearGlobalAveragePool": 2,
        "MaxPool": 1,
        "Flatten": 1,
        "QuantizeLinear": 1,
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "q.onnx"]


@pytest.mark.parametrize("bits", [8, 7])
def test_the_kernels_say_what_the_float_network_says(tmp_path: Path, bits: int) -> None:
    model = network()
    _, graph = quantised(model, products(model), bits)
    reference = run(model, tmp_path / "fp32.onnx")
    spread = float(np.ptp(reference))
    kernels, written = (run(graph, tmp_path / "q.onnx", simulate) for simulate in (None, True))
    assert np.abs(kernels - reference).max() < 0.04 * spread
    assert np.abs(kernels - written).max() < 0.02 * spread
    assert (kernels.argmax(axis=1) == reference.argmax(axis=1)).mean() > 0.9


def test_a_cpu_graph_runs_on_its_own_kernels_wherever_it_is_opened(tmp_path: Path) -> None:
    model = network()
    path = surgery.save(quantised(model, products(model))[1], tmp_path / "q.onnx")
    assert OrtBackend(path).evidence == "host-cpu"
    assert OrtBackend(path, simulate=True).evidence == "simulated"


def test_what_the_search_leaves_out_stays_float(tmp_path: Path) -> None:
    model = network()
    placement = products(model)
    fewer = Placement({}, {use: axis for use, axis in placement.weights.items() if use[0] != "inner"}, ())
    whole, placed = cpu_placement(model, placement), cpu_placement(model, fewer)
    assert not [use for uses in placed.activations.values() for use in uses if use == ("sum", 0)]
    assert set(placed.activations) < set(whole.activations)
    limits = cpu_ranges(histograms(model, placement), "max", placed.groups)
    graph = cpu_inserted(model, placed, limits)
    found = kernels(graph, surgery.save(graph, tmp_path / "q.onnx"))
    assert 0 < found.int8_macs_share < 1
    assert found.precisions["inner"] == "fp32" and found.layers["QLinearConv"] == 3


def test_logits_are_never_quantised() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]>
    net (float[batch, 3, 16, 16] image) => (float[batch, 4] logits) {
        inner = Conv(image, w0, b0)
        scores = Conv(inner, w1, b1)
        mean = GlobalAveragePool(scores)
        logits = Flatten(mean)
    }"""
    model = network(text, {"w0": (8, 3, 3, 3), "w1": (4, 8, 1, 1)})
    assert set(cpu_placement(model, products(model)).activations) == {"image", "inner", "scores"}
    direct = network(text.replace("mean = GlobalAveragePool(scores)", "").replace("Flatten(mean)", "Flatten(scores)"),
                     {"w0": (8, 3, 16, 16), "w1": (4, 8, 1, 1)})  # fmt: skip
    assert set(cpu_placement(direct, products(direct)).activations) == {"image", "inner"}


def test_a_concatenation_shares_a_scale_among_its_like_only() -> None:
    """`signed` reaches below zero: in its range the end of the ReLU's would be lost, and its convolution float."""
    model = network()
    groups = cpu_placement(model, products(model)).groups
    assert ("gated", "joined", "signed") in groups  # a product's range has no end of a Relu
    text = NETWORK.replace("Concat<axis = 1>(gated, signed)", "Concat<axis = 1>(rectified, signed)")
    mixed = cpu_placement(network(text), products(network(text))).groups
    assert ("joined", "signed") in mixed
    assert ("pooled", "six") in mixed


def test_one_calibration_counts_the_tensors_of_all_profiles() -> None:
    model = network()
    placement = Placement({"stem": (("six", 0),)}, products(model).weights, ())
    names = counted(model, placement)
    assert set(names) == {"stem", *cpu_placement(model, placement).activations}
    assert len(names) == len(set(names))


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in surgery.anonymous(model).graph.initializer}


def test_weights_are_int8_and_biases_int32_in_steps_of_input_times_weight() -> None:
    model = network()
    _, graph = quantised(model, products(model))
    there = stored(graph)
    assert not [name for name in SHAPES if name in there]
    weight, bias = there["inner_input1_quantised"], there["inner_input2_quantised"]
    assert (weight.dtype, bias.dtype) == (np.int8, np.int32)
    original = stored(model)
    assert np.allclose(bias * there["inner_input2_scale"], original["b1"], atol=1e-4)
    assert np.allclose(there["inner_input2_scale"], there["pooled_scale"] * there["inner_input1_scale"])
    assert np.abs(weight).reshape(8, -1).max(axis=1).tolist() == [127] * 8
    assert there["six_zero_point"] == 0 and there["signed_zero_point"] > 0


def test_weights_of_7_bits_leave_room_for_two_products_in_int16() -> None:
    model = network()
    _, graph = quantised(model, products(model), bits=7)
    weight = stored(graph)["inner_input1_quantised"]
    assert np.abs(weight).max() == 63
    assert 2 * 255 * 63 <= np.iinfo(np.int16).max < 2 * 255 * 127


def test_a_bias_beside_tiny_weights_fits_int32(tmp_path: Path) -> None:
    model = network()
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    values = numpy_helper.to_array(weight).copy()
    values[0], values[1] = 1e-12, 0.0
    weight.CopyFrom(numpy_helper.from_array(values, "w1"))
    _, graph = quantised(model, products(model))
    there = stored(graph)
    original = stored(model)["b1"]
    assert np.allclose(there["inner_input2_quantised"] * there["inner_input2_scale"], original, rtol=1e-5, atol=1e-4)
    reference = run(model, tmp_path / "fp32.onnx")
    assert np.abs(run(graph, tmp_path / "q.onnx") - reference).max() < 0.05 * float(np.ptp(reference))


def test_nan_in_a_bias_is_named() -> None:
    model = network()
    limits = dict.fromkeys(cpu_placement(model, products(model)).activations, (0.0, 1.0))
    bias = next(t for t in model.graph.initializer if t.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, np.nan, np.float32), "b1"))
    with pytest.raises(GraphError, match="b1"):
        cpu_inserted(model, cpu_placement(model, products(model)), limits)


def test_a_product_that_falls_back_to_float_is_an_error_with_its_name(tmp_path: Path) -> None:
    model = network()
    placed, _ = quantised(model, products(model))
    # Without a pair on what it makes, onnxruntime has no kernel for the convolution.
    fewer = {name: uses for name, uses in placed.activations.items() if name != "scored"}
    limits = cpu_ranges(histograms(model, products(model)), "max", placed.groups)
    graph = cpu_inserted(model, Placement(fewer, placed.weights, placed.groups), limits)
    found = kernels(graph, surgery.save(graph, tmp_path / "q.onnx"))
    assert found.fallbacks == found.convolutions == ("scored",)
    assert found.precisions["scored"] == "fp32" and found.in_float == "onnxruntime on this CPU runs it in float"
    with pytest.raises(EngineError, match=r"1 quantised convolutions run in float in onnxruntime.*scored"):
        found.check()


@given(st.floats(0, 1e6, width=32))
def test_255_steps_from_zero_never_pass_the_end_of_a_clip(high: float) -> None:
    step = unsigned(0.0, high)
    assert step.scale.dtype == np.float32 and step.zero.dtype == np.uint8 and step.zero == 0
    assert high < 1e-30 or high * (1 - 1e-6) <= np.float32(255) * step.scale <= np.float32(high)


@given(st.floats(-1e3, 0), st.floats(0, 1e3))
def test_zero_is_a_step_of_its_own_and_the_ends_are_within_one(low: float, high: float) -> None:
    step = unsigned(low, high)
    assert step.quantised(np.zeros(1), None)[0] == step.zero
    ends = step.quantised(np.array([low, high]), None).astype(np.float64) - float(step.zero)
    assert np.abs(ends * step.scale - [low, high]).max() <= 1.01 * step.scale


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_range_without_end_is_refused(bad: float) -> None:
    with pytest.raises(GraphError, match="has no scale"):
        unsigned(0.0, bad)


def filled(values: list[float]) -> Histogram:
    out = Histogram()
    out.add(np.array(values, dtype=np.float32))
    return out


def test_a_range_ends_where_values_end_and_groups_share_the_widest() -> None:
    found = cpu_ranges({"swish": filled([-0.25, 4.0]), "relu": filled([0.0, 2.0]), "dead": filled([0.0])}, "max")
    assert found == {"swish": (-0.25, 4.0), "relu": (0.0, 2.0), "dead": (0.0, 0.0)}
    joined = cpu_ranges({"a": filled([-1.0, 2.0]), "b": filled([-0.5, 8.0])}, "max", (("a", "b"),))
    assert joined == {"a": (-1.0, 8.0), "b": (-1.0, 8.0)}
    clipped = cpu_ranges({"tail": filled([-9.0] + [0.5] * 99_999 + [9.0])}, "percentile")
    assert clipped["tail"][0] == -clipped["tail"][1] > -1.0


@pytest.mark.parametrize(
    ("machine", "flags", "bits", "why"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", 8, "avx512_vnni"),
        ("AMD64", "avx2 avx_vnni", 8, "avx_vnni"),
        ("x86_64", "fpu avx2 avx512f avx512_vnnix", 7, "no VNNI"),
        ("aarch64", "fp asimd asimddp", 8, "asimddp"),
        ("aarch64", "fp asimd", 7, "no dot product"),
        ("riscv64", "", 7, "riscv64"),
    ],
)
def test_weight_bits(machine: str, flags: str, bits: int, why: str) -> None:
    found = weight_bits(machine, flags)
    assert found[0] == bits and why in found[1]


def test_weight_bits_of_this_machine_are_read_from_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_weight_bits(tmp_path)[0] == 7
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx_vnni\n\nprocessor\t: 1\n")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert host_weight_bits(tmp_path) == (8, "avx_vnni")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert host_weight_bits(tmp_path) == (8, "asimddp")


MATRIX = """<ir_version: 8, opset_import: ["" : 13]>
net (float[batch, 3, 16, 16] image) => (float[batch, 4] logits) {
    inner = Conv<strides = [4, 4]>(image, w0, b0)
    scaled = Mul(inner, gain)
    tall = Conv(scaled, w1, b1)
    rows = Reshape(tall, shape)
    product = MatMul(rows, w2)
    mean = ReduceMean<axes = [1], keepdims = 0>(product)
    logits = Add(mean, offset)
}"""


def matrix_network(text: str = MATRIX, shape: tuple[int, ...] = (0, -1, 6)) -> onnx.ModelProto:
    model = network(text, {"w0": (8, 3, 4, 4), "w1": (6, 8, 1, 1), "w2": (6, 4)})
    constants = {
        "gain": np.linspace(-1, 2, 8, dtype=np.float32).reshape(1, 8, 1, 1),
        "shape": np.array(shape, np.int64),
        "offset": np.ones(4, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def test_a_matrix_product_gives_float_and_a_constant_operand_is_stored_as_uint8(tmp_path: Path) -> None:
    model = matrix_network()
    placed, graph = quantised(model, products(model))
    assert "product" not in placed.activations
    assert placed.weights["scaled", 1] is None
    there = stored(graph)["scaled_input1_quantised"]
    assert there.dtype == np.uint8 and (there.min(), there.max()) == (0, 255)
    found = kernels(graph, surgery.save(graph, tmp_path / "q.onnx"))
    assert found.int8_macs_share == 1.0
    assert found.layers["MatMulIntegerToFloat"] == found.layers["QLinearMul"] == 1


def test_a_matrix_product_that_onnxruntime_would_join_with_its_bias_stays_float(tmp_path: Path) -> None:
    mean = "mean = ReduceMean<axes = [1], keepdims = 0>(product)\n    "
    text = MATRIX.replace(mean, "").replace("Add(mean, offset)", "Add(product, offset)")
    model = matrix_network(text.replace("<strides = [4, 4]>", "<strides = [16, 16]>"), (0, 6))
    placed, graph = quantised(model, products(model))
    assert ("product", 1) not in placed.weights
    found = kernels(graph, surgery.save(graph, tmp_path / "q.onnx"))
    assert 0.9 < found.int8_macs_share < 1.0 and found.precisions["product"] == "fp32"


def test_a_metadata_profile_is_that_of_the_graph(tmp_path: Path) -> None:
    model = network()
    _, graph = quantised(model, products(model))
    assert {p.key: p.value for p in graph.metadata_props} == {"profile": "cpu"}
    kinds = {i.type.tensor_type.elem_type for i in (*graph.graph.input, *graph.graph.output)}
    assert kinds == {TensorProto.FLOAT}
    assert helper.find_min_ir_version_for(list(graph.opset_import)) <= 8
