"""SIGTERM as an exception, so that what must be put back (a power mode) or told (a stream's totals) is. Python 3.8."""

from __future__ import annotations

import signal


class Terminated(BaseException):
    """Somebody ended this process with SIGTERM: systemd, or a connection's other end."""


def terminate_as_exception() -> None:
    """From now on SIGTERM raises Terminated in the main thread."""
    signal.signal(signal.SIGTERM, _raise)


def _raise(number: int, frame: object) -> None:
    raise Terminated
