"""What a finished run says of its probabilities: the temperature and the thresholds that go into the manifest."""

from __future__ import annotations

from typing import Any

from edgetl.measure.confidence import confidence_of, most_promised, why_not
from edgetl.transfer.run import Logits, Run


def confidence(run: Run, val: Logits, test: Logits | None) -> dict[str, Any]:
    """`confidence` of the manifest for the chosen network's logits (N, C); see measure.confidence.confidence_of.

    All of it is fitted on val, on which the network was chosen too: the figures on test say what that is worth.
    """
    wanted = run.options.abstain_precision
    on_test = None if test is None else (test, run.targets("test"))
    found = confidence_of((val, run.targets("val")), on_test, wanted)
    row = next((row for row in found["abstain"] if row["precision"] == wanted), None)
    if row is not None and row["threshold"] is None:
        most = most_promised(found["abstain"])
        could = f"; {most:g} can be (`classify --min-precision {most:g}`)" if most else ""
        run.monitor.warn(f"a precision of {wanted:g} cannot be promised: {why_not(row)}{could}")
    return found
