"""The X-ray joins figures whose every value is worked out by hand here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.graph import layers, qdq
from edgetl.graph.calibrate import Statistics
from edgetl.graph.exclude import Effect
from edgetl.graph.local import LayerNoise
from edgetl.graph.placement import Placement
from edgetl.graph.ranges import Histogram, by_percentile

STEP = 2.0**-7  # a power of two is a float16, so scale_of keeps it as it is
SHIFT = np.zeros(0)


def source() -> onnx.ModelProto:
    """image (3, 4, 4) -> stem: 2 channels -> Add of itself -> pool -> 5 logits; then a product of two activations.

    MACs by hand: stem 4*4*2*3 = 96; head 2*5 = 10; square (1, 5) x (5, 1) = 5; plain (not quantised) 3*2*16 = 96.
    """
    nodes = [
        helper.make_node("Conv", ["image", "stem_w"], ["stem_out"], name="stem"),
        helper.make_node("Conv", ["image", "plain_w"], ["plain_out"], name="plain"),
        helper.make_node("Add", ["stem_out", "plain_out"], ["sum_out"], name="sum"),
        helper.make_node("GlobalAveragePool", ["sum_out"], ["pool_out"], name="pool"),
        helper.make_node("Flatten", ["pool_out"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "head_w"], ["head_out"], name="head", transB=1),
        helper.make_node("Transpose", ["head_out"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["head_out", "turned"], ["logits"], name="square"),
    ]
    stem = np.zeros((2, 3, 1, 1), np.float32)
    stem[0], stem[1] = 127 * STEP, -127 * 4 * STEP
    weights = {
        "stem_w": stem,
        "plain_w": np.ones((2, 3, 1, 1), np.float32),
        "head_w": np.full((5, 2), 127 * STEP, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


PLACEMENT = Placement(
    {
        "image": (("stem", 0),),
        "stem_out": (("sum", 0),),
        "flat": (("head", 0),),
        "head_out": (("square", 0),),
        "turned": (("square", 1),),
    },
    {("stem", 1): 0, ("head", 1): 0},
    (),
)
AMAX = {"image": 127 * 2 * STEP, "stem_out": 1.0, "flat": 127 * STEP, "head_out": 127 * STEP, "turned": 127 * STEP}
TOTAL = 96 + 96 + 10 + 5


def statistics() -> Statistics:
    histograms = {}
    for name, range_ in AMAX.items():
        histograms[name] = Histogram()
        histograms[name].add(np.array([0.0, range_ / 2, range_ * 0.75], np.float32))
    histograms["image"].add(np.array([-3 * AMAX["image"]], np.float32))
    return Statistics(histograms, {name: h.peak for name, h in histograms.items()}, 4)


def rows(**changed: Any) -> list[layers.LayerRow]:
    given: dict[str, Any] = {
        "source": source(),
        "placement": PLACEMENT,
        "amax": AMAX,
        "statistics": statistics(),
        "noises": {},
        "effects": (),
        "precisions": None,
        "kept_float": {},
    }
    return layers.xray(**{**given, **changed})


def named(found: list[layers.LayerRow]) -> dict[str, layers.LayerRow]:
    return {row.node: row for row in found}


def test_ranges_steps_and_macs_of_a_convolution() -> None:
    row = named(rows())["stem"]
    assert (row.op, row.group, row.input) == ("Conv", "stem", "image")
    assert (row.amax, row.scale, row.peak) == (254 * STEP, 2 * STEP, 3 * 254 * STEP)
    assert row.clipped == 1 / 4, "one of four values lies beyond the range"
    assert (row.weight_scale_min, row.weight_scale_max) == (STEP, 4 * STEP)
    assert (row.macs, row.macs_share) == (96, 96 / TOTAL)
    assert row.kept_float is None and row.precision is None


def test_only_products_of_two_quantised_operands_have_a_row() -> None:
    assert set(named(rows())) == {"stem", "head", "square"}


def test_a_product_of_two_activations_tells_the_other_ones_step() -> None:
    row = named(rows())["square"]
    assert row.input == "head_out"
    assert (row.weight_scale_min, row.weight_scale_max) == (STEP, STEP)
    assert row.macs == 5


def test_a_weight_on_the_left_is_still_the_weight() -> None:
    turned = source()
    matmul = helper.make_node("MatMul", ["head_w", "turned_flat"], ["left_out"], name="left")
    turned.graph.node.append(helper.make_node("Transpose", ["flat"], ["turned_flat"], name="t", perm=[1, 0]))
    turned.graph.node.append(matmul)
    placement = Placement({"turned_flat": (("left", 1),)}, {("left", 0): None}, ())
    histogram = Histogram()
    histogram.add(np.ones(2, np.float32))
    found = rows(
        source=turned,
        placement=placement,
        amax={"turned_flat": 127 * STEP},
        statistics=Statistics({"turned_flat": histogram}, {"turned_flat": 1.0}, 1),
    )
    assert [(row.node, row.input, row.weight_scale_min) for row in found] == [("left", "turned_flat", STEP)]


def test_the_graph_gets_the_scales_that_the_xray_tells() -> None:
    constants = {t.name: numpy_helper.to_array(t) for t in qdq.inserted(source(), PLACEMENT, AMAX).graph.initializer}
    row = named(rows())["stem"]
    assert constants["image_scale"] == np.float32(row.scale)
    assert constants["stem_w_scale"].tolist() == [row.weight_scale_min, row.weight_scale_max]


def test_the_steps_of_the_graph_that_ships_are_told_where_it_has_any() -> None:
    shipped = qdq.inserted(source(), PLACEMENT, {**AMAX, "image": 127 * 8 * STEP})
    next(n for n in shipped.graph.node if n.name == "head").input[0] = "flat"
    next(n for n in shipped.graph.node if n.name == "head").input[1] = "head_w"
    weight = next(t for t in shipped.graph.initializer if t.name == "stem_w_scale")
    weight.CopyFrom(numpy_helper.from_array(np.array([STEP, 2 * STEP], np.float16), "stem_w_scale"))
    found = named(rows(shipped=shipped, kept_float={"head": layers.FOR_ACCURACY}))
    assert (found["stem"].amax, found["stem"].scale) == (254 * STEP, 8 * STEP)
    assert (found["stem"].weight_scale_min, found["stem"].weight_scale_max) == (STEP, 2 * STEP)
    assert (found["head"].scale, found["head"].weight_scale_max) == (STEP, STEP), "what it would have had"


def test_what_was_measured_is_joined_and_the_rest_stays_unmeasured() -> None:
    noises = {"stem": LayerNoise("stem", SHIFT, 21.5, 64), "head": LayerNoise("head", SHIFT, float("inf"), 64)}
    effects = [Effect(("stem", "sum"), 0.25, 0.03, 128)]
    found = named(rows(noises=noises, effects=effects, precisions={"stem": "int8", "head": "fp16", "square": ""}))
    stem = found["stem"]
    assert (stem.sqnr_db, stem.sqnr_n) == (21.5, 64)
    assert (stem.kl_regained, stem.agreement_regained, stem.effect_n) == (0.25, 0.03, 128)
    assert [found[n].precision for n in ("stem", "head", "square")] == ["int8", "fp16", None]
    assert (found["head"].sqnr_db, found["head"].sqnr_n) == (None, 64), "no noise has no ratio, and no JSON either"
    assert found["square"].sqnr_db is found["square"].sqnr_n is found["square"].kl_regained is None


def test_a_residual_sum_counts_with_the_product_that_it_is_fused_with() -> None:
    placement = Placement({**PLACEMENT.activations, "plain_out": (("sum", 1),)}, PLACEMENT.weights, ())
    found = rows(placement=placement, effects=[Effect(("stem", "sum"), 0.1, 0.0, 8)])
    assert named(found)["stem"].kl_regained == 0.1 and named(found)["stem"].group == "stem"


def test_layers_left_in_float_stay_in_the_table_with_their_reason() -> None:
    found = named(rows(kept_float={"stem": layers.FOR_ACCURACY}))
    assert found["stem"].kept_float == "accuracy" and found["stem"].scale == 2 * STEP
    assert found["head"].kept_float is None


def row_of(node: str, **figures: Any) -> layers.LayerRow:
    plain = named(rows())["stem"]
    return layers.LayerRow(**{**plain.to_json(), "node": node, **figures})


def test_what_matters_comes_first() -> None:
    wanted = [
        row_of("most harm", kl_regained=0.3, sqnr_db=40.0),
        row_of("less harm", kl_regained=0.1, sqnr_db=5.0),
        row_of("measured, better in int8", kl_regained=-0.2, sqnr_db=1.0),
        row_of("noisy", sqnr_db=-3.0),
        row_of("quiet", sqnr_db=30.0),
        row_of("unmeasured, large", macs=200),
        row_of("unmeasured, small", macs=1),
    ]
    for seed in range(5):
        shuffled = [wanted[i] for i in np.random.default_rng(seed).permutation(len(wanted))]
        assert sorted(shuffled, key=layers.by_weight) == wanted


def test_equal_layers_stay_in_the_order_of_the_graph() -> None:
    assert [row.node for row in rows()] == ["stem", "head", "square"], "96, 10 and 5 MACs"
    same = [row_of(name) for name in ("b", "a", "c")]
    assert sorted(same, key=layers.by_weight) == same


@pytest.mark.parametrize(
    ("amax", "share"),
    [(8.0, 0.0), (7.5, 0.0), (6.0, 1 / 5), (2.0, 3 / 5), (0.5, 4 / 5)],
)
def test_the_clipped_share_is_counted(amax: float, share: float) -> None:
    histogram = Histogram()
    histogram.add(np.array([0.25, -1.5, 2.5, -4.5, 7.5], np.float32))
    assert layers.clipped(histogram, amax) == share


def test_the_percentile_clips_what_it_says() -> None:
    histogram = Histogram()
    histogram.add(np.abs(np.random.default_rng(0).normal(size=100_000)).astype(np.float32))
    share = layers.clipped(histogram, by_percentile(histogram, 99.0))
    assert 0.0095 < share <= 0.01


@pytest.mark.parametrize("amax", [0.0101, 0.5003, 1.00007, 2.9999])
def test_a_bin_that_the_range_cuts_counts_in_part(amax: float) -> None:
    """Evenly spread values, 244 of them in a bin: the share is right to a few of a million."""
    values = np.linspace(0, 3.0, 1_000_000, dtype=np.float32)
    histogram = Histogram()
    histogram.add(values)
    assert layers.clipped(histogram, amax) == pytest.approx(float((values > amax).mean()), abs=1e-5)


def test_a_tensor_of_zeros_clips_nothing() -> None:
    histogram = Histogram()
    assert layers.clipped(histogram, 1.0) == 0.0
    histogram.add(np.zeros(4, np.float32))
    assert layers.clipped(histogram, 0.0) == 0.0


def test_the_artifact_is_the_same_bytes_twice_and_names_its_graph(tmp_path: Path) -> None:
    graph = tmp_path / "int8.onnx"
    graph.write_bytes(b"a graph")
    found = rows(noises={"stem": LayerNoise("stem", SHIFT, float("nan"), 64)})
    made = [layers.artifact(found, graph, "max", 64, None, {"made_by": "export"}) for _ in range(2)]
    first = made[0].source.read_bytes()
    assert first == made[1].source.read_bytes()
    body = json.loads(first)
    assert body["graph"] == made[0].record["made_from"] == hashlib.sha256(b"a graph").hexdigest()
    assert body["schema"] == layers.SCHEMA and body["method"] == "max"
    assert body["layers"] == [row.to_json() for row in found]
    assert made[0].name == "layers-{sha12}.json" and made[0].record["kind"] == "layers"
