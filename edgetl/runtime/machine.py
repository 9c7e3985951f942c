"""This machine as far as engines care: platform, Jetson board, L4T. Plain reads, no root. Python 3.8."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path
from typing import Optional, Tuple

from edgetl.target import Board, board_of, parse_tegra_release

_ROOT = Path("/")


def platform_name() -> str:
    """Operating system and architecture, "linux-x86_64"; an engine is tied to both."""
    return "%s-%s" % (sys.platform, platform.machine().lower())


def jetson_board(root: Path = _ROOT) -> Optional[Board]:
    """The Jetson module this runs on; None on anything else. `root` is where /proc is looked up."""
    try:
        return board_of((root / "proc/device-tree/compatible").read_bytes())
    except OSError:
        return None


def l4t_release(root: Path = _ROOT) -> Optional[str]:
    """The L4T release, "36.4.3"; None where there is none."""
    try:
        return parse_tegra_release((root / "etc/nv_tegra_release").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None


# Instructions that multiply int8 by the group, as /proc/cpuinfo calls them (x86-64, then Arm).
_INT8_FLAGS = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")


def int8_instructions(root: Path = _ROOT) -> Optional[Tuple[str, ...]]:
    """The CPU's int8 dot-product instructions; () has none, None is a machine without /proc/cpuinfo."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    flags = set(match.group(1).split()) if match else set()
    return tuple(flag for flag in _INT8_FLAGS if flag in flags)
