"""The accuracy contract: what an INT8 graph loses against its reference, and the verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.graph.exclude import Effect
from edgetl.graph.options import ExportOptions
from edgetl.graph.search import Rung
from edgetl.measure.score import Paired

HARMFUL_SHOWN = 5


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


def measured(found: Paired, labels: list[str], split: str, evidence: str) -> dict[str, Any]:
    """What the shipped graph lost on the images of `split`, and how that was come by."""
    index, drop = found.worst_class
    return {
        "drop_pp": found.drop_pp,
        "drop_ci_pp": list(found.drop_ci_pp),
        "p_mcnemar": found.p_mcnemar,
        "n": found.n,
        "n_needed": found.n_needed,
        "flips": found.flips,
        "agreement": found.agreement,
        "kl": found.kl,
        "worst_class": {"label": labels[index], "drop_pp": drop},
        "split": split,
        "evidence": evidence,
    }


def judge(
    contract: Contract,
    found: Paired,
    shown: dict[str, Any],
    test: dict[str, Any] | None,
    search: tuple[Sequence[Rung], Sequence[str], Sequence[Effect]],
) -> dict[str, Any]:
    """The `guard` object of cli.md. `found` decides, `shown` is `measured` of it; `test` stands beside it.

    `search`: the rungs, the nodes left in float, the layers whose harm was measured.
    """
    verdict = contract.verdict(found)
    rungs, in_float, effects = search
    return {
        "verdict": verdict,
        "met": contract.met(verdict),
        **shown,
        "test": test,
        "excluded_nodes": list(in_float),
        "rungs": [rung.to_json() for rung in rungs],
        "harmful": [effect.to_json() for effect in effects if effect.kl_regained > 0][:HARMFUL_SHOWN],
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
    if guard["verdict"] == "unresolved":
        return what, value, f"give at least {guard['n_needed']} images with --guard-data; the graph was kept"
    hurting = ", ".join(effect["nodes"][0] for effect in guard["harmful"][:3])
    worst = f"; most harmful layers: {hurting}" if hurting else ""
    do = "ship the fp16 graph, say --rescue qat, calibrate on more images, or allow more with --max-drop"
    return what, value + worst, do + "; the graph was kept"
