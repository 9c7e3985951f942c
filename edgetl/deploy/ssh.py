"""A connection to a device through the system's OpenSSH: the user's own config, agent, jump hosts and keys.

One master connection (ControlMaster) carries every call, so a deploy logs in once. Host keys are never accepted
here, passwords never asked for. Words of a remote command are quoted, each by itself.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from edgetl.errors import BackendError, ConnectionLost, InputError

_LOST = 255  # ssh's own exit code; a remote command's 255 cannot be told from it
# What ssh says -> (what happened, what to do); the first that fits.
_REASONS = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "the device's host key has changed", "ask why before you trust it"),
    ("Host key verification failed", "the device's host key is not known", "connect once with `ssh` and check it"),
    ("Permission denied", "the device does not let us in", "set up a key: ssh-copy-id"),
    ("Could not resolve hostname", "no device of this name", "check the name, or ~/.ssh/config"),
    ("Connection refused", "nothing listens for SSH there", "check the address and --port"),
    ("timed out", "the device does not answer", "is it on, and in this network?"),
    ("No route to host", "the device cannot be reached", "is it on, and in this network?"),
)


@dataclass(frozen=True)
class Done:
    """How a remote command ended."""

    code: int
    stdout: str
    stderr: str


Body = bytes | Iterable[bytes]


class Connection(AbstractContextManager["Connection"]):
    """`host` as ssh takes it, [USER@]HOST or a name of the user's config.

    Raises InputError for a host that would be read as an option, ConnectionLost from each call.
    """

    def __init__(
        self, host: str, port: int | None = None, timeout_s: float = 15.0, options: Sequence[str] = ()
    ) -> None:
        if not host or host.startswith("-") or any(c.isspace() or ord(c) < 32 for c in host):
            raise InputError("not a host", repr(host), "give [USER@]HOST, or a name of ~/.ssh/config")
        self.host = host
        self._folder = tempfile.TemporaryDirectory(prefix="edgetl-ssh-", dir="/tmp")  # a socket's path is short
        settings = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(max(1, round(timeout_s))),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ControlMaster": "auto",
            "ControlPath": str(Path(self._folder.name) / "s"),
            "ControlPersist": "60",
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
            "LogLevel": "ERROR",
        }
        # The user's own words first: of two settings ssh takes the first.
        self._words = ["ssh", *options, *(w for k, v in settings.items() for w in ("-o", f"{k}={v}"))]
        self._words += ["-p", str(port)] if port is not None else []

    def run(self, command: Sequence[str], body: Body = b"", live: Callable[[str], None] | None = None) -> Done:
        """Run `command` there, `body` on its stdin; `live` sees each line of its stderr as it comes.

        Raises ConnectionLost.
        """
        process = self.start(command)
        assert process.stdin and process.stdout and process.stderr
        said: list[str] = []
        out: list[bytes] = []
        readers = [
            threading.Thread(target=_lines, args=(process.stderr, said, live)),
            threading.Thread(target=lambda: out.append(process.stdout.read())),  # type: ignore[union-attr]
            threading.Thread(target=_feed, args=(process.stdin, body)),
        ]
        try:
            for thread in readers:
                thread.start()
            for thread in readers:
                thread.join()
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if code == _LOST:
            raise self.lost("\n".join(said))
        return Done(code, b"".join(out).decode("utf-8", "replace"), "\n".join(said))

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """`command` there as a process with pipes, for what stays open beside other calls."""
        words = [*self._words, "-T", "--", self.host, shlex.join(command)]
        pipe = subprocess.PIPE
        try:
            # A session of its own: a Ctrl-C goes to us, and we end the connection when we are ready.
            return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        except FileNotFoundError:
            raise BackendError("OpenSSH's client is not there", "ssh", "install openssh-client") from None

    def lost(self, said: str) -> ConnectionLost:
        """The error for what ssh said when it ended."""
        last = (said.strip().splitlines() or ["ssh ended"])[-1]
        for words, what, do in _REASONS:
            if words in said:
                return ConnectionLost(what, f"{self.host} ({last})", do)
        return ConnectionLost("the connection was lost", f"{self.host} ({last})", "run the same command again")

    def close(self) -> None:
        """End the master connection."""
        words = [*self._words, "-O", "exit", "--", self.host]
        subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10)
        self._folder.cleanup()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lines(stream: IO[bytes], said: list[str], live: Callable[[str], None] | None) -> None:
    for raw in stream:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        said.append(line)
        if live is not None:
            live(line)


def _feed(stream: IO[bytes], body: Body) -> None:
    try:
        for piece in (body,) if isinstance(body, bytes) else body:
            stream.write(piece)
        stream.close()
    except (BrokenPipeError, OSError):
        pass  # the other end is gone; its exit code says why
