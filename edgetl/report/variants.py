"""What can be shipped, what each variant costs, and which to choose where: pure functions over what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.bench.resize import BEHIND_DEEPSTREAM
from edgetl.bundle import Bundle
from edgetl.report.rows import Measured

PRECISIONS = ("fp32", "fp16", "int8")
TENSORRT = ("trt8", "trt10")
PLACES = {
    "trt8": "NVIDIA Jetson, JetPack 5 to 6.0 (TensorRT 8.5 to 9)",
    "trt10": "NVIDIA Jetson, JetPack 6.1 and later, or a PC with TensorRT 10.3 and later",
    "cpu": "a CPU with ONNX Runtime",
}
MET, UNRESOLVED, NOT_MET = "met", "unresolved", "not_met"


@dataclass(frozen=True)
class Loss:
    """Accuracy lost against the reference, percentage points, positive is worse.

    evidence: one of runtime.EVIDENCE; p: McNemar's exact p-value, None where it was not recorded.
    """

    drop_pp: float
    ci_pp: tuple[float, float] | None
    n: int
    split: str
    flips: int | None
    agreement: float | None
    evidence: str
    p: float | None = None


@dataclass(frozen=True)
class Contract:
    """What an int8 graph was exported under (`--max-drop`), and the verdict on val.

    needed: images to resolve it. labels: false where it was judged by agreement, on photos without labels.
    """

    verdict: str
    met: bool
    max_drop: float
    loss: Loss
    needed: int | None
    labels: bool
    worst_class: tuple[str, float]


@dataclass(frozen=True)
class Variant:
    """A graph that can be shipped, and what was measured of it. `rows`: its bench rows, smallest batch first."""

    profile: str
    precision: str
    input: str
    sha256: str
    bytes: int
    contract: Contract | None
    int8_share: float | None
    rows: tuple[Measured, ...]
    target: str | None = None

    @property
    def name(self) -> str:
        """As a person says it: "int8 (trt10)"."""
        return f"{self.precision} ({self.profile}{'' if self.input == 'float32' else ', ' + self.input})"

    def timed(self) -> Measured | None:
        """The row whose latency is of where the graph is meant to run, a device's first; None where there is none."""
        there = [one for one in self.rows if one.ok and one.p50() is not None and _meant(self.profile, one)]
        order = {"device": 0, "host-gpu": 1, "host-cpu": 2}
        key = lambda one: (order.get(one.row.latency_evidence or "", 3), one.row.batch)  # noqa: E731  # a name for it
        return min(there, key=key, default=None)

    def scored(self) -> Measured | None:
        """The row whose accuracy is nearest to where it will run; None where no bench met it."""
        there = [one for one in self.rows if one.ok and one.row.accuracy is not None and not _resized_otherwise(one)]
        order = {"device": 0, "host-gpu": 1, "host-cpu": 2, "simulated": 3}
        return min(
            there, key=lambda one: (order.get(one.row.accuracy_evidence or "", 4), -one.row.n_images), default=None
        )

    def loss(self) -> Loss | None:
        """What it loses on the images that nothing was chosen on: the bench's; before a bench the guard's."""
        row = self.scored()
        if row is not None:
            return loss_of(row)
        return None if self.contract is None else self.contract.loss


def _resized_otherwise(one: Measured) -> bool:
    return one.row.provider.endswith(BEHIND_DEEPSTREAM)


def _meant(profile: str, one: Measured) -> bool:
    """Whether this row ran the graph where its profile belongs: a TensorRT graph in TensorRT, a cpu graph on a CPU."""
    tensorrt = one.row.backend == "tensorrt" or one.row.provider.lower().startswith(("tensorrt", "nvtensorrt"))
    return tensorrt if profile in TENSORRT else not tensorrt


def loss_of(one: Measured) -> Loss | None:
    """The loss that a bench row tells; None where it is not compared with anything."""
    row = one.row
    if row.drop_pp is None:
        return None
    return Loss(
        row.drop_pp,
        row.drop_ci_pp,
        row.n_images,
        row.split,
        row.flips,
        row.agreement,
        row.accuracy_evidence or "",
        row.p_mcnemar,
    )


def contract_of(record: Mapping[str, Any]) -> Contract | None:
    """The guard's record of a graph; None where it was not judged."""
    guard = record.get("guard")
    if not guard:
        return None
    low, high = guard["drop_ci_pp"]
    loss = Loss(
        float(guard["drop_pp"]),
        (float(low), float(high)),
        int(guard["n"]),
        str(guard.get("split", "val")),
        guard.get("flips"),
        guard.get("agreement"),
        str(guard.get("evidence", "")),
        guard.get("p_mcnemar"),
    )
    worst = guard["worst_class"]
    return Contract(
        str(guard["verdict"]),
        bool(guard["met"]),
        float(guard["max_drop"]),
        loss,
        guard.get("n_needed"),
        (record.get("options") or {}).get("guard") != "agreement",
        (str(worst["label"]), float(worst["drop_pp"])),
    )


