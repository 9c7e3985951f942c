"""The choice without target labels: its scores by definition, its rule on figures that were measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from edgetl.transfer.adapt import select
from edgetl.transfer.adapt.methods import METHODS, NONE
from edgetl.transfer.adapt.select import Score


def _score(name: str, agreement: float, classes: float) -> Score:
    return Score(name, agreement, classes, entropy=1.0, density=4.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=30))
def test_kappa_is_cohens(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs).T
    found = select.kappa(first, second, 4)
    if len(set(first) | set(second)) > 1:
        assert found == pytest.approx(cohen_kappa_score(first, second), abs=1e-9)
    else:
        assert found == 0, "both say one thing only: no evidence"


def test_density_is_the_entropy_of_the_neighbours() -> None:
    answers = select.probabilities(np.random.default_rng(0).normal(0, 2, (7, 3)))
    unit = [row / math.sqrt(sum(v * v for v in row)) for row in answers]
    total = 0.0
    for i in range(7):
        raw = {j: math.exp(float(unit[i] @ unit[j]) / 0.05) for j in range(7) if j != i}
        shares = [value / sum(raw.values()) for value in raw.values()]
        total -= sum(p * math.log(p) for p in shares if p > 0)
    assert select.neighbourhood_density(answers) == pytest.approx(total / 7)


def test_density_is_of_the_whole_set_however_large_and_in_whatever_order() -> None:
    """Images come in the order of their folders: the first ones are of the first classes."""
    logits = 6.0 * np.eye(5)[np.repeat(np.arange(5), 900)] + np.random.default_rng(0).normal(0, 1, (4500, 5))
    mixed = logits[np.random.default_rng(1).permutation(4500)]
    found = [select.score("x", rows, (rows, rows)).density for rows in (logits, mixed)]
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_score_of_certain_answers() -> None:
    logits = 50.0 * np.eye(4)[np.arange(40) % 4]
    found = select.score("mcc", logits, (logits, logits))
    assert (found.agreement, found.entropy) == (1.0, pytest.approx(0, abs=1e-6))
    assert found.effective_classes == pytest.approx(4)
    assert found.told()["name"] == "mcc"


# agreement and effective classes as measured on pacs_mini, mobilenet_v2 at 224 px (docs/log.md), beside what was best.
PHOTO_ART = {"none": (0.696, 6.43), "standardise": (0.760, 6.95), "coral": (0.731, 6.89), "mcc": (0.890, 6.69)}
PHOTO_CARTOON = {"none": (0.654, 3.70), "standardise": (0.629, 6.88), "coral": (0.601, 6.90), "mcc": (0.939, 6.25)}
PHOTO_SKETCH = {"none": (0.228, 3.84), "standardise": (0.549, 6.98), "coral": (0.511, 6.97), "mcc": (0.557, 6.88)}


@pytest.mark.parametrize(
    ("measured", "best"), [(PHOTO_ART, "mcc"), (PHOTO_CARTOON, "mcc"), (PHOTO_SKETCH, "standardise")]
)
def test_the_rule_on_measured_figures(measured: dict[str, tuple[float, float]], best: str) -> None:
    assert select.decide([_score(name, *found) for name, found in measured.items()])[0] == best


def test_negative_transfer_is_refused_and_said() -> None:
    kept, why = select.decide([_score(NONE, 0.811, 6.93), _score("coral", 0.761, 6.98)])
    assert kept == NONE
    assert "not expected to help" in why
    assert "0.761" in why


def test_a_collapsed_candidate_is_out_however_well_it_agrees() -> None:
    assert select.decide([_score(NONE, 0.5, 7.0), _score("mcc", 0.99, 2.0)])[0] == NONE


def test_where_source_only_has_collapsed_chance_agreement_is_no_reason_to_adapt() -> None:
    """Images of nothing (all black): source-only says one class, and what is adapted guesses."""
    kept, why = select.decide([_score(NONE, 0.0, 1.1), _score("standardise", 0.0, 3.0), _score("mmd", 0.19, 2.9)])
    assert kept == NONE and "not expected to help" in why
    assert select.decide([_score(NONE, 0.0, 1.1), _score("mmd", 0.29, 2.9)])[0] == "mmd"


@given(
    st.dictionaries(
        st.sampled_from([*METHODS, "mcc end to end"]),
        st.tuples(st.floats(-1, 1), st.floats(1, 7)),
        min_size=1,
    ),
    st.tuples(st.floats(-1, 1), st.floats(1, 7)),
)
def test_whatever_is_kept_agrees_better_than_source_only_or_source_only_has_collapsed(
    others: dict[str, tuple[float, float]], base: tuple[float, float]
) -> None:
    scores = [_score(NONE, *base), *(_score(name, *found) for name, found in others.items())]
    kept, why = select.decide(scores)
    assert why
    assert kept in {s.name for s in scores}
    if kept != NONE:
        collapsed = base[1] < select.COLLAPSED * max(s.effective_classes for s in scores)
        assert collapsed or others[kept][0] > base[0]
        assert others[kept][0] > select.SLIGHT


def test_halves_are_disjoint_stratified_and_hold_every_class() -> None:
    targets = np.array([0] * 10 + [1] * 7 + [2])
    first, second = select.halves_of(targets, 0)
    assert set(first) & set(second) == {17}, "a class of one image is in both"
    assert set(first) | set(second) == set(range(18))
    assert all(set(targets[half]) == {0, 1, 2} for half in (first, second))
    assert (select.halves_of(targets, 0)[0] == first).all()
