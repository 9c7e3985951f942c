"""What is tried next when a build is killed, and from where one begins."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.device.ladder import SMALL_WORKSPACE_MIB, Attempt, after_kill, preflight, was_memory


def rungs(first: Attempt, levels: bool = True) -> list[Attempt]:
    out, at = [], after_kill(first, levels)
    while at is not None:
        out.append(at)
        at = after_kill(at, levels)
    return out


def test_workspace_first_then_level() -> None:
    assert rungs(Attempt()) == [Attempt(256), Attempt(256, 2), Attempt(256, 1), Attempt(256, 0)]
    assert rungs(Attempt(), levels=False) == [Attempt(256)]
    assert rungs(Attempt(128, 1)) == [Attempt(128, 0)]


@given(st.builds(Attempt, st.integers(0, 8192), st.integers(-1, 5)), st.booleans())
def test_every_rung_asks_for_less_and_the_last_is_reached(first: Attempt, levels: bool) -> None:
    found = [first, *rungs(first, levels)]
    assert len(found) <= 7

    def wants(a: Attempt) -> tuple[int, int]:
        return (a.workspace_mib or 1 << 20, 3 if a.level < 0 else a.level)

    for before, after in pairwise(found):
        assert wants(after) < wants(before) and after.level <= max(before.level, 2)


@pytest.mark.parametrize(
    "code, error, memory",
    [
        (-9, None, True),
        (137, None, True),
        (1, {"what": "TensorRT could not build the engine", "value": "OutOfMemory (no further information)"}, True),
        (1, {"what": "CUDA failed in cudaMalloc", "value": "2 cudaErrorMemoryAllocation: out of memory"}, True),
        (1, {"what": "NVIDIA's parser refused the graph", "value": "Conv '/c'"}, False),
        (0, None, False),
        (-11, None, False),
    ],
)
def test_what_counts_as_lack_of_memory(code: int, error: dict[str, str] | None, memory: bool) -> None:
    assert was_memory(code, error) is memory


def test_where_a_build_begins() -> None:
    small, large = 10_000_000, 200_000_000
    assert preflight(Attempt(), 6000, small).start == Attempt()
    assert preflight(Attempt(), 1000, small).start == Attempt(SMALL_WORKSPACE_MIB)
    assert preflight(Attempt(2048), 1000, small).start == Attempt(2048), "what was asked for by number stays"
    assert preflight(Attempt(), 400, small).start is None
    assert preflight(Attempt(), 1500, large).start is None, "a large graph needs more"
    assert preflight(Attempt(), None, large).start == Attempt()
    assert "1000 MB available" in preflight(Attempt(), 1000, small).why
