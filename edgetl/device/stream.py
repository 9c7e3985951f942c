"""`run`: a stream of images in, one JSON line an image out; what the systemd unit starts. Python 3.8.

Temperature and threshold come from the manifest's `confidence`; an answer below the threshold says so in
"abstained", and its label stays readable.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional

import numpy as np

from edgetl.device.chosen import Chosen
from edgetl.device.sources import Frame
from edgetl.errors import DataError
from edgetl.images import fitted, resized
from edgetl.measure.confidence import abstain_below, temperature_left
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime import Backend, run_pixels
from edgetl.runtime.classify import top_k
from edgetl.spec import Preprocess

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL import Image

Line = Dict[str, Any]


class Answering:
    """A backend with all that turns pixels into an answer: labels, temperature, threshold. `close` it."""

    def __init__(self, chosen: Chosen, top: int = 1, precision_wanted: Optional[float] = None) -> None:
        bundle = chosen.bundle
        row = abstain_below(bundle.manifest, precision_wanted)
        self.threshold = float((row or {}).get("threshold") or 0.0)
        self.temperature = temperature_left(bundle.manifest, chosen.record)
        self.labels, self.preprocess, self.top = bundle.labels, bundle.preprocess, top
        self.backend: Backend = chosen.opens()

    def answer(self, pixels: npt.NDArray[np.uint8]) -> Line:
        """uint8 (S, S, 3) -> {"label", "probability", "abstained", "top"}."""
        logits = run_pixels(self.backend, pixels[None])[0] / np.float32(self.temperature)
        found = top_k(logits, self.labels, self.top)
        return dict(found[0], abstained=found[0]["probability"] < self.threshold, top=found)

    def close(self) -> None:
        """Give the backend back."""
        self.backend.close()


def pixels_of(image: Image.Image, spec: Preprocess, name: object) -> npt.NDArray[np.uint8]:
    """uint8 (S, S, 3) of a decoded image: the steps of `images.to_input` after its decoding."""
    return np.array(fitted(resized(image, spec, name), spec), dtype=np.uint8)


@dataclass
class Totals:
    """What a stream came to so far."""

    images: int = 0
    errors: int = 0
    abstained: int = 0
    dropped: int = 0


def stream(
    answering: Answering,
    frames: Iterator[Frame],
    emit: Callable[[Line], None],
    totals: Totals,
    monitor: Monitor = SILENT,
) -> None:
    """Answer each frame and `emit` its line, counting in `totals`. A file that is no image has an "error" line.

    A line: {"image", "time", "label", "probability", "abstained", "top", "ms": {"preprocess", "run"}, "dropped"}.
    """
    for frame in frames:
        totals.dropped += frame.dropped
        try:
            line = _line(answering, frame)
        except DataError as error:  # one bad image must not end a service
            totals.errors += 1
            emit({"image": frame.name, "time": round(frame.seconds, 3), "error": error.as_json()})
            monitor.warn(str(error))
            continue
        totals.images += 1
        totals.abstained += bool(line["abstained"])
        emit(line)


def _line(answering: Answering, frame: Frame) -> Line:
    if frame.image is None:
        raise frame.error or DataError("no image", frame.name, "check the source")
    start = time.perf_counter()
    pixels = pixels_of(frame.image, answering.preprocess, frame.name)
    middle = time.perf_counter()
    found = answering.answer(pixels)
    end = time.perf_counter()
    spent = {"preprocess": round((middle - start) * 1e3, 3), "run": round((end - middle) * 1e3, 3)}
    return dict({"image": frame.name, "time": round(frame.seconds, 3)}, **found, ms=spent, dropped=frame.dropped)
