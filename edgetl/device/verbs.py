"""The verbs of the device's command line: their options, and the one function each of them calls. Python 3.8."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Callable, Dict, Optional

from edgetl.errors import InputError

Result = Dict[str, Any]


class Verb:
    """A verb: its one-line help, its options, and the function that does it (None: it printed for itself)."""

    def __init__(
        self,
        help_line: str,
        options: Callable[[argparse.ArgumentParser], None],
        call: Callable[[argparse.Namespace], Optional[Result]],
    ) -> None:
        self.help_line, self.options, self.call = help_line, options, call


def _probe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, help="also tell what this deployment folder holds", metavar="DIR")
    parser.add_argument("--want", help='JSON list of {"sha256","bytes"}: tell which are missing; - is stdin')
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)


def _probe(given: argparse.Namespace) -> Result:
    from edgetl.device import store
    from edgetl.device.probe import probe
    from edgetl.device.system import System

    if given.want is not None and given.state is None:
        raise InputError("--want tells what a deployment folder lacks", given.want, "give --state DIR too")
    wanted = store.read_wanted(given.want) if given.want is not None else None
    result = {"probe": probe(System(given.root), given.state or Path())}
    if given.state is not None:
        result["state"] = store.state(given.state)
    if wanted is not None:
        result["missing"] = {"files": store.missing(given.state, wanted)}
    return result


VERBS: Dict[str, Verb] = {
    "probe": Verb("what this device is, and what it holds", _probe_options, _probe),
}
