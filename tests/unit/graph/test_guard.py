from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgetl.errors import GraphError, InputError
from edgetl.graph.exclude import Effect
from edgetl.graph.guard import Contract, judge, measured, refusal
from edgetl.graph.options import ExportOptions
from edgetl.graph.search import Rung, Score, paired
from edgetl.measure.score import Paired
from edgetl.spec import Profile

BASE = Paired(
    drop_pp=0.2,
    drop_ci_pp=(-0.1, 0.4),
    p_mcnemar=0.5,
    flips=3,
    agreement=0.99,
    n=400,
    n_needed=900,
    kl=1e-3,
    kl_ci=(0.0, 2e-3),
    worst_class=(1, 2.0),
)


@pytest.mark.parametrize(
    ("contract", "paired_", "verdict", "met"),
    [
        (Contract(0.5), BASE, "met", True),
        (Contract(0.4), BASE, "met", True),
        (Contract(0.3), BASE, "unresolved", True),
        (Contract(0.3, confident=True), BASE, "unresolved", False),
        (Contract(0.1), BASE, "not_met", False),
        (Contract(0.5, max_class_drop=1.0), BASE, "not_met", False),
        (Contract(0.5, max_class_drop=2.0), BASE, "met", True),
        (Contract(0.0), replace(BASE, drop_pp=-0.3, drop_ci_pp=(-0.9, 0.0)), "met", True),
    ],
)
def test_the_verdict_follows_estimate_interval_and_worst_class(
    contract: Contract, paired_: Paired, verdict: str, met: bool
) -> None:
    assert contract.verdict(paired_) == verdict
    assert contract.met(verdict) is met


def judged(contract: Contract, test: Paired | None = None) -> dict[str, Any]:
    labels = ["rose", "tulip"]
    beside = None if test is None else measured(test, labels, "test", "simulated")
    rung = Rung("max", Score(0.01, 0.9, 0.1, 0.2, 64), 1.0, True)
    effects = (Effect(("conv_a", "add_a"), 0.02, 0.01, 64), Effect(("conv_b",), -0.01, 0.0, 64))
    return judge(contract, BASE, measured(BASE, labels, "val", "simulated"), beside, ([rung], ["conv_c"], effects))


def test_the_guard_object_has_what_scripts_rely_on() -> None:
    found = judged(Contract(0.3))
    assert found["worst_class"] == {"label": "tulip", "drop_pp": 2.0}
    assert found["drop_ci_pp"] == [-0.1, 0.4]
    assert found["excluded_nodes"] == ["conv_c"]
    assert found["rungs"][0] == {
        "name": "max",
        "drop_pp": 0.1,
        "seconds": 1.0,
        "kl": 0.01,
        "agreement": 0.9,
        "expected_drop_pp": 0.2,
        "n": 64,
        "kept": True,
    }
    wanted = {"verdict", "met", "drop_pp", "drop_ci_pp", "p_mcnemar", "n", "n_needed", "flips", "worst_class"}
    assert wanted | {"excluded_nodes", "rungs"} <= set(found)


def test_only_layers_that_were_seen_to_harm_are_called_harmful() -> None:
    assert [effect["nodes"] for effect in judged(Contract(0.3))["harmful"]] == [["conv_a", "add_a"]]


def test_the_drop_on_test_stands_beside_the_verdict_and_does_not_change_it() -> None:
    found = judged(Contract(0.3), replace(BASE, drop_pp=9.0, n=50))
    assert (found["verdict"], found["drop_pp"], found["test"]["drop_pp"], found["test"]["n"]) == (
        "unresolved",
        0.2,
        9.0,
        50,
    )
    assert judged(Contract(0.3))["test"] is None


def test_a_refusal_says_how_many_images_would_resolve_it() -> None:
    what, value, do = refusal(judged(Contract(0.3, confident=True)))
    assert "cannot show" in what
    assert "0.20 points" in value
    assert "900 images" in do


def test_a_refusal_names_the_layers_that_hurt_and_what_to_do_instead() -> None:
    what, value, do = refusal(judged(Contract(0.1)))
    assert "loses more" in what
    assert "conv_a" in value and "conv_b" not in value
    assert "fp16" in do and "--rescue qat" in do


def test_a_graph_that_overflows_is_an_error_and_not_a_drop() -> None:
    reference = np.eye(4, dtype=np.float32)
    with pytest.raises(GraphError, match="NaN or inf"):
        paired(reference, np.full_like(reference, np.inf), np.arange(4), 0.5)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"target": "jetpack4"}, "--target"),
        ({"method": "percentil"}, "calibration method"),
        ({"calib_size": "0"}, "--calib-size"),
        ({"calib_size": "many"}, "--calib-size"),
        ({"max_drop": -1.0}, "--max-drop"),
        ({"max_class_drop": 101.0}, "--max-class-drop"),
        ({"rescue": "pray"}, "--rescue"),
        ({"guard": "hope"}, "--guard"),
        ({"output": "label"}, "--output"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        ExportOptions(**wrong)


def test_targets_choose_the_profile() -> None:
    profiles = {
        t: ExportOptions(target=t).profile for t in ("jetpack5", "jetpack6.0", "jetpack6", "jetpack7", "tensorrt")
    }
    assert profiles == {
        "jetpack5": Profile.TRT8,
        "jetpack6.0": Profile.TRT8,
        "jetpack6": Profile.TRT10,
        "jetpack7": Profile.TRT10,
        "tensorrt": Profile.TRT10,
    }
