from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from edgetl.graph.calibrate import Statistics
from edgetl.graph.candidate import Candidate
from edgetl.graph.exclude import Effect, fewest, ranking, shortlist
from edgetl.graph.groups import groups, without
from edgetl.graph.ladder import Found, Tools, climb
from edgetl.graph.local import LayerNoise
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.graph.quantise import Calibrated, calibrated
from edgetl.graph.ranges import METHODS, Histogram
from edgetl.graph.search import Score, Search, expected_loss
from edgetl.measure.confidence import temperature_of
from edgetl.runtime.classify import softmax


def residual_model() -> onnx.ModelProto:
    """image -> first -> Relu -> (branch -> project) + skip -> Relu -> pool -> head; 4 channels, 8 px."""
    rng = np.random.default_rng(0)
    weights = {
        "w_first": rng.normal(size=(4, 3, 3, 3)) / 255,
        "w_branch": rng.normal(size=(4, 4, 3, 3)) / 6,
        "w_project": rng.normal(size=(4, 4, 1, 1)) / 2,
        "w_head": rng.normal(size=(4, 5)),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "w_first"], ["a"], name="first", **pads),
        helper.make_node("Relu", ["a"], ["a_relu"], name="relu_a"),
        helper.make_node("Conv", ["a_relu", "w_branch"], ["b"], name="branch", **pads),
        helper.make_node("Relu", ["b"], ["b_relu"], name="relu_b"),
        helper.make_node("Conv", ["b_relu", "w_project"], ["c"], name="project"),
        helper.make_node("Add", ["c", "a_relu"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["sum_relu"], name="relu_sum"),
        helper.make_node("GlobalAveragePool", ["sum_relu"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "w_head"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


PLACEMENT = Placement(
    {
        "image": (("first", 0),),
        "a_relu": (("branch", 0), ("sum", 1)),
        "b_relu": (("project", 0),),
        "sum_relu": (("pool", 0),),
        "flat": (("head", 0),),
    },
    {("first", 1): 0, ("branch", 1): 0, ("project", 1): 0, ("head", 1): 1},
    (),
)


def noises(**decibels: float) -> dict[str, LayerNoise]:
    return {node: LayerNoise(node=node, shift=np.zeros(4), sqnr_db=db, n=8) for node, db in decibels.items()}


def candidate() -> Candidate:
    histograms = {}
    for name in PLACEMENT.activations:
        histograms[name] = Histogram()
        histograms[name].add(np.linspace(0, 255 if name == "image" else 6, 500, dtype=np.float32))
    return Candidate(residual_model(), Calibrated(PLACEMENT, Statistics(histograms, {}, 8)), "max")


def test_a_residual_sum_belongs_to_the_product_it_is_fused_with() -> None:
    found = {group.name: group.nodes for group in groups(residual_model(), PLACEMENT)}
    assert found == {
        "first": ("first",),
        "branch": ("branch",),
        "project": ("project", "sum"),
        "pool": ("pool",),
        "head": ("head",),
    }


def test_without_drops_pairs_that_nobody_reads_any_more() -> None:
    left = without(PLACEMENT, ("project", "sum"))
    assert left.activations["a_relu"] == (("branch", 0),)
    assert "b_relu" not in left.activations
    assert ("project", 1) not in left.weights and ("branch", 1) in left.weights


LOGITS = st.floats(-20, 20, width=32)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, (6, 4), elements=LOGITS), arrays(np.float32, (3, 4), elements=LOGITS))
def test_the_expected_loss_is_a_share_and_no_more_than_the_flips(answers: np.ndarray, noise: np.ndarray) -> None:
    lost, flips = expected_loss(answers, noise), expected_loss(answers, noise, by_agreement=True)
    assert (lost >= 0).all() and (lost <= flips).all() and (flips <= 1).all()
    assert (expected_loss(answers, np.zeros_like(noise)) == 0).all()


def test_the_expected_loss_is_the_accuracy_lost_when_the_reference_is_calibrated() -> None:
    rng = np.random.default_rng(1)
    answers = rng.normal(size=(20_000, 4)).astype(np.float32)
    noise = rng.normal(size=(500, 4)).astype(np.float32)
    labels = np.array([rng.choice(4, p=row) for row in softmax(answers)])  # drawn from the reference's probabilities
    noisy = answers + noise[rng.integers(0, 500, len(answers))]
    lost = (answers.argmax(axis=1) == labels).mean() - (noisy.argmax(axis=1) == labels).mean()
    assert expected_loss(answers, noise).mean() == pytest.approx(lost, abs=0.02)
    flips = (answers.argmax(axis=1) != noisy.argmax(axis=1)).mean()
    assert expected_loss(answers, noise, by_agreement=True).mean() == pytest.approx(flips, abs=0.02)
    assert flips > 2 * lost  # a flip costs less than a whole image


def test_noise_is_judged_by_the_margins_of_new_images_and_not_by_those_of_the_search() -> None:
    wide = np.array([[9.0, 0.0], [0.0, 9.0]], dtype=np.float32)
    narrow = wide / 90
    noise = np.array([[-0.1, 0.1], [0.1, -0.1]], dtype=np.float32)
    assert expected_loss(wide, noise).mean() == 0.0
    assert expected_loss(narrow, noise).mean() > 0.01


ANSWERS = np.random.default_rng(3).normal(size=(40, 5)).astype(np.float32)


@pytest.fixture
def search(tmp_path: Path) -> Search:
    pixels = np.random.default_rng(2).integers(0, 255, (24, 8, 8, 3), dtype=np.uint8)
    return Search(residual_model(), Pixels.of_array(tmp_path / "pixels", pixels), tmp_path, ANSWERS)


def test_the_fp32_graph_loses_nothing_against_itself(search: Search) -> None:
    score = search.measure(residual_model(), "itself")
    assert (score.kl, score.agreement, score.expected_drop_pp, score.n) == (0.0, 1.0, 0.0, 24)


def test_a_spoilt_scale_is_seen_and_leaving_that_layer_in_float_cures_it(search: Search) -> None:
    good = candidate()
    assert search.measure(good.twin(), "good").kl < 0.01
    spoilt = candidate()
    spoilt.ranges["b_relu"] = 1e-3  # what reaches `project` is clipped away
    bad, cured = (search.measure(c.twin(), "c").kl for c in (spoilt, spoilt.leaving(("project", "sum"))))
    # `leaving` makes a new candidate, whose ranges are read afresh; its pair on b_relu is gone all the same.
    assert bad > 10 * max(cured, 1e-4)


def test_the_shortlist_begins_with_the_noisiest_group() -> None:
    order = shortlist(candidate(), noises(first=40.0, branch=10.0, project=20.0))
    assert [group.name for group in order][:3] == ["branch", "project", "first"]


def test_the_ranking_gives_cheap_groups_first_and_never_more_than_half_of_the_work() -> None:
    measured = [Effect(("head",), 0.5, 0.0, 24), Effect(("project", "sum"), -0.1, 0.0, 24)]
    order, cheap = ranking(candidate(), measured, noises(first=10.0, branch=40.0))
    # MACs: first 6912, branch 9216, project 1024, head 20. `project` did no harm; `pool` has none.
    assert order[:cheap] == [("head",), ("pool",)]
    assert order[cheap:] == [("first",)]  # with `branch` gone too nothing of weight would be left


@pytest.mark.parametrize("needed", [1, 2, 3, 4, 5, 7, 8, 9])
def test_fewest_finds_the_least_count_that_is_enough(needed: int) -> None:
    class Counting:
        def __init__(self) -> None:
            self.tried: list[int] = []

        def measure(self, model: object, what: str) -> Score:
            self.tried.append(int(what.split(maxsplit=1)[0]))
            kl = max(0.0, (needed - self.tried[-1]) * 0.1)
            return Score(kl, 1.0 - kl, 0.0, 0.0, 24)

    order = [(name,) for name in ("first", "branch", "project", "sum", "pool", "head", "h", "i", "j")]
    counting = Counting()
    trials, chosen = fewest(candidate(), order, counting, lambda score: score.kl == 0.0)  # type: ignore[arg-type]
    assert chosen is not None and chosen.count == needed
    assert len(counting.tried) == len(set(counting.tried)) == len(trials) <= 2 * 4


def test_where_nothing_is_enough_everything_was_tried(tmp_path: Path) -> None:
    class Hopeless:
        def measure(self, model: object, what: str) -> Score:
            return Score(1.0 / int(what.split(maxsplit=1)[0]), 0.5, 0.0, 9.0, 24)

    trials, chosen = fewest(candidate(), [("first",), ("branch",), ("head",)], Hopeless(), lambda score: False)  # type: ignore[arg-type]
    assert chosen is None
    assert [trial.count for trial in trials] == [1, 2, 3]
    assert fewest(candidate(), [], Hopeless(), lambda score: False) == ([], None)  # type: ignore[arg-type]


def test_a_search_that_goes_on_starts_where_the_one_before_ended() -> None:
    class Counting:
        def measure(self, model: object, what: str) -> Score:
            return Score(max(0, 5 - int(what.split(maxsplit=1)[0])) / 10, 0.5, 0.0, 9.0, 24)

    order = [(name,) for name in ("first", "branch", "project", "sum", "pool", "head")]
    trials, chosen = fewest(candidate(), order, Counting(), lambda score: score.kl == 0.0, start=2)  # type: ignore[arg-type]
    assert chosen is not None and chosen.count == 5
    assert min(trial.count for trial in trials) == 3


def test_the_temperature_makes_an_overconfident_reference_calibrated() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(5_000, 4)).astype(np.float32)
    labels = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    assert temperature_of(logits, labels) == pytest.approx(1.0, abs=0.08)
    assert temperature_of(3 * logits, labels) == pytest.approx(3.0, rel=0.08)
    noise = rng.normal(size=(50, 4)).astype(np.float32)
    honest = expected_loss(logits, noise).mean()
    assert expected_loss(3 * logits, 3 * noise).mean() > 1.3 * honest
    assert expected_loss(3 * logits, 3 * noise, temperature=3.0).mean() == pytest.approx(honest, rel=1e-4)


