"""nvpmodel's power modes, one after the other, and the old one back whatever happens. Python 3.8.

A mode is set with `sudo -n` (never a password prompt). One that asks for a reboot is refused: nvpmodel is told "no"
and asked which mode it is in. A guardian process waits on a pipe that only this process holds open: when this one
is gone, however it ended (kill -9 too), the guardian puts the old mode back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from edgetl.device.conditions import Mode, power_mode, power_modes
from edgetl.device.system import System
from edgetl.errors import BackendError, InputError
from edgetl.monitor import SILENT, Monitor

SETTLE_S = 2.0  # clocks and the voltage follow a mode within a second or so
_TIMEOUT_S = 30.0

# The guardian: reads until the pipe's other end is closed; anything read first means that all is well.
_GUARDIAN = """
import os, signal, subprocess, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if not os.read(int(sys.argv[1]), 1):
    subprocess.run(sys.argv[2:], input=b"no\\n", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


def parse_modes(text: str, known: Sequence[Mode]) -> List[Mode]:
    """`"all"`, or ids and names with commas between, as modes of this board. Raises InputError that lists them."""
    if not known:
        raise InputError("this board tells no power modes", "/etc/nvpmodel.conf", "leave --modes out")
    if text == "all":
        return list(known)
    by_word = {word: mode for mode in known for word in (str(mode["id"]), str(mode["name"]))}
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for word in wanted:
        if word not in by_word:
            there = ", ".join("%d (%s)" % (mode["id"], mode["name"]) for mode in known)
            raise InputError("this board has no such power mode", word, "it has: " + there)
    return [by_word[word] for word in wanted]


def sweep(
    system: System,
    wanted: str,
    measure: Callable[[Mode], Dict[str, Any]],
    monitor: Monitor = SILENT,
    settle: float = SETTLE_S,
) -> List[Dict[str, Any]]:
    """`measure` in each mode: [{"id", "name", "status": "measured"|"refused", "why", "result"}].

    Raises BackendError where modes may not be set here at all, InputError for a mode the board does not have.
    """
    modes = parse_modes(wanted, power_modes(system))
    before = power_mode(system)
    if before is None:
        raise BackendError("the power mode cannot be read", "nvpmodel -q", "leave --modes out")
    out = []
    with restored(system, before):
        for mode in modes:
            why = set_mode(system, mode)
            entry: Dict[str, Any] = {"id": mode["id"], "name": mode["name"], "why": why or ""}
            if why is not None:
                monitor.warn("power mode %s is left out: %s" % (mode["name"], why))
                out.append(dict(entry, status="refused", result=None))
                continue
            time.sleep(settle)
            monitor.say("power mode %s" % mode["name"])
            out.append(dict(entry, status="measured", result=measure(mode)))
    return out


def set_mode(system: System, mode: Mode) -> Optional[str]:
    """Set `mode`; None where that worked, else why not (no sudo, a reboot is wanted, nvpmodel's own words)."""
    now = power_mode(system)
    if now is not None and now["id"] == mode["id"]:
        return None
    try:
        done = subprocess.run(
            _command(system, mode),
            input=b"no\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "nvpmodel did not answer"
    now = power_mode(system)
    if now is not None and now["id"] == mode["id"]:
        return None
    said = done.stdout.decode("utf-8", "replace").strip().splitlines()
    if any("reboot" in line.lower() for line in said):
        return "it asks for a reboot"
    if any("password" in line.lower() or "sudo" in line.lower() for line in said):
        return "sudo wants a password; allow nvpmodel without one, or run with none of --modes"
    return said[-1] if said else "nvpmodel did not take it"


@contextmanager
def restored(system: System, before: Mode) -> Iterator[None]:
    """`before` is the mode again at the end: by us where we can, by the guardian where we are gone."""
    ours, its = os.pipe()
    guardian = subprocess.Popen(
        [sys.executable, "-c", _GUARDIAN, str(ours)] + _command(system, before),
        pass_fds=(ours,),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(ours)
    try:
        yield
    finally:
        why = set_mode(system, before)
        if why is None:
            os.write(its, b"k")
        os.close(its)  # where our own try failed the guardian tries once more
        guardian.wait()
        now = power_mode(system)
        if now is None or now["id"] != before["id"]:
            do = "sudo nvpmodel -m %d" % before["id"]
            raise BackendError("the power mode could not be put back", why or before["name"], do)


def _command(system: System, mode: Mode) -> List[str]:
    """The arguments that set a mode. Raises BackendError where nvpmodel or sudo is missing."""
    tool = system.find("nvpmodel")
    if tool is None:
        raise BackendError("no nvpmodel here", str(system.root), "leave --modes out")
    prefix: List[str] = []
    if os.geteuid() != 0:
        sudo = system.find("sudo")
        if sudo is None:
            raise BackendError("setting a power mode needs sudo", "not found", "leave --modes out")
        prefix = [sudo, "-n"]
    return prefix + [tool, "-m", str(mode["id"])]
