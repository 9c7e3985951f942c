"""How the PC and the device side speak: one JSON object a call, with a protocol version that both sides check.

The PC passes its version with each call (`--protocol N`) and reads the device's in each answer, so a newer PC
and an older app on the device (or the other way round) fail with both numbers and never misread each other.
Bump PROTOCOL whenever a field that the other side reads changes its meaning or goes.
Python 3.8, standard library only.
"""

from __future__ import annotations

import json
from typing import Any, Dict, Mapping, Optional

from edgetl.errors import BackendError, ContractUnmet, EdgetlError

PROTOCOL = 1

_PUSH = "push the app that belongs to this edgetl: `edgetl deploy` does"


def check_caller(version: int) -> None:
    """On the device: raise BackendError unless the caller speaks PROTOCOL."""
    if version != PROTOCOL:
        said = "caller %d, this app %d" % (version, PROTOCOL)
        raise BackendError("the caller and the device's app speak different protocols", said, _PUSH)


def answer(verb: str, result: Mapping[str, Any], code: int = 0) -> Dict[str, Any]:
    """On the device: what is printed for a verb that came to its end; `code` is what the process exits with."""
    return dict({"protocol": PROTOCOL, "verb": verb, "exit": code}, **result)


def failure(verb: str, error: EdgetlError, code: Optional[int] = None) -> Dict[str, Any]:
    """On the device: what is printed for a verb that did not; a contract that was missed keeps its result."""
    result = error.result if isinstance(error, ContractUnmet) else {}
    return answer(verb, dict(result, error=error.as_json()), error.exit_code if code is None else code)


def read_answer(text: str) -> Dict[str, Any]:
    """On the PC: the object in a call's stdout, `"error"` and all.

    Raises BackendError where it is no such object (its last line is shown) or speaks another protocol.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"protocol", "exit"} <= set(found):
        last = (text.strip().splitlines() or ["nothing"])[-1]
        raise BackendError("the device did not answer with its JSON object", last[-200:], "see its log on stderr")
    if found["protocol"] != PROTOCOL:
        said = "device %s, this edgetl %d" % (found["protocol"], PROTOCOL)
        raise BackendError("the device's app speaks another protocol", said, _PUSH)
    return found
