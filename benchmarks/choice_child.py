"""Time of `rank` beside the bare forward passes of the same networks over the same images, in this process.

python -m benchmarks.choice_child DATA IMAGES BACKBONE=FILE...
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgetl.cli.console import tune_for_training

tune_for_training()  # before torch is loaded, as the command does: both sides are of this process

import numpy as np  # noqa: E402  # after the process was set up
import torch  # noqa: E402

from edgetl.images import ReadOptions, draw_balanced, read_data  # noqa: E402
from edgetl.transfer.decoded import Decoded  # noqa: E402
from edgetl.transfer.features import BATCH, to_device  # noqa: E402
from edgetl.transfer.pretrained import Pretrained, Wish, open_pretrained  # noqa: E402
from edgetl.transfer.rank import RankOptions, Search, rank  # noqa: E402


def main(folder: str, count: str, *named: str) -> None:
    """One JSON line: seconds of both by the clock and of the processor, and their ratios.

    The processor's seconds, over all threads, can be compared on a machine that does something else too.
    """
    data = read_data(folder, ReadOptions())
    pairs = [word.partition("=")[::2] for word in named]
    opened = [open_pretrained(Wish(backbone, weights)) for backbone, weights in pairs]
    samples = draw_balanced(data.split("train"), int(count), 0)
    pixels = Decoded(data.root, opened[0].preprocess).inputs(samples)
    _pass(opened[0], pixels[:BATCH])  # the first call of all pays for what it loads
    before = _seconds(lambda: _passes(opened, pixels))
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as cache:
        options = RankOptions(Search(tuple(weights for _, weights in pairs)), images=int(count), cache=Path(cache))
        ranked = _seconds(lambda: rank(data, options))
    after = _seconds(lambda: _passes(opened, pixels))
    forward = (before + after) / 2
    (forward_s, forward_cpu_s), (rank_s, rank_cpu_s) = forward.round(2).tolist(), ranked.round(2).tolist()
    ratio, cpu_ratio = (ranked / forward).round(3).tolist()
    found = {"n_images": len(samples), "size": opened[0].preprocess.size, "forward_s": forward_s, "rank_s": rank_s}
    found |= {"forward_cpu_s": forward_cpu_s, "rank_cpu_s": rank_cpu_s, "ratio": ratio, "cpu_ratio": cpu_ratio}
    print(json.dumps(found))


def _seconds(work: Callable[[], object]) -> np.ndarray:
    """Seconds that `work` takes: by the clock, and of the processor."""
    began = time.perf_counter(), time.process_time()
    work()
    return np.subtract((time.perf_counter(), time.process_time()), began)


def _passes(networks: Sequence[Pretrained], pixels: np.ndarray) -> None:
    for network in networks:
        _pass(network, pixels)


def _pass(network: Pretrained, pixels: np.ndarray) -> None:
    """The whole network over `pixels`, uint8 (N, S, S, 3)."""
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            network.network(to_device(pixels[start : start + BATCH], network.device))


if __name__ == "__main__":
    main(*sys.argv[1:])