def unequal_model(factor: float) -> onnx.ModelProto:
    """residual_model with the first channel of `branch` scaled up and down again in `project`: the same function."""
    model = residual_model()
    tensors = {t.name: t for t in model.graph.initializer}
    for name, index, by in (("w_branch", (0,), factor), ("w_project", (slice(None), 0), 1 / factor)):
        values = numpy_helper.to_array(tensors[name]).copy()
        values[index] *= by
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


def climbed(
    folder: Path, source: onnx.ModelProto, rescue: str, max_drop: float, asked: list[Candidate] | None = None
) -> Found:
    pixels = Pixels.of_array(
        folder / "pixels", np.random.default_rng(2).integers(0, 255, (48, 8, 8, 3), dtype=np.uint8)
    )

    def calibrate(graph: onnx.ModelProto) -> Calibrated:
        return Calibrated(PLACEMENT, calibrated(graph, PLACEMENT, pixels))

    def retrain(best: Candidate) -> None:
        assert asked is not None
        asked.append(best)

    search = Search(source, pixels.head(24), folder, ANSWERS / 100)
    return climb(calibrate(source), source, "auto", rescue, max_drop, Tools(search, pixels, calibrate, retrain))


def test_without_a_rescue_only_methods_are_tried_and_the_nearest_is_kept(tmp_path: Path) -> None:
    found = climbed(tmp_path, unequal_model(100.0), "none", 0.0)
    assert {rung.name for rung in found.rungs} <= set(METHODS)
    kept = [rung for rung in found.rungs if rung.kept][-1]
    assert kept.name == found.candidate.method
    assert kept.score.kl == min(rung.score.kl for rung in found.rungs)
    assert found.candidate.in_float == () and found.candidate.plain is None


