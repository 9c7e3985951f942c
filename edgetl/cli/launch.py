"""What torchrun tells a process of several, and which of them speaks: the first one, or the first to fail."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def several() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def speaks() -> bool:
    """Whether this process prints and writes results: all but the first keep quiet."""
    return not several() or os.environ["RANK"] == "0"


def hush() -> None:
    """Keep quiet, where another process speaks."""
    if not speaks():
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # for as long as the process runs
        sys.stdout = sys.stderr = nowhere


def tells_of_failure() -> bool:
    """Whether it is this process that reports that the run has failed; its voice comes back if it had none.

    When one fails the others fail after it, for lack of an answer.
    """
    if not several():
        return True
    from edgetl.transfer.processes import fails_first

    mine = fails_first()
    if mine is None:
        mine = speaks()
    if mine and sys.__stdout__ is not None and sys.__stderr__ is not None:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    return mine
