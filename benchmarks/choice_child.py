"""Time of `rank` beside the bare forward passes of the same networks over the same images, in this process.

python -m benchmarks.choice_child DATA IMAGES BACKBONE=FILE...
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from edgetl.images import ReadOptions, draw_balanced, read_data
from edgetl.transfer.decoded import Decoded
from edgetl.transfer.features import BATCH, to_device
from edgetl.transfer.pretrained import Pretrained, Wish, open_pretrained
from edgetl.transfer.rank import RankOptions, Search, rank


def main(folder: str, count: str, *named: str) -> None:
    """One JSON line: seconds of both, and their ratio."""
    data = read_data(folder, ReadOptions())
    pairs = [word.partition("=")[::2] for word in named]
    opened = [open_pretrained(Wish(backbone, weights)) for backbone, weights in pairs]
    samples = draw_balanced(data.split("train"), int(count), 0)
    pixels = Decoded(data.root, opened[0].preprocess).inputs(samples)
    _pass(opened[0], pixels[:BATCH])  # the first call of all pays for what it loads
    before = sum(_pass(network, pixels) for network in opened)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as cache:
        search = Search(tuple(weights for _, weights in pairs))
        rank(data, RankOptions(search, images=int(count), cache=Path(cache)))
        ranked = time.perf_counter() - began
    after = sum(_pass(network, pixels) for network in opened)
    forward = (before + after) / 2
    found = {"n_images": len(samples), "size": opened[0].preprocess.size, "forward_s": round(forward, 2)}
    print(json.dumps({**found, "rank_s": round(ranked, 2), "ratio": round(ranked / forward, 3)}))


def _pass(network: Pretrained, pixels: np.ndarray) -> float:
    """Seconds of the whole network over `pixels`, uint8 (N, S, S, 3)."""
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            network.network(to_device(pixels[start : start + BATCH], network.device))
    return time.perf_counter() - began


if __name__ == "__main__":
    main(*sys.argv[1:])
