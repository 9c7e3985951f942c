"""What a run keeps: probe or fine-tuned network, by val alone."""

from __future__ import annotations

from edgetl.transfer import probe, weights
from edgetl.transfer.run import Logits, Run
from edgetl.transfer.train import Progress, judge


def choose(run: Run, fitted: probe.Probe, val_features: Logits, tuned: Progress) -> tuple[str, Logits]:
    """Load the better of probe and fine-tuned by val into the network; returns which, and its val logits.

    Equal accuracy: the lower loss. Every choice is made on val; the test split is not looked at here.
    """
    backbone, plan = run.start.network.backbone, run.options.plan
    if tuned.best is not None:
        weights.load_exactly(backbone, tuned.best)
        logits = run.logits("val")
        scores = [judge(found, run.targets("val")) for found in (logits, fitted.logits(val_features))]
        if not plan.competes or (scores[0][0], -scores[0][1]) > (scores[1][0], -scores[1][1]):
            return plan.name, logits
        run.monitor.say("fine-tuning did not beat the linear probe on val: the probe is kept")
    if run.before is not None:
        weights.load_exactly(backbone, run.before)
    run.fold(fitted)
    return "linear-probe", run.logits("val")
