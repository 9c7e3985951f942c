"""Boards composed from documented formats, as trees of files that the probe reads (tests/data/boards)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetl.device.system import System

BOARDS = Path(__file__).resolve().parents[2] / "data/boards"
NAMES = sorted(path.stem for path in BOARDS.glob("*.json"))


def laid_out(files: dict[str, str], root: Path) -> System:
    for name, contents in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents.encode("utf-8"))
        if "/sbin/" in name or "/bin/" in name:
            path.chmod(0o755)
    return System(root)


@pytest.fixture
def board(tmp_path: Path) -> Callable[[str], tuple[System, dict[str, Any]]]:
    """board("orin-nx-16-jp6.0") -> (its files as a System, what the probe should say)."""

    def make(name: str) -> tuple[System, dict[str, Any]]:
        told = json.loads((BOARDS / f"{name}.json").read_text(encoding="utf-8"))
        return laid_out(told["files"], tmp_path / name), told["expect"]

    return make
