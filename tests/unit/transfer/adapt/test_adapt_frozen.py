"""Adapted heads on cached features: what folds is exact, and what is planted is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgetl.transfer.adapt import frozen
from edgetl.transfer.adapt.frozen import Domains, Moments
from edgetl.transfer.adapt.methods import METHODS, NONE
from edgetl.transfer.probe import Linear, fit_at

WIDTH, CLASSES, C = 24, 3, 0.1


def _planted(seed: int = 0, n: int = 60, shift: float = 3.0) -> tuple[Domains, np.ndarray]:
    """Three clusters; in the target every feature is moved and scaled, so that a source classifier fails there."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1.5, (CLASSES, WIDTH))
    targets = np.arange(2 * n) % CLASSES
    rows = centres[targets] + rng.normal(0, 1, (2 * n, WIDTH))
    source, other = rows[:n], rows[n:] * rng.uniform(0.3, 2, WIDTH) + rng.normal(0, shift, WIDTH)
    domains = Domains(source.astype(np.float32), targets[:n].astype(np.int64), other.astype(np.float32), CLASSES)
    return domains, targets[n:]


def _accuracy(head: Linear, domains: Domains, targets: np.ndarray) -> float:
    return float((head.logits(domains.target).argmax(1) == targets).mean())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("dann", "cdan")])
def test_it_repairs_a_planted_shift(method: str) -> None:
    domains, targets = _planted()
    head = fit_at(domains.source, domains.targets, CLASSES, C)
    assert _accuracy(head, domains, targets) < 0.75
    assert frozen.adapted(NONE, domains, head, C, 0) is head
    assert _accuracy(frozen.adapted(method, domains, head, C, 0), domains, targets) > 0.9


def test_standardising_folds_exactly() -> None:
    domains, _ = _planted()
    head = fit_at(domains.source, domains.targets, CLASSES, C)
    folded = frozen.adapted("standardise", domains, head, C, 0)
    source, target = domains.source.astype(np.float64), domains.target.astype(np.float64)
    own = len(target) / (len(target) + frozen.PRIOR_IMAGES)
    mean = own * target.mean(0) + (1 - own) * source.mean(0)
    scale = np.sqrt(own * target.var(0) + (1 - own) * source.var(0))
    as_source = (target - mean) / scale * source.std(0) + source.mean(0)
    np.testing.assert_allclose(folded.logits(domains.target), head.logits(as_source), rtol=1e-4, atol=1e-4)


def test_a_feature_that_slept_in_the_few_target_images_does_not_decide_when_it_wakes() -> None:
    """Ten unlabelled images in which one feature barely moves; in the images that come later it does."""
    domains, targets = _planted(n=120)
    few, later = domains.target[:10].copy(), domains.target[10:]
    few[:, 0] = few[:, 0].mean() + 1e-5 * np.arange(10)
    head = fit_at(domains.source, domains.targets, CLASSES, C)
    found = frozen.adapted("standardise", replace(domains, target=few), head, C, 0)
    assert float((found.logits(later).argmax(1) == targets[10:]).mean()) > 0.8
    moments = Moments.of(few)
    bare = moments.folded(*Moments.of(domains.source).unfolded(head))
    assert float((bare.logits(later).argmax(1) == targets[10:]).mean()) < 0.7, "the trap is one"


@pytest.mark.parametrize("method", [NONE, "standardise", "coral", "mcc"])
def test_the_head_is_the_classifier_of_what_both_domains_share(method: str) -> None:
    domains, _ = _planted()
    head = fit_at(domains.source, domains.targets, CLASSES, C)
    made = frozen.fitted(method, domains, head, C, 0)
    shared = made.target(domains.target) @ made.weight.T + made.bias
    np.testing.assert_allclose(made.head.logits(domains.target), shared, rtol=1e-3, atol=1e-3)
    # The source's images are seen through the source's side: what the target's side makes of them is another thing.
    assert (made.of_source(domains.source).argmax(1) == domains.targets).mean() > 0.95
    if method in (NONE, "standardise"):
        np.testing.assert_allclose(made.of_source(domains.source), head.logits(domains.source), rtol=1e-3, atol=1e-3)


def test_a_feature_that_never_varies_is_no_division_by_zero() -> None:
    domains, _ = _planted()
    domains.source[:, 0], domains.target[:, 1] = 2.0, -1.0
    head = fit_at(domains.source, domains.targets, CLASSES, C)
    assert np.isfinite(frozen.adapted("standardise", domains, head, C, 0).weight).all()


def test_the_layers_start_at_the_standardised_head_and_fold_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "STEPS", 0)
    domains, _ = _planted()
    head = fit_at(domains.source, domains.targets, CLASSES, C)
    untrained = frozen.adapted("mcc", domains, head, C, 0)
    standardised = frozen.adapted("standardise", domains, head, C, 0)
    np.testing.assert_allclose(untrained.weight, standardised.weight, atol=1e-5)
    np.testing.assert_allclose(untrained.bias, standardised.bias, atol=1e-4)


@pytest.mark.parametrize("method", ["mcc", "cdan"])
def test_the_same_seed_gives_the_same_head_whatever_ran_before(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "STEPS", 20)
    domains, _ = _planted()
    head = fit_at(domains.source, domains.targets, CLASSES, C)
    heads = [frozen.adapted(method, domains, head, C, seed) for seed in (0, 1, 0)]
    assert (heads[0].weight == heads[2].weight).all()
    assert (heads[0].weight != heads[1].weight).any()


def test_recolouring_gives_the_source_the_targets_covariance_as_skada_does() -> None:
    from skada import CORALAdapter

    rng = np.random.default_rng(0)
    source, target = (rng.normal(0, 1, (200, 4)) @ rng.normal(0, 1, (4, 4)) for _ in range(2))
    source, target = source - source.mean(0), target - target.mean(0)
    domains = Domains(source.astype(np.float32), np.zeros(200, np.int64), target.astype(np.float32), 1)
    ours = frozen.recolouring(domains, ridge=0.0)(domains.source)
    np.testing.assert_allclose(np.cov(ours.T), np.cov(target.T), rtol=1e-3, atol=1e-3)
    both, domain = np.concatenate([source, target]), np.repeat([1, -2], 200)
    theirs = CORALAdapter(reg=None).fit_transform(both, sample_domain=domain)
    np.testing.assert_allclose(ours, np.asarray(theirs)[:200], rtol=1e-3, atol=1e-3)


def test_moments_take_a_head_there_and_back() -> None:
    domains, _ = _planted()
    head = fit_at(domains.source, domains.targets, CLASSES, C)
    moments = Moments.of(domains.target)
    again = moments.folded(*moments.unfolded(head))
    np.testing.assert_allclose(again.weight, head.weight, atol=1e-6)
    np.testing.assert_allclose(again.bias, head.bias, atol=1e-5)
