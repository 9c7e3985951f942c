from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgetl.errors import GraphError, InputError
from edgetl.graph.guard import Contract, Rung, judge, paired, refusal
from edgetl.graph.options import ExportOptions
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


def test_the_guard_object_has_what_scripts_rely_on() -> None:
    found = judge(Contract(0.3), BASE, ["rose", "tulip"], [Rung("max", 0.1, 1.0, 0.01, 0.9, 64)], "val", "simulated")
    assert found["worst_class"] == {"label": "tulip", "drop_pp": 2.0}
    assert found["drop_ci_pp"] == [-0.1, 0.4]
    assert found["rungs"][0]["name"] == "max"
    wanted = {"verdict", "met", "drop_pp", "drop_ci_pp", "p_mcnemar", "n", "n_needed", "flips", "worst_class"}
    assert wanted | {"excluded_nodes", "rungs"} <= set(found)


def test_a_refusal_says_how_many_images_would_resolve_it() -> None:
    guard = judge(Contract(0.3, confident=True), BASE, ["rose", "tulip"], [], "val", "simulated")
    what, value, do = refusal(guard)
    assert "cannot show" in what
    assert "0.20 points" in value
    assert "900 images" in do


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
        ({"rescue": "qat"}, "--rescue"),
        ({"guard": "hope"}, "--guard"),
        ({"output": "label"}, "--output"),
        ({"target": "cpu", "int8": True}, "INT8 for onnxruntime"),
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
