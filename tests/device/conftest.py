"""A real sshd on loopback that plays the device: a home of its own, a key of its own, no password."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@dataclass
class Device:
    """A "device": its sshd, the ssh config that reaches it as "board", and its home folder."""

    home: Path
    config: Path
    known_hosts: Path
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def root(self) -> Path:
        return self.home / ".local/share/edgetl"

    def sessions(self) -> list[int]:
        """Process ids of the sshd processes that serve a connection."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def cut(self) -> None:
        """Cut every connection, as a pulled cable does."""
        for pid in self.sessions():
            found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
            for child in found.stdout.split():
                _kill(int(child))
            _kill(pid)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it went by itself


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Device]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH's client and server are not installed (apt-get install openssh-server)")
    folder, home = tmp_path / "ssh", tmp_path / "home"
    folder.mkdir(mode=0o700)
    home.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = _free_port()
    # The device's own home and PATH: its python3 is this one, which has numpy and onnxruntime.
    (folder / "login").write_text(
        "#!/bin/sh\n"
        f'export HOME="{home}" PATH="{Path(sys.executable).parent}:$PATH" OMP_NUM_THREADS=1\n'
        'cd "$HOME" && exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    (folder / "login").chmod(0o700)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nForceCommand {folder}/login\n"
        "PermitRootLogin yes\nMaxStartups 100\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    known = folder / "known_hosts"
    kind, key = (folder / "host.pub").read_text().split()[:2]
    known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    config = folder / "config"
    config.write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {known}\n"
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait_for(port, process, folder / "log")
        yield Device(home, config, known, process, folder)
    finally:
        process.terminate()
        process.wait()
        log.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip("sshd does not start here: " + log.read_text(errors="replace").strip()[-200:])
        with socket.socket() as found:
            if found.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd did not listen within 5 s")
