"""Peak memory belongs to the backend, not to the process that asks for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetl.errors import BackendError
from edgetl.measure.memory import peak_of, peak_rss_mb
from edgetl.runtime.ort import OrtBackend

MakeGraph = Callable[..., Path]


@pytest.mark.skipif(peak_rss_mb() is None, reason="this system does not tell a process its peak")
def test_a_large_parent_does_not_count(tiny_graph: MakeGraph) -> None:
    ballast = np.ones(60_000_000)  # 480 MB, touched
    parent = peak_rss_mb()
    found = peak_of(functools.partial(OrtBackend, tiny_graph(), threads=1))
    assert parent is not None
    assert parent > ballast.nbytes / 1e6
    assert found is not None
    assert 10 < found < 300


@pytest.mark.skipif(peak_rss_mb() is None, reason="this system does not tell a process its peak")
def test_a_larger_batch_peaks_higher(tiny_graph: MakeGraph) -> None:
    opens = functools.partial(OrtBackend, tiny_graph(size=64), threads=1)
    small, large = peak_of(opens, 1), peak_of(opens, 512)
    assert small is not None
    assert large is not None
    assert large > small + 10  # 512 images of 64 px: 25 MB of input alone


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no such graph"):
        peak_of(functools.partial(OrtBackend, tmp_path / "none.onnx"))


def test_a_child_that_takes_too_long_is_ended(tiny_graph: MakeGraph) -> None:
    with pytest.raises(BackendError, match="too long"):
        peak_of(functools.partial(OrtBackend, tiny_graph()), timeout=0.01)
