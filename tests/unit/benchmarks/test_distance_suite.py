"""The suite that the limits of `edgetl domains` come from: what a probe keeps of another domain, and its notes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.distance import Domain, compared, kept
from benchmarks.tables_transfer import distance_notes


def domain(shift: float = 0.0, swapped: bool = False, seed: int = 0) -> Domain:
    """Two classes 6 apart on the first of five axes, moved by `shift` along it; `swapped`: under each other's name."""
    rng = np.random.default_rng(seed)
    targets = np.arange(120) % 2
    features = rng.normal(size=(120, 5))
    features[:, 0] += 6 * targets + shift
    return Domain(features, 1 - targets if swapped else targets, within=1.0)


def test_what_a_probe_keeps_is_all_in_the_same_domain_nothing_at_chance_and_less_than_nothing_when_misled() -> None:
    assert kept(domain(), domain(seed=1)) == pytest.approx(1.0, abs=0.05)
    assert kept(domain(), domain(shift=30)) == pytest.approx(0.0)  # all is taken for one class
    assert kept(domain(), domain(swapped=True)) == pytest.approx(-1.0, abs=0.05)


def test_the_notes_say_what_is_kept_where_the_verdict_is_which() -> None:
    pairs = [compared(domain(), domain(shift, seed=1)) for shift in (0.0, 30.0)]
    rows = [{"values": {"features": "mobilenet_v2", "n": 120, **pair}} for pair in pairs]
    assert pairs[0]["mmd2"] < 0.01 < 0.15 < pairs[1]["mmd2"] and pairs[1]["a_distance"] == 2.0
    (note, _) = distance_notes(rows)
    assert "same: 100 %" in note and "far: 0 %" in note and "rho -1.00" in note
