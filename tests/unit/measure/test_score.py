"""Scores against scikit-learn and hand counts; pairs against counts made image by image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from edgetl.errors import BundleError
from edgetl.measure import TASKS, compare, metrics, softmax, task_of
from edgetl.measure.score import WHOLE_MATRIX, confusions, expected_calibration_error

LABELS = ["daisy", "rose", "tulip"]


def draw(seed: int, n: int, spread: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    return (rng.normal(size=(n, 3)) + spread * np.eye(3)[targets]).astype(np.float32), targets


@given(st.integers(0, 10_000), st.integers(3, 120))
@settings(max_examples=40)
def test_metrics_are_scikit_learns(seed: int, n: int) -> None:
    logits, targets = draw(seed, n)
    targets[:3] = range(3)  # with a class that never occurs the macro average is another (see below)
    found, predicted = metrics(logits, targets, LABELS), logits.argmax(axis=1)
    want = precision_recall_fscore_support(targets, predicted, labels=range(3), zero_division=0)
    for i, label in enumerate(LABELS):
        one = found["per_class"][label]
        assert [one["precision"], one["recall"], one["f1"], one["n"]] == pytest.approx([column[i] for column in want])
    macro = precision_recall_fscore_support(targets, predicted, average="macro", zero_division=0)
    assert [found["macro_precision"], found["macro_recall"], found["macro_f1"]] == pytest.approx(macro[:3])
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert found["accuracy_ci"][0] <= found["accuracy"] <= found["accuracy_ci"][1]


def test_a_class_that_never_occurs_does_not_pull_the_macro_average_down() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 1]]
    found = metrics(logits, np.array([0, 1, 1]), LABELS)
    assert found["macro_f1"] == 1.0
    assert found["per_class"]["tulip"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 0}


@given(st.integers(0, 10_000), st.integers(1, 80))
@settings(max_examples=30)
def test_a_class_without_a_test_image_leaves_scikit_learns_macro_over_the_others(seed: int, n: int) -> None:
    logits, targets = draw(seed, n, spread=1.0)
    targets[targets == 1] = 2  # no rose is there, though some are answered
    found, predicted = metrics(logits, targets, LABELS), logits.argmax(axis=1)
    there = sorted(set(targets.tolist()))
    want = precision_recall_fscore_support(targets, predicted, labels=there, average="macro", zero_division=0)
    assert [found["macro_precision"], found["macro_recall"], found["macro_f1"]] == pytest.approx(want[:3])
    assert found["per_class"]["rose"]["recall"] == 0.0


@given(st.integers(0, 10_000), st.integers(1, 200))
@settings(max_examples=30)
def test_the_confusion_matrix_is_scikit_learns(seed: int, n: int) -> None:
    logits, targets = draw(seed, n, spread=0.5)
    found = metrics(logits, targets, LABELS)
    want = confusion_matrix(targets, logits.argmax(axis=1), labels=range(3))
    assert found["confusion"] == want.tolist()
    wrong = [(LABELS[i], LABELS[j], int(want[i, j])) for i in range(3) for j in range(3) if i != j and want[i, j]]
    assert sorted(confusions(found, LABELS, most=9)) == sorted(wrong)


def test_the_confusion_matrix_of_many_classes_leaves_its_zeros_out() -> None:
    labels = [str(i) for i in range(WHOLE_MATRIX + 1)]
    answers, targets = np.array([0, 5, 5, 100]), np.array([0, 7, 7, 100])
    found = metrics(np.eye(len(labels))[answers], targets, labels)
    assert found["confusion"] == {"cells": [[0, 0, 1], [7, 5, 2], [100, 100, 1]]}
    assert confusions(found, labels) == [("7", "5", 2)]
    whole = metrics(np.eye(WHOLE_MATRIX)[[0]], np.array([0]), labels[:-1])
    assert len(whole["confusion"]) == len(whole["confusion"][0]) == WHOLE_MATRIX


def test_ece_of_a_network_that_is_sure_and_wrong_half_the_time() -> None:
    logits = np.array([[20.0, 0.0]] * 10, dtype=np.float32)
    assert expected_calibration_error(logits, np.array([0, 1] * 5)) == pytest.approx(0.5, abs=1e-6)


def test_ece_of_calibrated_answers_is_small() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40_000, 2)) * 2
    targets = (rng.random(40_000) < softmax(logits)[:, 1]).astype(np.int64)
    assert expected_calibration_error(logits, targets) < 0.01


@given(st.integers(0, 10_000), st.integers(1, 200), st.floats(0, 3))
@settings(max_examples=40)
def test_compare_counts_image_by_image(seed: int, n: int, noise: float) -> None:
    before, targets = draw(seed, n)
    after = (before + noise * np.random.default_rng(seed + 1).normal(size=before.shape)).astype(np.float32)
    found = compare(before, after, targets, seed=0, max_drop=0.5)
    was, now = before.argmax(1) == targets, after.argmax(1) == targets
    assert found.drop_pp == pytest.approx(100 * (was.mean() - now.mean()))
    assert found.flips == sum(a != b for a, b in zip(before.argmax(1), after.argmax(1), strict=True))
    assert found.agreement == pytest.approx(1 - found.flips / n)
    assert found.drop_ci_pp[0] <= found.drop_pp <= found.drop_ci_pp[1]
    drops = {c: 100 * (was[targets == c].mean() - now[targets == c].mean()) for c in set(targets.tolist())}
    assert found.worst_class[1] == pytest.approx(max(drops.values()))
    assert drops[found.worst_class[0]] == pytest.approx(max(drops.values()))
    assert found.kl_ci[0] - 1e-12 <= found.kl <= found.kl_ci[1] + 1e-12 or n < 20
    assert found.n_needed is not None
    assert 0 < found.p_mcnemar <= 1


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 4000), st.sampled_from([0.0, 0.5, 1.0, 20.0]))
def test_what_so_many_images_cannot_show_wants_more_of_them(lost: int, won: int, same: int, max_drop: float) -> None:
    """27 images at a drop of 7.4 points were told that 14 would show it to be within 20."""
    n = lost + won + same
    right, wrong = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    before, after = (
        np.repeat(np.concatenate(pair), (lost, won, same), 0).astype(np.float32)
        for pair in (
            (right, wrong, right),
            (wrong, right, right),
        )
    )
    found = compare(before, after, np.zeros(n, np.int64), max_drop=max_drop)
    if found.drop_pp <= max_drop < found.drop_ci_pp[1]:
        assert found.n_needed is None or found.n_needed > n


def test_compare_with_itself() -> None:
    logits, targets = draw(0, 50)
    found = compare(logits, logits, targets)
    assert (found.drop_pp, found.flips, found.agreement, found.kl, found.p_mcnemar) == (0.0, 0, 1.0, 0.0, 1.0)
    assert found.n_needed is None
    assert found.drop_ci_pp[1] > 1.0  # 50 images without a change do not exclude a change in 1 of 100


def test_kl_is_that_of_the_definition_and_knows_no_zero() -> None:
    before, targets = draw(1, 30)
    after, _ = draw(2, 30)
    p, q = softmax(before), softmax(after)
    assert compare(before, after, targets).kl == pytest.approx(float((p * np.log(p / q)).sum(1).mean()))
    sure = np.array([[500.0, 0.0, -500.0]])
    assert np.isfinite(compare(sure, -sure, np.array([0])).kl)


@pytest.mark.parametrize(
    ("logits", "targets", "said"),
    [
        (np.zeros((2, 3)), np.zeros(3, int), "do not fit"),
        (np.zeros((0, 3)), np.zeros(0, int), "do not fit"),
        (np.array([[np.inf, 0.0]]), np.array([0]), "not finite"),
        (np.array([[np.nan, 0.0]]), np.array([0]), "not finite"),
        (np.zeros((1, 2)), np.array([2]), "beyond the 2"),
        (np.zeros((1, 2)), np.array([-1]), "beyond the 2"),
    ],
)
def test_what_does_not_belong_together_is_refused(logits: np.ndarray, targets: np.ndarray, said: str) -> None:
    for call in (lambda: metrics(logits, targets, LABELS), lambda: compare(logits, logits, targets)):
        with pytest.raises(ValueError, match=said):
            call()


def test_the_task_is_a_seam() -> None:
    task = task_of({"task": "classification"})
    logits, targets = draw(0, 40)
    assert task is TASKS["classification"]
    assert task.metrics(logits, targets, LABELS)[task.score] == metrics(logits, targets, LABELS)["accuracy"]
    assert task.compare(logits, logits, targets).n == 40
    assert task.decode(np.array([0.0, 2.0, 1.0]), LABELS, 2)[0]["label"] == "rose"
    with pytest.raises(BundleError, match="segmentation"):
        task_of({"task": "segmentation"})
