"""Running the fp32 source graph over the calibration images and counting what flows through it.

The second door to onnxruntime (the first is runtime/ort). Memory is bounded by one small batch of
activations, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.graph.ranges import Histogram
from edgetl.images import to_batch
from edgetl.runtime.ort import options

_ACTIVATION_BYTES = 32 << 20  # held at once; more gains nothing on a CPU
FP16_LIMIT = 65504 / 4  # a fourth of float16's largest number: room for images that calibration did not see


@dataclass
class Statistics:
    """`histograms` of the tensors to be quantised, `peaks` (largest |x|) of every float tensor, `n` images."""

    histograms: dict[str, Histogram] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    n: int = 0


class Calibration:
    """A session over the source graph that hands out its inner tensors; feed it images, read `statistics`."""

    def __init__(self, source: onnx.ModelProto, counted: Sequence[str], threads: int = 0) -> None:
        self.statistics = Statistics(histograms={name: Histogram() for name in counted})
        self._watched = _float_tensors(source)
        missing = set(counted) - set(self._watched) - {surgery.INPUT}
        if missing:
            raise GraphError("tensors that cannot be watched during calibration", ", ".join(sorted(missing)[:3]))
        self._session = session(source, self._watched, threads)
        self._batch = 1

    def feed(self, images: Iterable[np.ndarray], on_images: Callable[[int], None] | None = None) -> None:
        """Count `images`, each uint8 (S, S, 3). Raises GraphError on NaN or inf inside the network."""
        pending: list[np.ndarray] = []
        for image in images:
            pending.append(image)
            if len(pending) >= self._batch:
                self._count(pending, on_images)
                pending = []
        if pending:
            self._count(pending, on_images)

    def _count(self, pending: list[np.ndarray], on_images: Callable[[int], None] | None) -> None:
        batch = to_batch(np.stack(pending), "float32")
        names = self._watched
        values = dict(zip(names, self._session.run(names, {surgery.INPUT: batch}), strict=True))
        values[surgery.INPUT] = batch
        if self.statistics.n == 0:
            one = sum(v.nbytes for v in values.values()) // len(batch)
            self._batch = int(np.clip(_ACTIVATION_BYTES // max(one, 1), 1, 16))
        for name, value in values.items():
            self._see(name, value)
        self.statistics.n += len(batch)
        if on_images:
            on_images(self.statistics.n)

    def _see(self, name: str, value: np.ndarray) -> None:
        histogram = self.statistics.histograms.get(name)
        if histogram is not None:
            histogram.add(value, name)
            peak = histogram.peak
        else:
            # NaN passes through max and min, so two reductions find it without a copy of |x|.
            peak = max(float(value.max()), -float(value.min())) if value.size else 0.0
            if not np.isfinite(peak):
                raise GraphError("NaN or inf inside the network on a calibration image", name, "check the checkpoint")
        self.statistics.peaks[name] = max(self.statistics.peaks.get(name, 0.0), peak)


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


def overflowing(source: onnx.ModelProto, peaks: dict[str, float]) -> Iterator[str]:
    """Names of the nodes that read or make a tensor whose calibration peak is above FP16_LIMIT.

    onnxruntime's CPU kernels compute FP16 in wider registers and hide an overflow, so these are kept in
    FP32: range-checked, not simulated.
    """
    high = {name for name, peak in peaks.items() if peak > FP16_LIMIT}
    for node in source.graph.node:
        if high.intersection(node.output) or high.intersection(node.input):
            yield node.name
