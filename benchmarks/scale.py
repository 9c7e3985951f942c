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
FIT_COUNTS = (10_000, 100_000)
WIDTH = 1280  # MobileNetV2's


def run(quick: bool) -> Iterator[Row]:
    """A row for each size, and one for photos of an ordinary size with and without loading threads."""
    smallest: float | None = None
    for count in QUICK_COUNTS if quick else COUNTS:
        with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
            data = write_images(Path(folder) / "data", count)
            found = run_module(
                "benchmarks.scale_child", "run", str(data), str(Path(folder) / "bundle"), threads=cores()
            )
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


def run_fit(quick: bool) -> Iterator[Row]:
    """A row for each number of images and each fit to features that lie in a file, as those of a run do."""
    for count in (400,) if quick else FIT_COUNTS:
        with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
            features = write_features(Path(folder) / "features.f32", count)
            for fitted in ("linear-probe", "features"):
                found = run_module("benchmarks.scale_child", "fit", str(features), fitted, threads=cores())
                values = {
                    "fitted": fitted,
                    "n_images": count,
                    "width": WIDTH,
                    "matrix_mb": round(count * WIDTH * 4 / 1e6, 1),
                    **{key: round(found[key], 1) for key in ("peak_mb", "baseline_mb", "seconds")},
                }
                yield row(Case("scale_fit", f"{fitted} on {count:,} x {WIDTH} features", quick), cores(), values)


def write_features(path: Path, count: int) -> Path:
    """float32 (count, WIDTH) as from behind a ReLU; the class of row i is i % CLASSES, and the centres lie apart."""
    rng = np.random.default_rng(0)
    centres = 0.12 * rng.standard_normal((CLASSES, WIDTH), np.float32)
    with path.open("wb") as stream:
        for start in range(0, count, 1000):
            targets = np.arange(start, min(start + 1000, count)) % CLASSES
            noise = rng.standard_normal((len(targets), WIDTH), np.float32)
            stream.write(np.maximum(noise + centres[targets], 0).tobytes())
    return path
