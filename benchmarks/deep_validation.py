"""Deep embedded validation, an estimate of the risk on the target from labelled source images: a rival of `select`.

You, Wang, Long & Jordan 2019, "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
LARGEST = 50.0  # of a log odds: further ones would overflow
Floats = npt.NDArray[np.floating]


def discriminator() -> ClassifierMixin:
    """Of the domains: logistic, its penalty chosen by three-fold log-loss."""
    said = {"l1_ratios": (0,), "use_legacy_attributes": False}  # the coming defaults
    chosen = LogisticRegressionCV(Cs=STRENGTHS, cv=3, scoring="neg_log_loss", max_iter=300, **said)
    return make_pipeline(StandardScaler(), chosen)


def density_ratio(source: Floats, held: Floats, target: Floats, tells: Any = None) -> npt.NDArray[np.float64]:
    """p_target / p_source at held-out source features (V, K): (n_s / n_t) J(target | f) / J(source | f) (eq. 5).

    The discriminator `tells` is fitted on source features (N, K) without the held-out ones, and on the target's (M, K).
    """
    tells = discriminator() if tells is None else tells
    tells.fit(np.concatenate([source, target]), np.repeat([1, 0], [len(source), len(target)]))
    odds = np.clip(tells.decision_function(held), -LARGEST, LARGEST)  # of source against target
    return np.asarray(len(source) / len(target) * np.exp(-odds))


def risk(weights: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> float:
    """mean(w l) + eta mean(w) - eta, eta = -Cov(w l, w) / Var(w): algorithm 1, the weights being the control variate.

    Their expectation is 1; what their mean is off from it is taken out of the weighed losses' mean.
    """
    weighed = weights * losses
    spread = np.var(weights, ddof=1)
    eta = 0.0 if spread == 0 else -np.cov(weighed, weights)[0, 1] / spread
    return float(weighed.mean() + eta * weights.mean() - eta)
