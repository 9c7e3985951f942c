"""Work that outlives the connection that asked for it: started apart, watched, and picked up again. Python 3.8.

    <folder>/lock      held by the worker for as long as it lives, however it ends (the kernel frees it)
    <folder>/asked     the verb and its options, as JSON
    <folder>/log       what the worker says
    <folder>/answer    its one JSON object, complete only when the worker has ended

Whoever runs the same command again while the worker lives is attached to it: the log from its beginning, then
the answer. Where the worker is done, the answer is handed over at once. Where it died without one (killed, power
cut, reboot) it is started anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from edgetl.bundle import atomic_write, read_json, sweep
from edgetl.bundle.files import make_folder
from edgetl.errors import BackendError, EdgetlError, disk_errors

_POLL_S = 0.1
_TOP = str(Path(__file__).resolve().parents[2])  # the source tree, or the zipapp


def command_for(arguments: Sequence[str]) -> List[str]:
    """How this very app is started again (from a source tree or a zipapp), with these arguments."""
    return [sys.executable, "-m", "edgetl.device"] + list(arguments)


def environment() -> Dict[str, str]:
    """For `command_for`: where Python finds the app."""
    there = os.environ.get("PYTHONPATH")
    return dict(os.environ, PYTHONPATH=os.pathsep.join([_TOP] + ([there] if there else [])), PYTHONUNBUFFERED="1")


def attach(folder: Path, arguments: Sequence[str], say: Callable[[str], None]) -> Dict[str, Any]:
    """Start the job or join it; returns its answer, and forgets the job only when `forget` is called.

    Raises BackendError: another job runs in this folder, or the worker was killed.
    """
    with disk_errors(folder):
        make_folder(folder)
        lock = os.open(str(folder / "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        asked = {"arguments": list(arguments)}
        if _take(lock):
            if not _finished(folder, asked):
                _start(folder, asked, lock)
        elif _asked(folder, wait=True) != asked:
            said = " ".join(_asked(folder).get("arguments", ["?"]))
            raise BackendError("another job runs here", said, "wait for it, or give another --job")
        else:
            say("picked up: the job was running already")
        with open(str(folder / "answer"), "rb") as answer, open(str(folder / "log"), "rb") as log:
            _watch(lock, log, say)
            return _read(answer.read())
    finally:
        os.close(lock)


def forget(folder: Path) -> None:
    """Remove a job whose answer has been handed over; one that runs again meanwhile stays."""
    try:
        lock = os.open(str(folder / "lock"), os.O_RDWR)
    except OSError:
        return
    try:
        if _take(lock):
            sweep(folder)
    finally:
        os.close(lock)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _start(folder: Path, asked: Dict[str, Any], lock: int) -> None:
    """Start the worker in a session of its own, so that no hang-up reaches it. It inherits the lock."""
    with disk_errors(folder):
        atomic_write(folder / "asked", json.dumps(asked).encode("utf-8"))
        with open(str(folder / "answer"), "wb") as answer, open(str(folder / "log"), "wb") as log:
            subprocess.Popen(
                command_for(asked["arguments"]),
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,
                env=environment(),
            )
    # The worker's copy is the same lock: closing ours would not free it, unlocking it would. So watch a new one.
    fresh = os.open(str(folder / "lock"), os.O_RDWR)
    os.dup2(fresh, lock)
    os.close(fresh)


def _finished(folder: Path, asked: Dict[str, Any]) -> bool:
    """Whether an answer to the same question lies there complete."""
    try:
        return _asked(folder) == asked and bool(_read((folder / "answer").read_bytes()))
    except (OSError, EdgetlError):
        return False


def _asked(folder: Path, wait: bool = False) -> Dict[str, Any]:
    """What the job is; `wait` a moment for a worker that is only being started."""
    for _ in range(20 if wait else 1):
        try:
            return read_json(folder / "asked", "job")
        except EdgetlError:
            time.sleep(_POLL_S if wait else 0)
    return {}


def _watch(lock: int, log: Any, say: Callable[[str], None]) -> None:
    """Repeat the log, line by line, until the worker has let go of the lock."""
    rest = b""
    while True:
        done = _take(lock)
        lines = (rest + log.read()).split(b"\n")
        rest = lines.pop()
        for line in lines:
            say(line.decode("utf-8", "replace"))
        if done:
            if rest:
                say(rest.decode("utf-8", "replace"))
            fcntl.flock(lock, fcntl.LOCK_UN)
            return
        time.sleep(_POLL_S)


def _read(data: bytes) -> Dict[str, Any]:
    found: Optional[Any] = None
    try:
        found = json.loads(data.decode("utf-8"))
    except ValueError:
        pass  # cut off, or empty: the worker did not come to its end
    if not isinstance(found, dict) or "exit" not in found:
        raise BackendError("the job ended without an answer", "killed, or out of memory", "run the same command again")
    return found
