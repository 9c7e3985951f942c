"""How far apart two sets of features are: MMD^2 with its permutation test, proxy A-distance, CORAL.

Features are float32 (M, D) of the source and (N, D) of the target. MMD^2 and CORAL are the very formulas that
`--adapt mmd` and `coral` bring down (edgetl.transfer.adapt.discrepancy).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import nan

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import hypergeom  # type: ignore[import-untyped]  # it ships none
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships none

from edgetl.transfer.adapt import discrepancy

KERNEL = "mean of 5 Gaussians exp(-d^2/b), b = 1/4, 1/2, 1, 2, 4 times the mean squared distance of all pairs"
ESTIMATOR = "unbiased (Gretton et al. 2012, eq. 3): about 0 for one domain, it can be below"
PERMUTATIONS = 999
_AT_ONCE = 250  # permutations in one matrix product: memory is (M + N) times this
_DOMAIN_C = 0.01  # of the domain classifier: more features than images is the rule

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Discrepancy:
    """MMD^2 of two sets; how often chance reaches it; what two halves of the source reach (95th percentile)."""

    mmd2: float
    p_value: float
    halves_p95: float


def discrepancy_of(source: Floats, target: Floats, seed: int, permutations: int = PERMUTATIONS) -> Discrepancy:
    """Multi-kernel MMD^2, unbiased, with a permutation test (Gretton et al. 2012, sections 2 and 5).

    p = (1 + permutations that reach it) / (1 + permutations), Phipson & Smyth 2010. The halves are `permutations`
    random splits of the source, with the kernel of the whole; of fewer than four rows there are none (NaN). Needs two
    rows a side.
    """
    rng = np.random.default_rng(seed)
    gram = _gram(source, target)
    m = len(source)
    observed = float(_mmd2(gram, np.arange(len(gram)) < m)[0])
    by_chance = _shuffled(gram, m, permutations, rng)
    halves_p95 = float(np.percentile(_shuffled(gram[:m, :m], m // 2, permutations, rng), 95)) if m >= 4 else nan
    reached = int((by_chance >= observed).sum())
    return Discrepancy(observed, (1 + reached) / (1 + permutations), halves_p95)


def mmd2(source: Floats, target: Floats) -> float:
    """The estimate alone."""
    return float(_mmd2(_gram(source, target), np.arange(len(source) + len(target)) < len(source))[0])


def _gram(source: Floats, target: Floats) -> npt.NDArray[np.float64]:
    both = torch.from_numpy(np.concatenate([source, target]).astype(np.float64))
    return np.asarray(discrepancy.kernel(both).numpy())


def _mmd2(gram: npt.NDArray[np.float64], first: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """discrepancy.unbiased for many ways to split the rows at once: `first` is (N,) or (N, P), one column a split."""
    members = first.reshape(len(gram), -1).astype(np.float64)
    inner = gram - np.diag(np.diag(gram))
    rows = inner.sum(0)
    m = members.sum(0)
    n = len(gram) - m
    within = (members * (inner @ members)).sum(0)
    out_of_first = rows @ members  # sums of the rows of the first set, over all columns
    across = out_of_first - within
    other = rows.sum() - 2 * across - within
    return np.asarray(within / (m * (m - 1)) + other / (n * (n - 1)) - 2 * across / (m * n))


def _shuffled(gram: npt.NDArray[np.float64], m: int, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """MMD^2 of `count` random splits of the rows into m and the rest."""
    found = []
    for start in range(0, count, _AT_ONCE):
        first = np.zeros((len(gram), min(_AT_ONCE, count - start)), bool)
        for column in first.T:
            column[rng.permutation(len(gram))[:m]] = True
        found.append(_mmd2(gram, first))
    return np.concatenate(found)


@dataclass(frozen=True)
class Separation:
    """Proxy A-distance of two sets, and how likely chance makes a classifier tell them apart so well."""

    a_distance: float
    p_value: float


def separation_of(source: Floats, target: Floats, seed: int) -> Separation:
    """Proxy A-distance 2 (1 - 2 err), clamped to 0..2 (Ben-David et al. 2007, section 4), with an exact test.

    err: of a logistic regression that tells source from target, fitted on one half of each and asked on the other,
    both ways round; the domains count alike whatever their sizes. It saturates at 2, where two sets are told apart
    without error: how far apart they are is MMD^2's to say.

    p is that of a classifier two-sample test (Lopez-Paz & Oquab 2017): were both one distribution, a held-out half's
    domains would be any arrangement of its answers, so Fisher's exact test holds in each; twice the smaller of the
    two, since they are not independent (Bonferroni). It sees a shift within far-apart classes, which MMD, whose
    kernels are as wide as the classes are apart, may not see.
    """
    features = np.concatenate([source, target]).astype(np.float64)
    domain = np.repeat([0, 1], [len(source), len(target)])
    rng = np.random.default_rng(seed)
    half = np.concatenate([rng.permutation(len(side)) % 2 for side in (source, target)])
    said, p_values = np.zeros(len(features), np.int64), []
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a classifier cut short has a larger error, and says so
        for held in (0, 1):
            scaler = StandardScaler().fit(features[half != held])
            model = LogisticRegression(C=_DOMAIN_C, max_iter=300, class_weight="balanced")
            model.fit(scaler.transform(features[half != held]), domain[half != held])
            said[half == held] = found = model.predict(scaler.transform(features[half == held]))
            p_values.append(_fisher(domain[half == held], found))
    wrong = said != domain
    error = (wrong[domain == 0].mean() + wrong[domain == 1].mean()) / 2
    return Separation(float(np.clip(2 * (1 - 2 * error), 0, 2)), min(1.0, 2 * min(p_values)))


def _fisher(domain: npt.NDArray[np.int64], said: npt.NDArray[np.int64]) -> float:
    """The chance that random answers, as many of each, are right about the target's rows as often as these."""
    hits = int((said[domain == 1] == 1).sum())
    return float(hypergeom.sf(hits - 1, len(domain), int((domain == 1).sum()), int((said == 1).sum())))


def a_distance(source: Floats, target: Floats, seed: int) -> float:
    """The distance alone."""
    return separation_of(source, target, seed).a_distance


def coral(source: Floats, target: Floats) -> float:
    """|C_s - C_t|_F^2 / (4 D^2), C being covariances (Sun & Saenko 2016). In units of the features, to the fourth."""
    sides = (torch.from_numpy(np.asarray(side, np.float64)) for side in (source, target))
    return float(discrepancy.coral(*sides))
