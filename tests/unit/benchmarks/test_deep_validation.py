"""Deep embedded validation by its definition, against skada's, and on a shift whose risk is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from benchmarks import deep_validation


def _domains(shift: float, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source (n, 2), its classes, and the target, whose first feature is shifted; half of one class is in doubt."""
    rng = np.random.default_rng(3)
    source, target = rng.normal(0, 1, (n, 2)), rng.normal(0, 1, (n, 2)) + [shift, 0]
    classes = ((source[:, 1] > 0) ^ ((source[:, 0] > 1) & (rng.uniform(size=n) < 0.5))).astype(int)
    return source, classes, target


class Fixed(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types here
    """Answers from the second feature; nothing is fitted."""

    classes_ = np.array([0, 1])

    def fit(self, *_: Any, **__: Any) -> Fixed:
        """Nothing but the sign that it was called."""
        self.fitted_ = True
        return self

    def predict_proba(self, rows: np.ndarray, **_: Any) -> np.ndarray:
        """(N, 2)."""
        one = 1 / (1 + np.exp(-2 * rows[:, 1]))
        return np.stack([1 - one, one], 1)


class Plain(Pipeline):  # type: ignore[misc]
    """Does without skada's metadata."""

    def predict_proba(self, X: np.ndarray, **_: Any) -> np.ndarray:  # scikit-learn's name
        """(N, 2)."""
        return np.asarray(super().predict_proba(X))


def test_the_risk_is_skadas() -> None:
    metrics = pytest.importorskip("skada.metrics")
    source, classes, target = _domains(1.0)
    rows, labels = np.concatenate([source, target]), np.concatenate([classes, np.full(len(target), -1)])
    domain = np.repeat([1, -2], [len(source), len(target)])

    def column(wanted: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Its own loss is a row, which its column of weights makes a matrix of: a bug of skada 0.6."""
        return -np.log(answers[np.arange(len(wanted)), wanted])[:, None]

    theirs = metrics.DeepEmbeddedValidation(LogisticRegression(), column, random_state=0)
    pipeline = Plain([("same", FunctionTransformer()), ("fixed", Fixed())]).fit(rows, labels)
    expected = -theirs._score(None, pipeline, rows, labels, domain)
    fitted, held, _, wanted = train_test_split(source, classes, test_size=0.33, random_state=np.random.RandomState(0))
    losses = -np.log(Fixed().predict_proba(held)[np.arange(len(held)), wanted])
    weights = deep_validation.density_ratio(fitted, held, target, LogisticRegression())
    assert deep_validation.risk(weights, losses) == pytest.approx(expected, rel=1e-9)


def test_it_sees_the_risk_of_the_shifted_domain() -> None:
    """Errors are where the first feature is over 1: rare in the source (8 %), every fourth answer in the target."""
    source, classes, target = _domains(1.0, n=4000)
    wrong = ((source[:, 1] > 0).astype(int) != classes).astype(float)
    assert wrong.mean() < 0.1
    half = len(source) // 2
    weights = deep_validation.density_ratio(source[:half], source[half:], target)
    assert weights.mean() == pytest.approx(1, abs=0.15)
    assert deep_validation.risk(weights, wrong[half:]) == pytest.approx(0.25, abs=0.05)


def test_equal_domains_weigh_all_alike() -> None:
    losses = np.array([0.0, 1.0, 1.0, 0.0])
    assert deep_validation.risk(np.ones(4), losses) == 0.5
