from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetl.bundle import Bundle
from edgetl.graph.pixels import Pixels, graph_logits


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_side_by_side_keep_their_order_and_their_bits(exported: Path, tmp_path: Path, threads: int) -> None:
    images = np.random.default_rng(0).integers(0, 255, (45, 32, 32, 3), dtype=np.uint8)  # 5 batches of 8 and one of 5
    pixels = Pixels.of_array(tmp_path / "pixels", images)
    bundle = Bundle.open(exported)
    path = bundle.file(bundle.artifact("graph", profile="trt10", precision="int8"))
    seen: list[int] = []

    class Watching:
        def progress(self, what: str, done: int, total: int) -> None:
            seen.append(done)

    logits, evidence = graph_logits(path, pixels, threads, Watching())  # type: ignore[arg-type]
    assert evidence == "simulated"
    assert len(logits) == 45 and seen[-1] == 45 and seen == sorted(seen)
    for index in (0, 17, 44):
        first = index // 8 * 8
        alone = Pixels.of_array(tmp_path / "one", images[first : first + 8])
        assert np.array_equal(logits[index], graph_logits(path, alone, 1)[0][index - first])
