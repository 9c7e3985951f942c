"""What a deploy leaves on a device and what it costs there: nothing for a look, two Python starts a second time."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

Device = Any  # conftest.Device
PC_USER = "zwingli-of-the-pc"


def edgetl(*words: object, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgetl", *map(str, words), "--json"]
    env = dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1", **environment)
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def everything(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder` with its bytes; None for what is no file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


def counted(board: Device) -> Path:
    """A python3 in front of the board's own that notes each start; the file it notes them in."""
    notes, programs = board.home / "starts", board.home / "programs"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\necho "$*" >>"{notes}"\nexec "{sys.executable}" "$@"\n')
    (programs / "python3").chmod(0o755)
    board.export(PATH=f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    return notes


def test_to_look_leaves_nothing_there(board: Device, made: Path, tmp_path: Path) -> None:
    ssh = ("--ssh-config", board.config)
    shutil.copytree(made, tmp_path / "flowers")
    (board.home / "tmp").mkdir()
    board.export(TMPDIR=board.home / "tmp")
    before = everything(board.home)
    planned = edgetl("deploy", tmp_path / "flowers", "board", *ssh, "--backend", "onnxruntime", "--dry-run")
    push = next(step for step in planned["steps"] if step["name"] == "push")
    assert push["status"] == "planned" and push["bytes"] > 0
    assert len(planned["probe"]["app"]["sha256"]) == 64
    edgetl("deploy", tmp_path / "flowers", "board", *ssh, "--status")
    clock = next(row for row in edgetl("doctor", "--device", "board", *ssh)["rows"] if row["name"] == "Clock")
    assert clock["value"] in {f"{seconds} s off" for seconds in range(60)}
    assert everything(board.home) == before


def test_a_second_deploy_and_what_the_device_knows_of_this_machine(board: Device, made: Path, tmp_path: Path) -> None:
    """Its user, its home, where the bundle and the photos lie, its name: none of them is in any file there."""
    home = tmp_path / PC_USER
    shutil.copytree(made, home / "flowers")
    notes = counted(board)
    words = ("deploy", home / "flowers", "board", "--ssh-config", board.config, "--backend", "onnxruntime")
    who = {"USER": PC_USER, "LOGNAME": PC_USER}
    edgetl(*words, "--seconds", "0.1", **who)
    notes.unlink()
    second = edgetl(*words, "--seconds", "0.1", **who)
    starts = notes.read_text().splitlines()
    assert [words.split()[words.split().index("--protocol") + 2] for words in starts] == ["probe", "--job"], starts
    assert " bench " in starts[1]
    assert sum(step["bytes"] for step in second["steps"]) < 100_000

    secrets = [PC_USER, str(tmp_path), str(made), str(Path.home()), str(Path(__file__).parents[2]), "photos/"]
    secrets = [secret for secret in secrets if len(secret) > 5]
    if len(platform.node()) > 5:
        secrets.append(platform.node())
    for name, data in everything(board.home / ".local").items():
        for secret in secrets:
            assert secret not in name and (data is None or secret.encode() not in data), (name, secret)
    assert not list((board.root / "flowers/jobs").iterdir())
