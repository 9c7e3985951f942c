"""When the kernel kills a build for memory: with how much workspace, then at which level, it is tried next.

Pure decisions, Python 3.8. GPU allocations cannot be swapped, so on a small board a build that wants too much is
killed (exit 137). Less workspace costs the fastest tactics only; lower optimisation levels try fewer of all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional

SMALL_WORKSPACE_MIB = 256
LEVELS = (2, 1, 0)  # TensorRT's own default is 3
_KILLED = (-9, 137)
_WORDS = ("out of memory", "outofmemory", "memory allocation", "could not allocate", "failed to allocate")
_BASE_MB = 900  # TensorRT's libraries and a CUDA context on a Jetson
_GRAPHS = 6  # a build holds the weights several times: parsed, converted, in candidates


@dataclass(frozen=True)
class Attempt:
    """What one try of a build may use. `workspace_mib` 0: TensorRT's own limit; `level` -1: its default."""

    workspace_mib: int = 0
    level: int = -1

    def __str__(self) -> str:
        workspace = "%d MiB workspace" % self.workspace_mib if self.workspace_mib else "workspace not limited"
        return workspace + (", level %d" % self.level if self.level >= 0 else "")

    def to_json(self) -> Dict[str, Any]:
        """A plain dict."""
        return {"workspace_mib": self.workspace_mib, "level": self.level}


def after_kill(tried: Attempt, levels: bool) -> Optional[Attempt]:
    """The next rung, None after the last. `levels`: this TensorRT has optimisation levels (8.6 and later)."""
    if not 0 < tried.workspace_mib <= SMALL_WORKSPACE_MIB:
        return Attempt(SMALL_WORKSPACE_MIB, tried.level)
    lower = [level for level in LEVELS if tried.level < 0 or level < tried.level]
    return Attempt(tried.workspace_mib, lower[0]) if lower and levels else None


def was_memory(returncode: int, error: Optional[Mapping[str, Any]]) -> bool:
    """Whether a try ended for lack of memory: killed by the kernel, or with an error that says so."""
    if returncode in _KILLED:
        return True
    said = " ".join(str(v) for v in (error or {}).values()).lower()
    return any(word in said for word in _WORDS)


@dataclass(frozen=True)
class Preflight:
    """Whether a build is tried, and from which rung; `why` is for people. `need_mb` is an estimate."""

    start: Optional[Attempt]
    need_mb: int
    why: str


def preflight(asked: Attempt, available_mb: Optional[int], graph_bytes: int) -> Preflight:
    """Where to start with `available_mb` of memory: as asked, from the small workspace, or (None) not at all.

    What is asked for by number is never changed here; only what is left to us.
    """
    weights = graph_bytes * _GRAPHS // 1000000
    least = _BASE_MB // 2 + weights
    need = _BASE_MB + weights + asked.workspace_mib * 1048576 // 1000000
    if available_mb is None:
        return Preflight(asked, need, "free memory unknown")
    said = "%d MB available, about %d MB needed" % (available_mb, need)
    if available_mb < least:
        return Preflight(None, least, "%d MB available, at least %d MB needed" % (available_mb, least))
    if available_mb < need + SMALL_WORKSPACE_MIB and asked.workspace_mib == 0:
        return Preflight(Attempt(SMALL_WORKSPACE_MIB, asked.level), need, said)
    return Preflight(asked, need, said)
