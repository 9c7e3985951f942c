"""Running the fp32 source graph over the calibration images and counting what flows through it.

The second door to onnxruntime (the first is runtime/ort). Images go through one at a time: a kernel may
round the last bit otherwise in another batch, so this alone makes the counts independent of batches and of
the order of the images, to the bit. It costs under a millisecond an image, and bounds memory by two images'
activations: one is counted while the next one runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgetl.errors import DataError, GraphError
from edgetl.graph import surgery
from edgetl.graph.ranges import Histogram
from edgetl.images import to_batch
from edgetl.runtime.ort import options

_CONTRAST = 8  # of 255: an image whose every channel spans less shows nothing (a lens cap, a blank page)
_COUNTED = 1 << 16  # values of a tensor that an image adds to its histogram; its peak is that of all of them
_SAME = 1e-6  # of the largest logit: answers this near each other are one answer
FP16_LIMIT = 65504 / 4  # a fourth of float16's largest number: room for images that calibration did not see
FP16_FLOOR = 2.0**-13  # float16's steps are 2**-24 here and below: fewer than 11 bits are left of a smaller peak


@dataclass
class Statistics:
    """What flowed through the network.

    `histograms` of the tensors to be quantised, `peaks` (largest |x|) of every float tensor, over `n` images;
    `half`: the histograms of the first `n_half` of them, to tell how far the ranges still move.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    n: int = 0
    half: dict[str, Histogram] = field(default_factory=dict)
    n_half: int = 0


class Calibration:
    """A session over the source graph that hands out its inner tensors; feed it images, read `statistics`."""

    def __init__(self, source: onnx.ModelProto, counted: Sequence[str], threads: int = 0) -> None:
        self.statistics = Statistics(histograms={name: Histogram() for name in counted})
        self._watched = _float_tensors(source)
        missing = set(counted) - set(self._watched) - {surgery.INPUT}
        if missing:
            raise GraphError("tensors that cannot be watched during calibration", ", ".join(sorted(missing)[:3]))
        self._session = session(source, self._watched, threads)
        self._first: np.ndarray | None = None  # the first image's logits (1, C)
        self._differs = False
        self.blank = 0  # images without contrast

    def feed(self, images: Iterable[np.ndarray], on_images: Callable[[int], None] | None = None) -> None:
        """Count `images`, each uint8 (S, S, 3). Raises GraphError on NaN or inf inside the network."""
        for image, values in self._values(images):
            for name, value in values.items():
                self._see(name, value)
            self._compare(values.get(surgery.LOGITS))
            self.blank += int(np.ptp(image, axis=(0, 1)).max() < _CONTRAST)
            self.statistics.n += 1
            if on_images:
                on_images(self.statistics.n)

    def _values(self, images: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """(image, every watched tensor and the input); the next image runs while the caller counts this one."""
        waiting: tuple[np.ndarray, np.ndarray, Future[list[np.ndarray]]] | None = None
        with ThreadPoolExecutor(1) as ahead:
            for image in itertools.chain(images, [None]):
                before = waiting
                if image is not None:
                    batch = to_batch(image[None], "float32")
                    waiting = image, batch, ahead.submit(self._session.run, self._watched, {surgery.INPUT: batch})
                if before is not None:
                    values = dict(zip(self._watched, before[2].result(), strict=True))
                    yield before[0], {**values, surgery.INPUT: before[1]}

    def look(self) -> dict[str, Histogram]:
        """The histograms so far, as copies."""
        return {name: replace(h, counts=h.counts.copy()) for name, h in self.statistics.histograms.items()}

    def check(self) -> None:
        """Raise where what was seen can be no base for ranges: blank images, or a network that does not look at them.

        DataError, GraphError.
        """
        n = self.statistics.n
        if n and self.blank == n:
            raise DataError(
                "the calibration images show nothing: each is one plain colour",
                f"{n} images",
                "calibrate on photos of what the network will see, with --calib DATA",
            )
        if n > 1 and self._first is not None and not self._differs:
            raise GraphError(
                "the network gives the same answer whatever it sees",
                f"{n} calibration images",
                "it was not trained, or its weights or Preprocess are broken; there is nothing to quantise",
            )

    def _compare(self, logits: np.ndarray | None) -> None:
        if logits is None or self._differs:
            return
        if self._first is None:
            self._first = logits
        self._differs = logits is not self._first and not is_constant(np.concatenate([self._first, logits]))

    def _see(self, name: str, value: np.ndarray) -> None:
        histogram = self.statistics.histograms.get(name)
        if histogram is not None:
            histogram.add(value, name, _COUNTED)
            peak = histogram.peak
        else:
            # NaN passes through max and min, so two reductions find it without a copy of |x|.
            peak = max(float(value.max()), -float(value.min())) if value.size else 0.0
            if not np.isfinite(peak):
                raise GraphError("NaN or inf inside the network on a calibration image", name, "check the checkpoint")
        self.statistics.peaks[name] = max(self.statistics.peaks.get(name, 0.0), peak)


def is_constant(logits: np.ndarray) -> bool:
    """Whether all rows of `logits` (n, C) are one answer, n > 1."""
    first = logits[:1]
    return len(logits) > 1 and bool(np.abs(logits - first).max() <= _SAME * np.abs(first).max())


def _float_tensors(source: onnx.ModelProto) -> list[str]:
    """Every float32 tensor that a node makes, in graph order."""
    inferred = onnx.shape_inference.infer_shapes(source, data_prop=True)
    known = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    made = [name for node in source.graph.node for name in node.output if name]
    return [name for name in made if known.get(name) == TensorProto.FLOAT]


def session(
    model: onnx.ModelProto, watched: Sequence[str], threads: int = 0, simulate: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the CPU that gives the float32 tensors `watched`, inner ones too, in place of the outputs.

    `simulate`: keep Q/DQ pairs as they are written; see runtime/ort. Raises GraphError.
    """
    model = surgery.copy_of(model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in watched)
    settings = options(threads=threads, simulate=simulate)
    # Activations come out of the arena anyway; a pattern per batch size would only hold memory.
    settings.enable_mem_pattern = False
    settings.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except (RuntimeError, ValueError) as error:
        raise GraphError("onnxruntime cannot run the graph for calibration", error) from error


def outside_float16(source: onnx.ModelProto, peaks: dict[str, float]) -> Iterator[str]:
    """Names of the nodes that FP16 may turn to inf or to nothing, by the calibration peaks of what they read or make.

    That is above FP16_LIMIT or below FP16_FLOOR (a tensor of zeros loses nothing), or a constant beyond
    float16. onnxruntime's CPU kernels compute FP16 in wider registers and hide an overflow, so these are
    kept in FP32: range-checked, not simulated.
    """
    outside = {name for name, peak in peaks.items() if peak > FP16_LIMIT or 0 < peak < FP16_FLOOR}
    outside.update(tensor.name for tensor in source.graph.initializer if _beyond_float16(tensor))
    for node in source.graph.node:
        if outside.intersection(node.output) or outside.intersection(node.input):
            yield node.name


def _beyond_float16(tensor: onnx.TensorProto) -> bool:
    """Constants are known to the bit, so they need no room above them."""
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(tensor)
    return bool(values.size and np.abs(values).max() > np.finfo(np.float16).max)