def test_channels_far_apart_are_cured_by_scaling_them(tmp_path: Path) -> None:
    plain = climbed(tmp_path, residual_model(), "none", 0.0).rungs[0].score.kl
    source = unequal_model(1000.0)
    found = climbed(tmp_path, source, "exclude", 0.0)
    by_name = {rung.name: rung for rung in found.rungs}
    assert by_name["max"].score.kl > 20 * plain
    assert any(rung.kept for name, rung in by_name.items() if name.startswith("equalised"))
    assert [rung for rung in found.rungs if rung.kept][-1].score.kl < 3 * plain
    assert "equalised" in found.candidate.steps


def test_a_contract_that_nothing_keeps_climbs_to_the_last_rung_once(tmp_path: Path) -> None:
    asked: list[Candidate] = []
    found = climbed(tmp_path, residual_model(), "qat", 0.0, asked)
    assert any("in float" in rung.name for rung in found.rungs)
    assert any(rung.name == "weights rounded, bias corrected" for rung in found.rungs)
    assert len(asked) == 1 and asked[0].in_float == ()  # training starts from the graph with nothing in float
    assert min(rung.score.kl for rung in found.rungs) == [r for r in found.rungs if r.kept][-1].score.kl


def test_a_contract_that_the_free_rungs_keep_leaves_nothing_in_float(tmp_path: Path) -> None:
    found = climbed(tmp_path, residual_model(), "qat", 100.0, [])
    assert found.candidate.in_float == ()
    assert [rung.name for rung in found.rungs][-1] == "bias corrected"
    assert found.effects and found.noises  # the X-ray is filled in all the same


def test_a_layer_left_in_float_gets_its_old_bias_back(tmp_path: Path) -> None:
    pixels = Pixels.of_array(tmp_path / "p", np.random.default_rng(2).integers(0, 255, (16, 8, 8, 3), dtype=np.uint8))
    good = candidate().corrected(pixels)
    biases = {t.name: numpy_helper.to_array(t) for t in good.source.graph.initializer if t.name.endswith("_bias")}
    assert np.abs(biases["project_bias"]).max() > 0
    left = good.leaving(("project", "sum"))
    after = {t.name: numpy_helper.to_array(t) for t in left.source.graph.initializer if t.name.endswith("_bias")}
    assert (after["project_bias"] == 0).all()
    assert (after["branch_bias"] == biases["branch_bias"]).all()


def test_a_further_step_must_be_nearer_by_more_than_a_standard_error() -> None:
    rng = np.random.default_rng(0)
    was = rng.gamma(1.0, 0.01, 256)

    def score(each: np.ndarray) -> Score:
        return Score(float(each.mean()), 1.0, 0.0, 0.0, 256, each)

    steady, loud = 0.97 * was, 0.97 * was + rng.normal(0.0, 0.02, 256)
    loud -= loud.mean() - steady.mean()  # the same mean, but what is gained on one image is lost on another
    assert score(steady).nearer_than(score(was))
    assert not score(loud).nearer_than(score(was))
    assert not score(was).nearer_than(score(was)) and not score(was).nearer_than(score(steady))
