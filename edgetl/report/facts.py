"""Everything a report says, gathered from a bundle and nothing else, before a word of it is written."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.bundle import Bundle
from edgetl.measure import answers as kept_answers
from edgetl.measure.answers import Answers
from edgetl.measure.noise import ratios_hold
from edgetl.report import accuracy, dataset, provenance, rows, training, variants
from edgetl.report.accuracy import Bin, Flips, Scores, Shown
from edgetl.report.privacy import last_part
from edgetl.report.rows import Measured
from edgetl.report.variants import Advice, Variant
from edgetl.report.xray import xray_of

FLIPS = 24  # images shown
MAPS = 4  # hits and as many misses


@dataclass(frozen=True)
class Layers:
    """The X-ray of the newest int8 graph: `rows` as the export wrote them, what matters most first."""

    rows: tuple[Mapping[str, Any], ...]
    graph: Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """One bundle. `scores`: of each set of answers, the reference first, then what is advised to ship.

    at: when the newest bench ended, ISO 8601, "" before any. notes: damage and gaps that a reader should know of.
    hits, misses: images to explain, of the network in PyTorch.
    """

    name: str
    model: str
    image_px: int
    fit: str
    classes: int
    labels: tuple[str, ...]
    adopted: bool
    at: str
    measured: tuple[Measured, ...]
    variants: tuple[Variant, ...]
    advice: tuple[Advice, ...]
    reference: Measured | None
    scores: tuple[Scores, ...]
    flips: Flips | None
    reliability: tuple[Bin, ...]
    hits: tuple[Shown, ...]
    misses: tuple[Shown, ...]
    training: training.Training | None
    data: dataset.Data
    layers: Layers | None
    provenance: provenance.Provenance
    notes: tuple[str, ...]
    answered: str  # when the answers were given; "" where there are none

    @property
    def main(self) -> Advice | None:
        """The advice for the first place, which the page opens with."""
        return self.advice[0] if self.advice else None

    @property
    def split(self) -> str:
        """The split that the page's accuracies are on; "" where nothing was measured."""
        return self.scores[0].split if self.scores else ""


def gather(bundle: Bundle) -> Facts:
    """Read all of it. Raises BundleError for damage that leaves nothing to say: files, answers, splits."""
    found, notes = rows.measured(bundle)
    where, more = rows.environments(bundle)
    data, about = dataset.data_of(bundle)
    answers = kept_answers.read(bundle)
    fitted = training.training(bundle)
    made = variants.variants(bundle, found)
    advice = variants.advise(made)
    if answers is not None and answers.labels != tuple(bundle.labels):
        notes.append(f"{kept_answers.FILE} is of an earlier generation with other classes, and is left out")
        answers = None
    reference = _reference(found, answers)
    ours = _answering(advice, answers)
    hits, misses = _to_explain(answers)
    model = bundle.manifest["model"]
    return Facts(
        name=bundle.path.name,
        model=_model(model),
        image_px=bundle.preprocess.size,
        fit=str(bundle.manifest["preprocess"].get("fit", "")),
        classes=len(bundle.labels),
        labels=tuple(bundle.labels),
        adopted=bundle.manifest["made_by"] == "adopt",
        at=max((one.at for one in found), default=""),
        measured=tuple(found),
        variants=made,
        advice=advice,
        reference=reference,
        scores=_scores(answers, ours, fitted),
        flips=_flips(answers, ours, made),
        reliability=accuracy.reliability(answers, ours or answers.reference) if answers else (),
        hits=tuple(hits),
        misses=tuple(misses),
        training=fitted,
        data=data,
        layers=_layers(bundle, advice),
        provenance=provenance.provenance(bundle, found, where),
        notes=tuple(dict.fromkeys([*notes, *more, *about, *_gaps(bundle, found, data), *_busy(found, where)])),
        answered=answers.at if answers else "",
    )


def _model(model: Mapping[str, Any]) -> str:
    if model.get("backbone") in (None, "adopted"):
        return "adopted graph " + last_part(str(model.get("file") or "")) if model.get("file") else "adopted graph"
    arguments = ", ".join(f"{k} {v}" for k, v in (model.get("backbone_args") or {}).items())
    return str(model["backbone"]) + (f" ({arguments})" if arguments else "")


def _reference(found: Sequence[Measured], answers: Answers | None) -> Measured | None:
    """The row that drops are against: as the answers name it, else PyTorch's."""
    here = [one for one in found if one.ok and not one.host]
    if answers is not None:
        named = [one for one in here if one.candidate == answers.reference]
        if named:
            return min(named, key=lambda one: one.row.batch)
    torch = [one for one in here if one.row.backend == "torch"]
    return min(torch, key=lambda one: one.row.batch, default=None)


