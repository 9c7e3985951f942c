"""Figures and verdicts in words, the same on the page and in the card."""

from __future__ import annotations

from edgetl.report.facts import Facts
from edgetl.report.rows import Measured
from edgetl.report.variants import MET, TENSORRT, UNRESOLVED, Advice, Loss, Variant
from edgetl.stats import Interval

EVIDENCE = {
    "simulated": "simulated: ONNX Runtime computes the TensorRT graph's arithmetic on a CPU; accuracy is meaningful, "
    "speed is not",
    "host-cpu": "measured on a PC's CPU",
    "host-gpu": "measured on a PC's GPU",
    "device": "measured on the device",
}
SHORT = {"simulated": "simulated", "host-cpu": "PC, CPU", "host-gpu": "PC, GPU", "device": "device"}
MINUS = "\N{MINUS SIGN}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.7352 -> "73.5 %"."""
    return "-" if share is None else f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def between(interval: Interval | None, digits: int = 1) -> str:
    """A share's interval in percent: "71.1 to 75.9"."""
    return "" if interval is None else f"{100 * interval[0]:.{digits}f} to {100 * interval[1]:.{digits}f}"


def points(value: float | None, digits: int = 2) -> str:
    """A drop in percentage points with its sign; a true zero has none."""
    if value is None:
        return "-"
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


