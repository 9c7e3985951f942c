"""The lock on a device against two deploys at once, held over a connection that may break at any time.

The device's `flock` lasts as long as bytes come: a beat every few seconds. So the lock goes with this process and with
its connection, and also where the device never hears that they ended (a pulled cable, a laptop that was closed).
"""

from __future__ import annotations

import shlex
import subprocess
import threading

from edgetl.deploy.ssh import Connection
from edgetl.errors import BackendError, EdgetlError

BEAT_S = 4
SILENT_S = 20  # without a beat: the device lets go
_LOST = 255
_FAREWELL_S = 5.0


class Busy(BackendError):
    """Another deploy holds the lock."""


class Lock:
    """`<root>/lock` on the device, taken. Raises Busy, ConnectionLost, BackendError (the folder cannot be used)."""

    def __init__(self, connection: Connection, root: str) -> None:
        place = shlex.quote(root)
        # One byte at a time: `head` would otherwise read ahead what the next one waits for.
        beats = f'while [ -n "$(timeout {SILENT_S} head -c 1)" ]; do :; done'
        holding = f"exec flock -n {place}/lock sh -c {shlex.quote('echo locked; ' + beats)}"
        self._process = connection.start(["sh", "-c", f"umask 077; mkdir -p {place} && {holding}"])
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        assert self._process.stdout
        if self._process.stdout.readline().strip() != b"locked":
            _, said = self._process.communicate()
            raise self._refused(connection, root, said.decode("utf-8", "replace"))
        self._beating.start()

    @property
    def held(self) -> bool:
        """Whether the connection that holds it still stands."""
        return self._process.poll() is None

    def close(self) -> None:
        """Let go; the device has done so too when this returns, if it can be reached."""
        process = self._process
        self._ended.set()
        self._beating.join()
        try:
            process.communicate(timeout=_FAREWELL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def _beat(self) -> None:
        assert self._process.stdin
        try:
            while not self._ended.wait(BEAT_S):
                self._process.stdin.write(b".")
                self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # the connection is gone: `held` says so

    def _refused(self, connection: Connection, root: str, said: str) -> EdgetlError:
        if self._process.returncode == _LOST:
            return connection.lost(said)
        if said.strip():
            last = said.strip().splitlines()[-1]
            return BackendError("the device's folder cannot be used", f"{root}: {last}", "look at its owner and mode")
        return Busy("another deploy into this folder is running", root, "wait for it, or use another --name")