def _answering(advice: Sequence[Advice], answers: Answers | None) -> str | None:
    """The candidate of the answers that stands for what is advised; None where none does."""
    if answers is None or not advice or advice[0].ship is None:
        return None
    named = [one.candidate for one in advice[0].ship.rows if one.ok and one.candidate in answers.names]
    return named[0] if named else None


def _scores(answers: Answers | None, ours: str | None, fitted: training.Training | None) -> tuple[Scores, ...]:
    found: list[Scores | None] = []
    if answers is not None:
        found = [accuracy.of_answers(answers, answers.reference)]
        if ours is not None and ours != answers.reference:
            found.append(accuracy.of_answers(answers, ours))
    if not any(found) and fitted is not None:
        found = [fitted.test or fitted.tuned]
    return tuple(one for one in found if one is not None)


def _flips(answers: Answers | None, ours: str | None, made: Sequence[Variant]) -> Flips | None:
    """Of what is advised; where that did not change an answer, of the int8 graph, which is what people ask about."""
    if answers is None:
        return None
    int8 = [one.candidate for v in made if v.precision == "int8" for one in v.rows if one.ok]
    found = [accuracy.flips(answers, name, FLIPS) for name in dict.fromkeys([*([ours] if ours else []), *int8])]
    known = [one for one in found if one is not None]
    return next((one for one in known if one.total), known[0] if known else None)


def _to_explain(answers: Answers | None) -> tuple[list[Shown], list[Shown]]:
    return accuracy.hits_and_misses(answers, answers.reference, MAPS) if answers else ([], [])


def _layers(bundle: Bundle, advice: Sequence[Advice]) -> Layers | None:
    """Of the profile that the page opens with, where its int8 graph has an X-ray; else of the newest that has one."""
    with_xray = [
        graph["profile"]
        for graph in bundle.artifacts("graph", precision="int8")
        if bundle.artifacts("layers", made_from=graph["sha256"])
    ]
    if not with_xray:
        return None
    first = advice[0].profile if advice else None
    found = xray_of(bundle, first if first in with_xray else with_xray[-1])
    return Layers(tuple(dict(row) for row in found["layers"]), found["graph"])


def _busy(found: Sequence[Measured], where: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Times that something disturbed, as the bench saw it; of older rows, a machine that was busy when it began."""
    timed = [one for one in found if one.ok and one.row.latency_ms]
    noisy = [one for one in timed if (one.row.noise or {}).get("noisy")]
    out = []
    if noisy:
        told = [[str(why) for why in (one.row.noise or {})["why"]] for one in noisy]
        of_all = [why for why in told[0] if all(why in others for others in told)] or told[0]
        hold = all(ratios_hold(one.row.noise or {}) for one in noisy)
        trust = "trust the ratio to the reference, measured in turns, rather than the milliseconds"
        again = "not even ratios hold; measure again on a quieter machine"
        out.append(
            f"{len(noisy)} of {len(timed)} times were taken on a noisy machine "
            f"({'; '.join(of_all)}): {trust if hold else again}."
        )
    for identity in dict.fromkeys(one.row.environment for one in timed if one.row.noise is None):
        machine = where.get(identity, {})
        load, cores = machine.get("load_1m"), machine.get("affinity") or machine.get("cores")
        if isinstance(load, int | float) and isinstance(cores, int) and load > cores:
            out.append(
                f"The machine was busy when a bench began (load {load:.1f} on {cores} cores): times are longer and "
                "less steady than they would be; compare variants with each other rather than with a clock."
            )
    return out


def _gaps(bundle: Bundle, found: Sequence[Measured], data: dataset.Data) -> list[str]:
    """What is not there, and the command that adds it."""
    name, out = shlex.quote(bundle.path.name), []
    if not bundle.artifacts("graph"):
        out.append(f"No graph was exported yet: `edgetl export {name} --int8` makes what can be shipped.")
    if not found:
        out.append(f"Nothing was measured yet: `edgetl bench {name}` adds accuracy, latency, size and flipped images.")
    if data.splits and not any(split.name == "test" and split.n for split in data.splits):
        out.append("There is no test split: figures are on val, on which the model was also selected, and flatter it.")
    failed = [one for one in found if not one.ok]
    out += [f"{one.row.id} failed and has no figures (see the table of all measurements)." for one in failed]
    benches = {one.at for one in found if one.ok and not one.host}
    if len(benches) > 1:
        out.append(
            f"Figures of {len(benches)} benches stand side by side; `edgetl bench {name}` measures all in turns."
        )
    return out
