"""Temperature and thresholds against their definitions, and whether a promise is kept as often as promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss

from edgetl.errors import InputError
from edgetl.measure.confidence import (
    ALPHA,
    PRECISIONS,
    abstain_below,
    confidence_of,
    negative_log_likelihood,
    temperature_left,
    temperature_of,
    threshold_for,
)
from edgetl.runtime.classify import softmax


def drawn(seed: int, n: int, sharpness: float = 1.0, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Logits and classes drawn from softmax(logits), then the logits times `sharpness`: its temperature."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, classes))
    targets = np.array([rng.choice(classes, p=row) for row in softmax(logits)])
    return sharpness * logits, targets


@pytest.mark.parametrize("sharpness", [0.25, 1.0, 4.0])
def test_the_temperature_is_found_again_and_makes_the_probabilities_honest(sharpness: float) -> None:
    val, test = drawn(0, 3000, sharpness), drawn(1, 3000, sharpness)
    found = confidence_of(val, test)
    assert found["temperature"] == pytest.approx(sharpness, rel=0.08)
    assert found["test"]["ece_calibrated"] < 0.04
    if sharpness != 1.0:
        assert found["test"]["ece"] > 2 * found["test"]["ece_calibrated"]
        assert found["test"]["nll_calibrated"] < found["test"]["nll"]


@given(st.integers(0, 1000), st.integers(5, 200), st.floats(0.3, 3))
@settings(max_examples=25)
def test_without_a_prior_it_is_the_maximum_likelihood(seed: int, n: int, sharpness: float) -> None:
    logits, targets = drawn(seed, n, sharpness)
    best = minimize_scalar(
        lambda b: negative_log_likelihood(b * logits, targets), bounds=(0.05, 20), method="bounded"
    ).fun
    found = negative_log_likelihood(logits / temperature_of(logits, targets, prior_images=0), targets)
    assert found <= best + 1e-6
    assert negative_log_likelihood(logits, targets) == pytest.approx(
        log_loss(targets, softmax(logits), labels=range(4)), rel=1e-6
    )


def test_a_few_images_that_are_all_right_do_not_make_it_sure_of_everything() -> None:
    logits = 4.0 * np.eye(3)
    few, many = (temperature_of(np.tile(logits, (k, 1)), np.tile(np.arange(3), k)) for k in (1, 300))
    assert 0.75 < few < 1.0
    assert many < few
    assert temperature_of(np.zeros((4, 3)), np.array([0, 1, 2, 0])) > 0  # nothing to learn from equal logits


def test_a_threshold_keeps_its_precision_as_often_as_it_promises() -> None:
    """Of 400 bundles, the share whose true precision is below the promised one stays under ALPHA."""
    broken = reached = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        sure = rng.uniform(0.3, 1.0, 300)
        found = threshold_for(sure, rng.random(300) < sure, 0.8)
        if found.threshold is not None:
            reached += 1
            broken += (1.0 + found.threshold) / 2 < 0.8  # what is answered is right (t + 1) / 2 of the time
    assert reached > 200
    assert broken / 400 <= ALPHA


def test_coverage_is_what_is_answered_and_more_precision_covers_less() -> None:
    logits, targets = drawn(3, 2000)
    sure, right = softmax(logits).max(axis=1), logits.argmax(axis=1) == targets
    found = [threshold_for(sure, right, p) for p in (0.65, 0.7, 0.8)]
    for one in found:
        answered = sure >= one.threshold
        assert one.coverage == pytest.approx(answered.mean())
        assert right[answered].mean() > one.precision, "with room for what 2,000 images do not tell"
    assert [one.coverage for one in found] == sorted((one.coverage for one in found), reverse=True)


def test_what_the_images_cannot_show_is_not_promised() -> None:
    few = threshold_for(np.full(40, 0.99), np.ones(40, bool), 0.99)
    assert few.threshold is None
    assert few.n_needed is not None and few.n_needed > 40
    enough = threshold_for(np.full(800, 0.99), np.ones(800, bool), 0.99)
    assert (enough.threshold, enough.coverage) == (0.99, 1.0)
    wrong = threshold_for(np.linspace(0, 1, 500), np.zeros(500, bool), 0.5)
    assert (wrong.threshold, wrong.n_needed) == (None, None)
    for precision in (0.0, 1.0, 95.0):
        with pytest.raises(InputError, match="between 0 and 1"):
            threshold_for(np.ones(3), np.ones(3, bool), precision)


def manifest(**confidence: Any) -> dict[str, Any]:
    graphs = [
        {"kind": "graph", "sha256": "a", "temperature": 2.5},
        {"kind": "graph", "sha256": "b"},
        {"kind": "engine", "sha256": "c", "made_from": "a"},
        {"kind": "engine", "sha256": "d", "made_from": "b"},
    ]
    return {"artifacts": graphs, "confidence": confidence} if confidence else {"artifacts": graphs}


def test_a_temperature_is_applied_once() -> None:
    found = manifest(temperature=2.5)
    assert [temperature_left(found, record) for record in found["artifacts"]] == [1.0, 2.5, 1.0, 2.5]
    assert temperature_left(found, {"kind": "checkpoint", "sha256": "e"}) == 2.5
    assert temperature_left(manifest(), {"kind": "graph", "sha256": "b"}) == 1.0, "an older bundle knows none"


def test_the_threshold_of_the_next_higher_precision_is_taken() -> None:
    logits, targets = drawn(5, 2000)
    found = manifest(**confidence_of((logits, targets), None, wanted=0.72))
    rows = found["confidence"]["abstain"]
    assert {row["precision"] for row in rows} == {*PRECISIONS, 0.72}
    row = abstain_below(found, None)
    assert row is not None and row["precision"] == 0.72
    row = abstain_below(found, 0.75)
    assert row is not None and row["precision"] == 0.8
    assert abstain_below(manifest(**confidence_of((logits, targets), None)), None) is None
    with pytest.raises(InputError, match=r"cannot be promised.*mistakes.*or ask for 0.\d+ at most"):
        abstain_below(found, 0.995)
    with pytest.raises(InputError, match="no threshold"):
        abstain_below(found, 0.999)
    with pytest.raises(InputError, match="no threshold"):
        abstain_below(manifest(), 0.9)
    with pytest.raises(InputError, match="between 0 and 1"):
        abstain_below(found, 95)
