"""What DeepStream's own resize costs in accuracy, emulated here: a row beside those of the bench.

What is emulated: `nvinfer` with maintain-aspect-ratio=0 and scaling-filter=1 hands whole frames to NvBufSurfTransform
with NvBufSurfTransformInter_Bilinear (nvbufsurftransform.h: the methods that look beyond the nearest four pixels are
others, "GPU-Super, VIC-10 Tap" and so on). So each output pixel is interpolated between the four input pixels around
its centre, and nothing is averaged before: where an image shrinks, detail aliases, which the bundle's own resize
(Pillow's, whose filter grows with the ratio) avoids.
What is not: the board's fixed-point rounding, and colours that a video decoder hands over as subsampled YUV. No
Jetson was asked: the figure is "simulated", and says how much of the accuracy hangs on the resize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edgetl.bench.protocol import BenchData
from edgetl.errors import InputError
from edgetl.images import Sample, decode, draw_balanced, fitted, resized
from edgetl.images.stream import prefetched, read_sample
from edgetl.measure import Paired, Task
from edgetl.measure.environment import environment
from edgetl.measure.rows import Row
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import Backend, run_pixels
from edgetl.spec import Fit, Preprocess

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.intp]
    Logits = Floats

LIMIT = 512  # images, class-balanced: as many as a deploy proves with
FILTER = "nvinfer, scaling-filter=1: bilinear between four pixels, emulated"
BEHIND_DEEPSTREAM = "+DeepStream"  # how the provider of such a row ends
_BATCH = 8


@dataclass(frozen=True)
class ResizeCost:
    """`row`: the graph behind DeepStream's resize, against the reference behind the bundle's own, as any bench row.

    `alone`: the same graph behind both resizes, {"filter", "own_accuracy", "drop_pp", "drop_ci_pp", "agreement",
    "flips"}: what the resize costs by itself. `environment`: of the row, with its "id".
    """

    row: Row
    alone: dict[str, Any]
    environment: dict[str, Any]


def as_deepstream(image: Image.Image, size: int) -> Pixels:
    """uint8 (size, size, 3): `image` stretched by four-pixel bilinear interpolation, pixel centres at halves."""
    pixels = np.asarray(image, dtype=np.float32)
    (top, bottom, down), (left, right, along) = (_neighbours(length, size) for length in pixels.shape[:2])
    rows = pixels[top] * (1 - down)[:, None, None] + pixels[bottom] * down[:, None, None]
    out = rows[:, left] * (1 - along)[:, None] + rows[:, right] * along[:, None]
    return np.rint(out).astype(np.uint8)


def _neighbours(length: int, size: int) -> tuple[Ints, Ints, Floats]:
    """For each of `size` outputs along an axis of `length` pixels: the pixel before, the one after, and its share."""
    centre = (np.arange(size) + 0.5) * length / size - 0.5
    before = np.floor(centre).astype(int)
    share = (centre - before).astype(np.float32)
    return np.clip(before, 0, length - 1), np.clip(before + 1, 0, length - 1), share


def resize_cost(
    graph: Backend,
    record: Mapping[str, Any],
    reference: Backend,
    images: BenchData,
    task: Task,
    seed: int = 0,
    monitor: Monitor = SILENT,
) -> ResizeCost:
    """Accuracy of `graph` (its manifest record: `record`) behind DeepStream's resize, on up to LIMIT of the images.

    Raises InputError where the bundle's Preprocess is not a stretch, which DeepStream cannot do; DataError.
    """
    if images.preprocess.fit is not Fit.STRETCH:
        raise InputError(
            "DeepStream stretches whole frames",
            f"--fit {images.preprocess.fit}",
            "fine-tune with --fit stretch to compare it",
        )
    drawn = draw_balanced(images.samples, LIMIT, seed)
    truth, own, theirs = _outputs(graph, reference, drawn, images, monitor)
    targets = np.array([sample.target for sample in drawn])
    where = environment()
    row = Row(
        id=f"onnxruntime-{record['profile']}-{record['precision']}-deepstream-b1",
        environment=str(where["id"]),
        backend="onnxruntime",
        provider=graph.provider + BEHIND_DEEPSTREAM,
        profile=str(record["profile"]),
        precision=str(record["precision"]),
        graph_sha256=str(record["sha256"]),
        engine_key=None,
        status="ok",
        error=None,
        split=images.split,
        batch=1,
        n_images=len(drawn),
        size_bytes=int(record["bytes"]),
        accuracy_evidence="simulated",
    )
    found = task.metrics(theirs, targets, images.labels)
    beside = _beside(task.compare(truth, theirs, targets, seed))
    row = replace(row, accuracy=found["accuracy"], accuracy_ci=tuple(found["accuracy_ci"]), **beside)
    before = task.metrics(own, targets, images.labels)["accuracy"]
    alone = {"filter": FILTER, "own_accuracy": before, **_beside(task.compare(own, theirs, targets, seed))}
    return ResizeCost(row, {**alone, "drop_ci_pp": list(alone["drop_ci_pp"])}, where)


def _beside(paired: Paired) -> dict[str, Any]:
    return {name: getattr(paired, name) for name in ("drop_pp", "drop_ci_pp", "agreement", "flips")}


def _outputs(
    graph: Backend, reference: Backend, drawn: Sequence[Sample], images: BenchData, monitor: Monitor
) -> tuple[Logits, Logits, Logits]:
    """(reference, graph, graph behind DeepStream's resize), each (N, C); every image is decoded once."""
    parts: list[tuple[Logits, Logits, Logits]] = []
    done = 0
    for chunk, pairs in prefetched(drawn, _BATCH, partial(_both, images.root, images.preprocess)):
        own, theirs = (np.stack([pair[i] for pair in pairs]) for i in (0, 1))
        parts.append((run_pixels(reference, own), run_pixels(graph, own), run_pixels(graph, theirs)))
        done += len(chunk)
        monitor.progress("DeepStream's resize", done, len(drawn))
    truth, mine, other = (np.concatenate(column) for column in zip(*parts, strict=True))
    return truth, mine, other


def _both(root: Path, spec: Preprocess, sample: Sample) -> tuple[Pixels, Pixels]:
    path = root / sample.path
    image = decode(read_sample(root, sample), path)
    own = fitted(resized(image, spec, path), spec)
    return np.array(own, dtype=np.uint8), as_deepstream(image, spec.size)
