"""A real sshd on loopback that plays the device: a home of its own, a key of its own, no password."""

from __future__ import annotations

import os
import shlex
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
    command: list[str]

    @property
    def root(self) -> Path:
        return self.home / ".local/share/edgetl"

    def export(self, **environment: object) -> None:
        """Variables of every login from now on; None takes one away again."""
        self._environment.update(environment)
        lines = [f"export {k}={shlex.quote(str(v))}" for k, v in self._environment.items() if v is not None]
        (self.folder / "environment").write_text("\n".join(lines) + "\n")

    def log_in_through(self, words: str) -> None:
        """A command that runs the shell of every login, say with fewer rights; "" for none."""
        (self.folder / "through").write_text(words)

    def reboot(self) -> None:
        """End every process of the board at once, its sshd too, and start sshd again: only its disk stays."""
        self.process.kill()
        self.process.wait()
        self.cut()
        home = b"HOME=" + str(self.home).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and home in _environment_of(entry):
                _kill(int(entry.name))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log)

    def __post_init__(self) -> None:
        self._environment: dict[str, object] = {}

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


def _environment_of(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []  # it went, or is another user's


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
    ssh = tmp_path / "ssh"
    login = f'export HOME="{home}" PATH="{Path(sys.executable).parent}:$PATH" OMP_NUM_THREADS=1\n'
    login += (
        f'[ ! -f "{ssh}/environment" ] || . "{ssh}/environment"\n[ ! -f "{ssh}/through" ] || T=$(cat "{ssh}/through")'
    )
    with _served(ssh, [SSHD], ssh, login) as (config, known, process, command):
        device = Device(home, config, known, process, ssh, command)
        try:
            yield device
        finally:
            device.process.terminate()
            device.process.wait()


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
        place = Path("/") / name / "ssh"
        with _served(tmp_path / "ssh", command, inside, login, place) as (config, known, process, words):
            yield Device(root / name, config, known, process, tmp_path / "ssh", words)
    finally:
        shutil.rmtree(root / name)


@contextmanager
def _served(
    folder: Path, sshd: list[str], place: Path, login: str, seen: Path | None = None
) -> Iterator[tuple[Path, Path, subprocess.Popen[bytes], list[str]]]:
    """(client's config, known hosts, sshd, its command); sshd's files lie in `place`, which it sees as `seen`."""
    seen = seen or place
    for made in {folder, place}:
        made.mkdir(mode=0o700, exist_ok=True)
    for name, where in (("host", place), ("user", folder)):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(where / name)], check=True)
    port = _free_port()
    (place / "login").write_text(f'#!/bin/sh\n{login}\ncd "$HOME" && exec ${{T:-}} sh -c "$SSH_ORIGINAL_COMMAND"\n')
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
    command = [*sshd, "-D", "-e", "-f", str(seen / "sshd_config")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            _wait_for(port, process, folder / "log")
            yield config, known, process, command
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
    # Stretched, as DeepStream does it too.
    how = ("--weights", "embedded", "--strategy", "linear-probe", "--fit", "stretch")
    edgetl("finetune", folder / "photos", "--to", to, *how)
    edgetl("export", to, "--int8", "--target", "cpu", "--max-drop", "20")
    return to


@pytest.fixture(scope="session")
def for_tensorrt(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with fp32 and fp16 graphs for TensorRT 10; its folder is never changed: tests copy it."""
    to = tmp_path_factory.mktemp("for_tensorrt") / "bundle"
    shutil.copytree(made, to)
    edgetl("export", to, "--fp16", "--target", "jetpack6", "--output", "probabilities")
    return to


DOUBLES = Path(__file__).parents[1] / "doubles"


@pytest.fixture
def with_tensorrt(board: Device, tmp_path: Path) -> Device:
    """A board whose `tensorrt` and libcudart are the doubles (tests/doubles): they run the graph with onnxruntime."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    out = tmp_path / "cuda"
    out.mkdir()
    words = [compiler, "-O1", "-shared", "-fPIC", "-o", str(out / "libcudart.so.13"), str(DOUBLES / "cuda_double.c")]
    subprocess.run(words, check=True)
    board.export(PYTHONPATH=DOUBLES, LD_LIBRARY_PATH=out)
    return board


def edgetl(*words: object) -> None:
    command = [sys.executable, "-m", "edgetl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            pytest.skip("sshd does not start here: " + log.read_text(errors="replace").strip()[-200:])
        with socket.socket() as found:
            if found.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("sshd did not listen within a minute")
