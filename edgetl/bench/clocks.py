"""The bench's times: all candidates in one rotation, each beside the row that its ratio is told to, and the noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgetl.bench.entry import Entry
from edgetl.measure import noise, turns
from edgetl.measure.timing import Times, encoded_pool, time_backends
from edgetl.monitor import Monitor

if TYPE_CHECKING:
    from edgetl.bench.protocol import BenchData, BenchOptions


def time_all(entries: Sequence[Entry], base: Entry, data: BenchData, options: BenchOptions, monitor: Monitor) -> None:
    """Fill in times. Nothing is drawn meanwhile: a progress bar's own redraws would be in the p99.

    Ratios are told to `base` where it is timed, else to the first fp32 candidate that is, else to the first.
    """
    timed = timeable(entries)
    if not timed:
        return
    pool = encoded_pool(data.root, data.samples)
    on_gpu = any((entry.candidate.latency_evidence or "") != "host-cpu" for entry in timed)
    backends = {entry.name: entry.backend for entry in timed if entry.backend is not None}
    for batch in options.batches:
        monitor.say(f"timing {len(timed)} backends in turns, batch {batch}")
        watch = noise.Watch(gpu=on_gpu)
        times, failed = time_backends(backends, pool, data.preprocess, batch, options.effort, options.clock, watch)
        for entry in timed:
            entry.at(batch).times, entry.at(batch).error = times.get(entry.name), failed.get(entry.name)
        beside(timed, base, batch, watch.found(), options.seed)
        for line in spoken(timed, batch):
            monitor.warn(line)


def timeable(entries: Sequence[Entry]) -> list[Entry]:
    """Those whose time would mean something."""
    return [
        e for e in entries if e.error is None and e.backend is not None and e.candidate.latency_evidence is not None
    ]


def beside(timed: Sequence[Entry], base: Entry, batch: int, seen: dict[str, Any], seed: int) -> None:
    """Fill in ratio and noise of one batch size; `seen` is what noise.Watch found."""
    good = [entry for entry in timed if entry.at(batch).times is not None]
    if not good:
        return
    ranked = sorted(good, key=lambda entry: (entry is not base, entry.candidate.precision != "fp32"))
    reference = _times(ranked[0], batch)
    reference_spread = turns.spread(reference.turns)
    for entry in good:
        found, times = entry.at(batch), _times(entry, batch)
        itself = entry is ranked[0]
        found.ratio_to = f"{ranked[0].name}-b{batch}"
        found.ratio = (1.0, 1.0, 1.0) if itself else turns.ratio(times.turns, reference.turns, seed)
        spread = turns.spread(times.turns)
        why = [*seen["why"], *_own_reasons(times, spread, found.ratio, found.ratio_to)]
        found.noise = {
            "noisy": bool(why),
            **seen,
            "why": why,
            "spread": spread,
            "reference_spread": reference_spread,
            "steady": times.steady,
        }


def _own_reasons(
    times: Times, spread: float | None, ratio: tuple[float, float, float] | None, ratio_to: str
) -> list[str]:
    why = []
    if not times.steady:
        why.append("still not steady after warm-up")
    if spread is not None and spread > noise.PACE:
        why.append(f"its turns differ by +-{100 * spread:.0f} %")
    if ratio is not None and ratio[2] - ratio[1] > 2 * noise.RATIO * ratio[0]:
        why.append(f"its ratio to {ratio_to} is known to +-{50 * (ratio[2] - ratio[1]) / ratio[0]:.0f} % only")
    return why


def spoken(timed: Sequence[Entry], batch: int) -> list[str]:
    """Warnings: what disturbed all rows of a batch size at once, then what was of one alone."""
    noises = {e.name: found for e in timed if (found := e.at(batch).noise) is not None}
    common = shared(list(noises.values()))
    lines = []
    if common:
        advice = advice_on(list(noises.values()))
        lines.append(f"this machine was noisy (batch {batch}): {'; '.join(common)}. {advice}")
    for name, found in noises.items():
        own = [reason for reason in found["why"] if reason not in common]
        if own:
            lines.append(f"{name} (batch {batch}) is noisy: {'; '.join(own)}")
    return lines


def shared(noises: Sequence[dict[str, Any]]) -> list[str]:
    """The reasons that all rows have."""
    return [why for why in (noises[0]["why"] if noises else ()) if all(why in found["why"] for found in noises)]


def advice_on(noises: Sequence[dict[str, Any]]) -> str:
    """What to make of noisy figures."""
    if all(noise.ratios_hold(found) for found in noises):
        return "Quote ratios, not milliseconds"
    return "Not even ratios hold: long runs were interrupted more than short ones; measure again on a quieter machine"


def _times(entry: Entry, batch: int) -> Times:
    times = entry.at(batch).times
    assert times is not None
    return times