def variants(bundle: Bundle, rows: Sequence[Measured]) -> tuple[Variant, ...]:
    """The newest graph of each profile, precision and input, in that order, with its bench rows."""
    newest: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for record in bundle.artifacts("graph"):
        newest[str(record["profile"]), str(record["precision"]), str(record.get("input") or "float32")] = record
    of_profile: dict[str, set[str]] = {}
    for (of, _, _), one in newest.items():
        of_profile.setdefault(of, set()).add(str(one["sha256"]))
    order = sorted(newest, key=lambda key: (key[0], PRECISIONS.index(key[1]) if key[1] in PRECISIONS else 9, key[2]))
    out = []
    for profile, precision, kind in order:
        graph = newest[profile, precision, kind]
        own = [one for one in rows if _is_of(one, graph, of_profile.get(profile, set()))]
        out.append(
            Variant(
                profile,
                precision,
                kind,
                str(graph["sha256"]),
                int(graph["bytes"]),
                contract_of(graph),
                graph.get("int8_macs_share"),
                tuple(sorted(own, key=lambda one: (one.row.batch, one.host, one.row.id))),
                (graph.get("options") or {}).get("target"),
            )
        )
    return tuple(out)


def _is_of(one: Measured, record: Mapping[str, Any], of_profile: set[str]) -> bool:
    """Whether a row measured this graph; TensorRT 8's fp16 engine is made of its profile's fp32 graph."""
    row = one.row
    if (row.profile, row.precision) != (record["profile"], record["precision"]):
        return False
    borrowed = row.profile == "trt8" and row.precision == "fp16"
    return row.graph_sha256 == record["sha256"] or (borrowed and row.graph_sha256 in of_profile)


@dataclass(frozen=True)
class Advice:
    """Which variant to ship to one place. `ship` is None where none keeps its contract.

    measured: all speeds were measured where they belong, so that it is the fastest; else it is expected to be.
    refused: (variant, reason) of those that may not ship. refuted: on images it was not chosen on, it lost more than
    its contract allows, yet within the interval.
    """

    place: str
    profile: str
    ship: Variant | None
    measured: bool
    where: str
    refused: tuple[tuple[Variant, str], ...]
    beside: tuple[Variant, ...]
    over: bool = False


def refusal(variant: Variant) -> str:
    """Why a variant may not ship; "" where it may.

    `edgetl deploy` is stricter on the device it measures on: there the point estimate has to keep the contract.
    """
    contract = variant.contract
    if contract is None:
        return ""
    if not contract.met:
        return f"its contract of {contract.max_drop:g} points is not met on {contract.loss.split}"
    loss = variant.loss()
    if loss is not None and loss.ci_pp is not None and loss.ci_pp[0] > contract.max_drop:
        return f"on {loss.split} even the lower end of its interval is beyond the {contract.max_drop:g} points allowed"
    return ""


def advise(found: Iterable[Variant]) -> tuple[Advice, ...]:
    """One Advice for each profile: the fastest of those that may ship; unmeasured, the lowest precision.

    What was measured on a device comes first, then what was measured at all, then the profile exported last.
    """
    by_profile: dict[str, list[Variant]] = {}
    for variant in found:
        by_profile.setdefault(variant.profile, []).append(variant)
    out = [_advice(profile, own) for profile, own in by_profile.items()]
    return tuple(sorted(out, key=_rank))


def _rank(advice: Advice) -> tuple[bool, bool, bool, str]:
    """A place with nothing to ship comes last, one that was measured on a device first, TensorRT before a CPU."""
    timed = advice.ship.timed() if advice.ship else None
    on_device = timed is not None and timed.row.latency_evidence == "device"
    return (advice.ship is None, not on_device, advice.profile not in TENSORRT, advice.profile)


def _advice(profile: str, own: Sequence[Variant]) -> Advice:
    reasons = [(variant, refusal(variant)) for variant in own]
    may = [variant for variant, reason in reasons if not reason]
    timed = [variant for variant in may if variant.timed() is not None]
    # A choice by speed wants the speed of all of them, measured in the same place.
    places = {(one.host, one.row.environment) for variant in may for one in [variant.timed()] if one}
    complete = bool(may) and len(timed) == len(may) and len(places) == 1
    ship = min(may, key=_speed if complete else _expected, default=None)
    where = ""
    if ship is not None and (one := ship.timed()):
        where = one.host or "this machine"
    loss = ship.loss() if ship else None
    over = bool(ship and ship.contract and loss and loss.drop_pp > ship.contract.max_drop)
    return Advice(
        PLACES.get(profile, profile),
        profile,
        ship,
        complete,
        where,
        tuple((variant, reason) for variant, reason in reasons if reason),
        tuple(variant for variant in own if variant is not ship),
        over,
    )


def _speed(variant: Variant) -> float:
    timed = variant.timed()
    p50 = None if timed is None else timed.p50()
    return float("inf") if p50 is None else p50


def _expected(variant: Variant) -> tuple[float, int]:
    """Order of speed where nothing is measured: lower precision first, as TensorRT's kernels are; then the file."""
    order = PRECISIONS.index(variant.precision) if variant.precision in PRECISIONS else 9
    return (-float(order), variant.bytes)


@dataclass(frozen=True)
class Point:
    """One variant in the picture of accuracy, time and size; `front`: no other is as good in all and better in one."""

    name: str
    precision: str
    accuracy: float
    accuracy_ci: tuple[float, float] | None
    cost: float
    note: str
    front: bool = False


def pareto(points: Sequence[Point]) -> list[bool]:
    """For each point whether it is on the front: none other has at least its accuracy at no more than its cost, and
    is better in one of the two."""
    out = []
    for one in points:
        beaten = any(
            other.accuracy >= one.accuracy
            and other.cost <= one.cost
            and (other.accuracy > one.accuracy or other.cost < one.cost)
            for other in points
        )
        out.append(not beaten)
    return out
