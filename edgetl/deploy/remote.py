"""The device as seen from here: its app called verb by verb over one connection, pushed when it lacks it.

Everything lies below ~/.local/share/edgetl (relative to the login folder, so no absolute path is known or sent), with
private modes. A job (build, bench, verify) outlives the connection: where that breaks, the same call joins it again.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edgetl.bundle import sha256_bytes
from edgetl.deploy.lock import Busy, Lock
from edgetl.deploy.ssh import Body, Connection, Done
from edgetl.errors import BackendError, ConnectionLost, ContractUnmet, EdgetlError
from edgetl.monitor import SILENT, Monitor
from edgetl.protocol import PROTOCOL, read_answer

HOME = ".local/share/edgetl"
_WAITS_S = (1.0, 2.0, 4.0, 8.0, 8.0, 8.0)  # between tries to join a job whose connection broke
_NO_APP = 79  # a code of ours: none of the app's, the shell's or ssh's
Answer = dict[str, Any]


class Device:
    """One deployment folder on one device. `app`: the zipapp's bytes. `moved` counts bytes pushed.

    `leaves` False: nothing stays there, an app that it lacks is run from a temporary folder.
    """

    def __init__(
        self, connection: Connection, name: str, app: bytes, monitor: Monitor = SILENT, leaves: bool = True
    ) -> None:
        self.connection, self.name, self.monitor = connection, name, monitor
        self.root = f"{HOME}/{name}"
        self._app, self._leaves = app, leaves
        self._sha256 = sha256_bytes(app)
        self._path = f"{HOME}/app/edgetl-{self._sha256[:12]}.pyz"
        self._lock: Lock | None = None
        self.moved = 0
        self.starts = 0  # of Python on the device

    def call(self, verb: str, *words: str, body: Body = b"", job: bool = False) -> Answer:
        """The answer of a verb; `job`: it outlives the connection, and is joined again when that breaks.

        Raises the device's own error (ContractUnmet with its result), ConnectionLost, BackendError.
        """
        arguments = ["--protocol", str(PROTOCOL)]
        if job:
            named = sha256_bytes(shlex.join([verb, *words]).encode())[:12]
            arguments += ["--job", f"{self.root}/jobs/{verb}-{named}"]
        words = (*arguments, verb, *words)
        # By its bytes, not by its name: an app that was damaged there is pushed again.
        whole = f"echo '{self._sha256}  {self._path}' | sha256sum -c --status 2>/dev/null"
        command = ["sh", "-c", f"{whole} || exit {_NO_APP}; exec {shlex.join(['python3', self._path, *words])}"]
        done = self._run(command, body, job)
        if done.code == _NO_APP and self._leaves:
            self.push_app()
            done = self._run(command, body, job)
        elif done.code == _NO_APP:
            done = self._passing(words, body)
        if done.code == 127:
            raise BackendError("the device has no python3", self.connection.host, "install it: it comes with JetPack")
        answer = read_answer(done.stdout)
        error = answer.get("error")
        if error:
            said = (error["what"], error["value"], error["do"])
            if done.code == ContractUnmet.exit_code:
                raise ContractUnmet(*said, result=answer)
            raise EdgetlError(*said)
        return answer

    def probe(self, *words: str, body: bytes = b"") -> Answer:
        """What the device is, its clock beside ours."""
        return self.call("probe", "--now", f"{time.time():.0f}", *words, body=body)

    def _passing(self, words: Sequence[str], body: Body) -> Done:
        """Run the app from a folder that goes with it; it comes on stdin, before `body`."""
        assert isinstance(body, bytes)
        self.moved += len(self._app)
        script = (
            "d=$(mktemp -d) || exit 1; trap 'rm -rf \"$d\"' EXIT; trap 'exit 1' HUP INT TERM; "
            f'head -c {len(self._app)} >"$d/edgetl.pyz" && python3 "$d/edgetl.pyz" {shlex.join(words)}'
        )
        return self._run(["sh", "-c", script], self._app + body, False)

    def push_app(self) -> None:
        """Put the app in its place: whole, or not there."""
        folder, path = shlex.quote(f"{HOME}/app"), shlex.quote(self._path)
        # Apps of other versions stay for a month: a deploy of theirs may be running.
        tidy = f"find {folder} -name 'edgetl-*' -mtime +30 -delete"
        script = f"umask 077 && mkdir -p {folder} && cat > {path}.$$ && mv {path}.$$ {path} && {tidy}"
        done = self.shell(script, self._app)
        if done.code:
            raise BackendError(
                "the app could not be written on the device", _last(done.stderr), "free some space there"
            )
        self.moved += len(self._app)

    def shell(self, script: str, body: Body = b"") -> Done:
        """A line of sh; what goes into it must be quoted."""
        return self.connection.run(["sh", "-c", script], body)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One deploy at a time into this folder; let go of when the connection ends, however it ends.

        Where it broke and a call goes on over a new one, the lock is taken again first. Raises BackendError where
        another deploy has it.
        """
        self._lock = Lock(self.connection, self.root)
        try:
            yield
        finally:
            self._lock.close()
            self._lock = None

    def _run(self, command: Sequence[str], body: Body, job: bool) -> Done:
        self.starts += 1
        if not job:
            self._hold()
            return self.connection.run(command, body, self._live)
        for wait in (*_WAITS_S, None):
            try:
                self._hold()
                return self.connection.run(command, body, self._live)
            except (ConnectionLost, Busy) as error:
                if wait is None:
                    raise
                self.monitor.warn(f"{error.what}: joining the work on the device again in {wait:g} s")
                time.sleep(wait)
        raise AssertionError

    def _hold(self) -> None:
        if self._lock is not None and not self._lock.held:
            self._lock.close()
            self._lock = Lock(self.connection, self.root)

    def _live(self, line: str) -> None:
        said = line.strip()
        if said:
            self.monitor.say("device: " + said)


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
