"""Sets of 1,000 to 100,000 files: peak memory, and how soon training starts.

The images are tiny (8 x 8 PNG, each different), so that files, paths and digests weigh, and not pixels: what is left
when decoding costs nothing is what grows with the number of images. The network is the embedded one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.child import cores, run_module
from benchmarks.rows import Case, Row, row

COUNTS = (1_000, 10_000, 100_000)
QUICK_COUNTS = (200, 400)
CLASSES = 10
SIDE = 8


def run(quick: bool) -> Iterator[Row]:
    """A row for each size, and one for photos of an ordinary size with and without loading threads."""
    smallest: float | None = None
    for count in QUICK_COUNTS if quick else COUNTS:
        with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
            data = write_images(Path(folder) / "data", count)
            found = run_module("benchmarks.scale_child", str(data), str(Path(folder) / "bundle"), threads=cores())
        smallest = smallest or found["peak_mb"]
        values = {
            "n_images": count,
            "list_s": round(found["list_s"], 2),
            "first_batch_s": round(found["first_batch_s"], 2),
            "first_step_s": round(found["first_step_s"], 2),
            "seconds": round(found["seconds"], 1),
            "peak_mb": round(found["peak_mb"], 1),
            "baseline_mb": round(found["baseline_mb"], 1),
            "kb_an_image_more": round(1000 * (found["peak_mb"] - smallest) / count, 2),
            "train_images_per_second": round(found["images_per_second"], 1),
        }
        yield row(Case("scale", f"{count:,} images of {SIDE} x {SIDE}, smallnet, one epoch", quick), cores(), values)


def write_images(folder: Path, count: int) -> Path:
    """`count` different PNGs in `CLASSES` class folders; a class has a brighter band of its own."""
    rng = np.random.default_rng(0)
    for target in range(CLASSES):
        (folder / f"class{target}").mkdir(parents=True)
    for index in range(count):
        target = index % CLASSES
        pixels = rng.integers(0, 128, (SIDE, SIDE, 3), dtype=np.uint8)
        band = target % 4 * 2
        pixels[band : band + 2, :, target // 4] += 90
        Image.fromarray(pixels).save(folder / f"class{target}" / f"{index:06}.png", compress_level=1)
    return folder
