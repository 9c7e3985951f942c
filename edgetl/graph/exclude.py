"""Which layers do the harm, by measurement, and the fewest of them to leave in float.

A shortlist by each layer's own output error; then each group of it is left in float once and the whole network
measured on the search images, from where it differs on (graph/partial). The number of groups is found by doubling and
bisection, so the search costs tens of passes and not one per layer per candidate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.graph.candidate import Candidate
from edgetl.graph.groups import Group, groups
from edgetl.graph.local import LayerNoise
from edgetl.graph.macs import macs
from edgetl.graph.search import Score, Search

SHORTLIST = 16  # groups whose effect is measured, a pass of EFFECT_IMAGES each
EFFECT_IMAGES = 128
XRAY_SHORTLIST, XRAY_IMAGES = 8, 64  # where no rescue is needed: enough to look at, for a quarter of the cost
CHEAP_INT8 = 0.9  # what is left in float for a margin leaves this share of the MACs in INT8
LEAST_INT8 = 0.5  # below this an INT8 graph has no point: ship the fp16 one


@dataclass(frozen=True)
class Effect:
    """What a group's Q/DQ pairs do to the whole network: regained when its `nodes` alone stay float, on `n` images."""

    nodes: tuple[str, ...]
    kl_regained: float
    agreement_regained: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "nodes": list(self.nodes),
            "kl_regained": self.kl_regained,
            "agreement_regained": self.agreement_regained,
            "n": self.n,
        }


@dataclass(frozen=True)
class Trial:
    """One set of groups left in float: the first `count` of the ranking; `share` of the MACs is still quantised."""

    count: int
    share: float
    candidate: Candidate
    score: Score
    seconds: float


def shortlist(candidate: Candidate, noises: Mapping[str, LayerNoise]) -> list[Group]:
    """The groups of `candidate`, the one with the largest error of its own output first; unmeasured ones last."""
    found = groups(candidate.source, candidate.placement)
    return sorted(
        found, key=lambda group: min((noises[n].sqnr_db for n in group.nodes if n in noises), default=math.inf)
    )


def effects(
    candidate: Candidate,
    noises: Mapping[str, LayerNoise],
    search: Search,
    count: int = SHORTLIST,
    images: int = EFFECT_IMAGES,
) -> tuple[Effect, ...]:
    """The measured effect of the `count` noisiest groups, the most harmful first."""
    chosen = shortlist(candidate, noises)[:count]
    variants = [candidate.leaving(group.nodes).twin() for group in chosen]
    base, scores = search.measure_all(candidate.twin(), variants, "harm of layers", images)
    out = [
        Effect(group.nodes, base.kl - score.kl, score.agreement - base.agreement, score.n)
        for group, score in zip(chosen, scores, strict=True)
    ]
    return tuple(sorted(out, key=lambda e: (-e.kl_regained, e.nodes)))


def ranking(
    candidate: Candidate, measured: Sequence[Effect], noises: Mapping[str, LayerNoise]
) -> tuple[list[tuple[str, ...]], int]:
    """(groups in the order in which they are left in float, how many of them are cheap).

    Those that were seen to harm first, then by their own noise. First come the cheap ones: together they leave
    CHEAP_INT8 of the MACs quantised, a group that would break that waits. The others go down to LEAST_INT8.
    """
    harmful = [effect.nodes for effect in measured if effect.kl_regained > 0]
    known = {effect.nodes for effect in measured}
    order = harmful + [group.nodes for group in shortlist(candidate, noises) if group.nodes not in known]
    cheap = _within(candidate, [], order, CHEAP_INT8)
    others = [nodes for nodes in order if nodes not in cheap]
    return cheap + _within(candidate, cheap, others, LEAST_INT8), len(cheap)


def _within(
    candidate: Candidate, gone: list[tuple[str, ...]], order: Sequence[tuple[str, ...]], floor: float
) -> list[tuple[str, ...]]:
    """The groups of `order` that can follow `gone`, each in turn, while `floor` of the MACs stays quantised."""
    taken: list[tuple[str, ...]] = []
    for nodes in order:
        if _shares(candidate, [*gone, *taken, nodes])[-1] >= floor:
            taken.append(nodes)
    return taken


def _shares(candidate: Candidate, order: Sequence[tuple[str, ...]]) -> list[float]:
    """Share of the MACs that is quantised with the first 0, 1, 2, ... groups of `order` in float: falling."""
    counts = macs(candidate.source)
    total = max(1, sum(counts.values()))
    left = sum(counts.get(node, 0) for node in {node for node, _ in candidate.placement.weights})
    out = [left / total]
    for nodes in order:
        left -= sum(counts.get(node, 0) for node in nodes)
        out.append(left / total)
    return out


def fewest(
    candidate: Candidate,
    order: Sequence[tuple[str, ...]],
    search: Search,
    enough: Callable[[Score], bool],
    start: int = 0,
) -> tuple[list[Trial], Trial | None]:
    """(all trials, the one with the fewest of `order` in float that is `enough`; None where not even all are).

    start + 1, + 2, + 4, ... groups until one is enough, then bisection below it.
    """
    trials: dict[int, Trial] = {}
    shares = _shares(candidate, order)

    def good(count: int) -> bool:
        started = time.monotonic()
        left = candidate.leaving([node for nodes in order[:count] for node in nodes])
        score = search.measure(left.twin(), f"{count} groups in float")
        trials[count] = Trial(count, shares[count], left, score, time.monotonic() - started)
        return enough(score)

    low, high = start, start + 1
    while high <= len(order) and not good(high):
        low = high
        high = min(start + 2 * (high - start), len(order)) if high < len(order) else high + 1
    if high > len(order):
        return list(trials.values()), None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    return list(trials.values()), trials[high]
