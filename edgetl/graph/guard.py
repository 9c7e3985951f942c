"""The accuracy contract: what an INT8 graph loses against its reference, and the verdict on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetl.errors import GraphError
from edgetl.graph.options import ExportOptions
from edgetl.measure.score import Paired, compare

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Contract:
    """What was asked for, in percentage points of accuracy lost; `confident`: the interval must hold it too."""

    max_drop: float = 0.5
    max_class_drop: float | None = None
    confident: bool = False

    @classmethod
    def of(cls, options: ExportOptions) -> Contract:
        """The contract in the options of an export."""
        return cls(options.max_drop, options.max_class_drop, options.confident)

    def verdict(self, paired: Paired) -> str:
        """ "not_met": the point estimate misses it; "unresolved": it holds, but its interval does not; "met"."""
        worst = paired.worst_class[1]
        if paired.drop_pp > self.max_drop or (self.max_class_drop is not None and worst > self.max_class_drop):
            return "not_met"
        return "met" if paired.drop_ci_pp[1] <= self.max_drop else "unresolved"

    def met(self, verdict: str) -> bool:
        """Whether a graph with this verdict may ship."""
        return verdict == "met" or (verdict == "unresolved" and not self.confident)


@dataclass(frozen=True)
class Rung:
    """One step of the search: `name`, what it lost on images that were not calibrated on, and its cost."""

    name: str
    drop_pp: float
    seconds: float
    kl: float
    agreement: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """The object of cli.md and two figures more."""
        return {
            "name": self.name,
            "drop_pp": self.drop_pp,
            "seconds": round(self.seconds, 3),
            "kl": self.kl,
            "agreement": self.agreement,
            "n": self.n,
        }


def paired(reference: Logits, candidate: Logits, targets: npt.NDArray[np.int64], max_drop: float) -> Paired:
    """`measure.compare`, with a graph that overflows reported as an error of that graph."""
    if not np.isfinite(candidate).all():
        raise GraphError("the graph gives NaN or inf", "on an image of the guard's set", "use the fp16 graph")
    return compare(reference, candidate, targets, max_drop=max_drop)


def judge(
    contract: Contract, found: Paired, labels: list[str], rungs: list[Rung], split: str, evidence: str
) -> dict[str, Any]:
    """The `guard` object of cli.md, and beside it the split, how the figures were come by, and the contract."""
    verdict = contract.verdict(found)
    index, drop = found.worst_class
    return {
        "verdict": verdict,
        "met": contract.met(verdict),
        "drop_pp": found.drop_pp,
        "drop_ci_pp": list(found.drop_ci_pp),
        "p_mcnemar": found.p_mcnemar,
        "n": found.n,
        "n_needed": found.n_needed,
        "flips": found.flips,
        "agreement": found.agreement,
        "kl": found.kl,
        "worst_class": {"label": labels[index], "drop_pp": drop},
        "excluded_nodes": [],
        "rungs": [rung.to_json() for rung in rungs],
        "split": split,
        "evidence": evidence,
        "max_drop": contract.max_drop,
        "max_class_drop": contract.max_class_drop,
        "confident": contract.confident,
    }


def refusal(guard: dict[str, Any]) -> tuple[str, str, str]:
    """(what, value, do) of ContractUnmet."""
    if guard["verdict"] == "unresolved":
        what = "the images cannot show that the INT8 graph keeps its contract"
    else:
        what = "the INT8 graph loses more accuracy than allowed"
    low, high = guard["drop_ci_pp"]
    value = (
        f"drop {guard['drop_pp']:.2f} points (95 % interval {low:.2f} to {high:.2f}, n {guard['n']}), "
        f"allowed {guard['max_drop']:g}; worst class {guard['worst_class']['label']} "
        f"{guard['worst_class']['drop_pp']:.1f}"
    )
    more = f"give at least {guard['n_needed']} images with --guard-data; " if guard["verdict"] == "unresolved" else ""
    return what, value, more + "ship the fp16 graph, calibrate on more images, or say --max-drop; the graph was kept"
