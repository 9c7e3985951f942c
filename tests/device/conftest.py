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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
    """This machine as the device: python3 there is this one, with numpy and onnxruntime."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH's client and server are not installed (apt-get install openssh-server)")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    login = f'export HOME="{home}" PATH="{Path(sys.executable).parent}:$PATH" OMP_NUM_THREADS=1'
    with _served(tmp_path / "ssh", [SSHD], tmp_path / "ssh", login) as (config, known, process):
        yield Device(home, config, known, process, tmp_path / "ssh")


@pytest.fixture
def orin(tmp_path: Path) -> Iterator[Device]:
    """A real aarch64 Debian that calls itself an Orin Nano (userland.sh), with an sshd of its own."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgetl/aarch64"
    root = Path(os.environ.get("EDGETL_AARCH64", default))
    if os.getuid() != 0 or not (root / ".complete").is_file() or shutil.which("ssh") is None:
        pytest.skip(f"no aarch64 userland at {root} (made by tests/device/userland.sh), or not root")
    runs = subprocess.run(["chroot", str(root), "/bin/uname", "-m"], capture_output=True, text=True, check=False)
    if runs.stdout.strip() != "aarch64":
        pytest.skip("the kernel does not run aarch64 programs (binfmt): tests/device/userland.sh says how")
    name = "home/" + tmp_path.name + str(os.getpid())
    (root / name).mkdir(parents=True, mode=0o700)
    inside = root / name / "ssh"
    login = f'export HOME="/{name}" OMP_NUM_THREADS=1'
    command = ["chroot", str(root), "/usr/sbin/sshd"]
    try:
        with _served(tmp_path / "ssh", command, inside, login, Path("/") / name / "ssh") as (config, known, process):
            yield Device(root / name, config, known, process, tmp_path / "ssh")
    finally:
        shutil.rmtree(root / name)


@contextmanager
def _served(
    folder: Path, sshd: list[str], place: Path, login: str, seen: Path | None = None
) -> Iterator[tuple[Path, Path, subprocess.Popen[bytes]]]:
    """(client's config, known hosts, sshd); sshd's files lie in `place`, which it sees as `seen`."""
    seen = seen or place
    for made in {folder, place}:
        made.mkdir(mode=0o700, exist_ok=True)
    for name, where in (("host", place), ("user", folder)):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(where / name)], check=True)
    port = _free_port()
    (place / "login").write_text(f'#!/bin/sh\n{login}\ncd "$HOME" && exec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    (place / "login").chmod(0o700)
    (place / "authorized").write_text((folder / "user.pub").read_text())
    (place / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {seen}/host\nAuthorizedKeysFile {seen}/authorized\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nForceCommand {seen}/login\n"
        "PermitRootLogin yes\nMaxStartups 100\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    known, config = folder / "known_hosts", folder / "config"
    kind, key = (place / "host.pub").read_text().split()[:2]
    known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    config.write_text(
        f"Host board\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {known}\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*sshd, "-D", "-e", "-f", str(seen / "sshd_config")], stderr=log)
        try:
            _wait_for(port, process, folder / "log")
            yield config, known, process
        finally:
            process.terminate()
            process.wait()


LABELS = ("left", "a; rm -rf ~", 'qu"o, te')


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle on the embedded backbone with cpu graphs; its folder is never changed: tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    for index, label in enumerate(LABELS):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 90, (40, 40, 3), dtype=np.uint8)
            pixels[:, :, index % 3] += 120
            Image.fromarray(pixels).save(folder / "photos" / label / f"{i:03}.jpg")
    to = folder / "bundle"
    edgetl("finetune", folder / "photos", "--to", to, "--weights", "embedded", "--strategy", "linear-probe")
    edgetl("export", to, "--int8", "--target", "cpu", "--max-drop", "20")
    return to


def edgetl(*words: object) -> None:
    command = [sys.executable, "-m", "edgetl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