def range_pp(interval: Interval | None) -> str:
    """Of points: "-0.11 to +0.57"."""
    return "" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def milliseconds(value: float | int | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def megabytes(size: int | None) -> str:
    """10^6 bytes."""
    return "-" if size is None else f"{size / 1e6:.2f}" if size >= 1e5 else f"{size / 1e6:.2g}"


def count(n: int | None) -> str:
    """1295 -> "1,295"."""
    return "-" if n is None else f"{n:,}"


def day(at: str) -> str:
    """An ISO time to the minute: "2026-11-21 09:39 UTC"."""
    return at[:16].replace("T", " ") + (" UTC" if at.endswith("Z") else "")


def called(one: Measured) -> str:
    """A row in a few words: "PyTorch fp32", "int8 trt10", "fp16 TensorRT, orin"."""
    row = one.row
    provider = row.provider.replace("ExecutionProvider", "").lower()
    if row.backend == "torch":
        name = f"{row.precision} PyTorch"
    elif row.backend == "tensorrt":
        name = f"{row.precision} TensorRT"
    else:
        name = f"{row.precision} {row.profile or 'graph'}"
        name += "" if provider == "cpu" else f" {provider}"
    if "-uint8" in row.id:
        name += " uint8"
    return name + (f" x{row.batch}" if row.batch > 1 else "") + (f", {one.host}" if one.host else "")


def named(facts: Facts, candidate: str) -> str:
    """A candidate of the answers as `called` has it; its own name where no row of it is there."""
    rows = [one for one in facts.measured if one.candidate == candidate and not one.host]
    return called(min(rows, key=lambda one: one.row.batch)) if rows else f"{candidate}, in PyTorch"


def kind(one: Measured) -> str:
    """The class of its mark."""
    return "ref" if one.row.backend == "torch" else one.row.precision


def headline(facts: Facts) -> str:
    """What to do, in one line."""
    advice = facts.main
    if advice is None:
        return "Nothing can be shipped yet: no graph was exported"
    if advice.ship is None:
        return "Ship none of these: each misses its contract"
    where = "with TensorRT" if advice.profile in TENSORRT else "with ONNX Runtime on a CPU"
    return f"Ship {advice.ship.precision.upper()}, {where}"


def why(facts: Facts, advice: Advice) -> str:
    """Why this variant."""
    ship = advice.ship
    if ship is None:
        return ""
    if advice.measured:
        return _fastest(advice, ship)
    said = ""
    if ship.precision == "int8" and ship.int8_share:
        said = f": {100 * ship.int8_share:.1f} % of its multiply-accumulates run in INT8"
    number = 1 + sum(1 for v in advice.beside if not any(v is refused for refused, _ in advice.refused))
    few = "the only variant that may ship" if number == 1 else "the variant that is expected to be the fastest there"
    return f"It is {few}{said}. Expected, not measured: no figure of speed in this report is from such a device yet."


def _fastest(advice: Advice, ship: Variant) -> str:
    timed = ship.timed()
    slower = [(v, one) for v in advice.beside for one in [v.timed()] if one is not None]
    ours = timed.p50() if timed else None
    base = next(((one, one.p50()) for v, one in slower if v.precision == "fp32"), None)
    said = (
        f"Median {milliseconds(ours)} ms an image"
        if timed and timed.row.batch == 1
        else f"Median {milliseconds(ours)} ms"
    )
    if base and base[1] and ours:
        ratio = base[1] / ours
        same = timed is not None and base[0].at == timed.at
        said += f", FP32 in {'the same' if same else 'another'} bench {milliseconds(base[1])} ms"
        said += f" ({ratio:.2f} times as fast)" if ratio >= 1.005 else ""
    said += (
        "; it is the only variant that was measured." if not slower else ": the fastest of the variants that may ship."
    )
    quoted = timed.row.ratio_p50 if timed else None
    if quoted:
        low, high = quoted[1:]
        said += f" In turns with the reference it took {quoted[0]:.2f} of its time (95 % {low:.2f} to {high:.2f})."
    return said


def cost(facts: Facts, ship: Variant) -> str:
    """What it costs in accuracy."""
    loss, scored = ship.loss(), ship.scored()
    if loss is None:
        return "Not known: it was not compared with the reference yet."
    if loss.drop_pp > 0:
        said = f"{loss.drop_pp:.2f} points of accuracy"
    elif loss.drop_pp < 0:
        said = f"No accuracy: it has {-loss.drop_pp:.2f} points more"
    else:
        said = "No accuracy that these images show"
    said += f" (95 % interval of the drop {range_pp(loss.ci_pp)} points" if loss.ci_pp else " ("
    said += f", {count(loss.n)} {loss.split} images)"
    base = facts.reference.row if facts.reference else None
    together = base and scored and (base.split, base.n_images) == (scored.row.split, scored.row.n_images)
    if base and scored and together:
        said += f": {percent(scored.row.accuracy)} right, the reference {percent(base.accuracy)}"
    flips = ""
    if loss.flips is not None:
        flips = f". {count(loss.flips)} answer{'' if loss.flips == 1 else 's'} changed"
    return said + flips + "."


def sure(advice: Advice) -> str:
    """How sure that is, and what would make it surer."""
    ship = advice.ship
    if ship is None:
        return ""
    contract = ship.contract
    if contract is None:
        return _plain_surety(ship.loss())
    loss, allowed = contract.loss, f"{contract.max_drop:g} points allowed"
    on = f"on {count(loss.n)} {loss.split} images"
    on += "" if contract.labels else " without labels (a changed answer counts as lost)"
    if contract.verdict == MET:
        said = f"Proven at 95 %: {on} the whole interval ({range_pp(loss.ci_pp)} points) is within the {allowed}."
    elif contract.verdict == UNRESOLVED:
        high = "" if loss.ci_pp is None else f", but the interval reaches {points(loss.ci_pp[1])}"
        more = f"; about {count(contract.needed)} images would settle it" if contract.needed else ""
        said = f"Likely, not proven: {on} the drop is {points(loss.drop_pp)} points, within the {allowed}{high}{more}."
    else:
        said = f"It misses its contract: {points(loss.drop_pp)} points {on}, {allowed}."
    seen = ship.loss()
    if advice.over and seen is not None:
        said += (
            f" On the {count(seen.n)} {seen.split} images, which nothing was chosen on, it lost {points(seen.drop_pp)}"
            f" points, more than the {allowed}, though its interval leaves room: take FP16 where that matters."
        )
    return said


def _plain_surety(loss: Loss | None) -> str:
    if loss is None:
        return "Not known before a bench."
    agree = f"; {percent(loss.agreement, 2)} of the answers are the same" if loss.agreement is not None else ""
    return f"95 % interval of the drop {range_pp(loss.ci_pp)} points on {count(loss.n)} {loss.split} images{agree}."


def verdict(ship: Variant) -> str:
    """The guard's word for it, in a label."""
    if ship.contract is None:
        return "parity checked"
    names = {MET: "contract met", UNRESOLVED: "met, not yet proven"}
    return names.get(ship.contract.verdict, "contract missed")


def evidence(ship: Variant) -> str:
    """How accuracy and speed were come by."""
    loss, timed = ship.loss(), ship.timed()
    accuracy = f"Accuracy: {EVIDENCE.get(loss.evidence, loss.evidence)}." if loss else "Accuracy: not measured."
    speed = EVIDENCE.get(timed.row.latency_evidence or "", "") if timed else "not measured where it would run"
    return f"{accuracy} Speed: {speed}."
