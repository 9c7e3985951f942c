"""An INT8 network as the search knows it: a float graph, where its Q/DQ pairs go, and their ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx

from edgetl.graph import bias, qdq, rounding
from edgetl.graph.cpu import cpu_placement
from edgetl.graph.cpu_qdq import cpu_inserted, cpu_ranges
from edgetl.graph.groups import without
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.graph.quantise import Calibrated
from edgetl.monitor import SILENT, Monitor


@dataclass(frozen=True)
class Candidate:
    """`source`: the fp32 graph the pairs go into; `found`: its calibration; `in_float`: nodes left without pairs.

    `steps` tells how it came to be, in the words of the rungs; `plain` is `source` before its weights were rounded
    and its biases corrected.
    `learnt`: ranges that training found, in place of the method's. `weight_bits`: of a graph for onnxruntime's own
    CPU kernels, which takes none; None: the pairs are those of TensorRT.
    """

    source: onnx.ModelProto
    found: Calibrated
    method: str
    steps: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    plain: onnx.ModelProto | None = None
    weight_bits: int | None = None
    learnt: Mapping[str, float] | None = None

    @cached_property
    def placement(self) -> Placement:
        """Where the pairs go, less the nodes left in float."""
        return without(self.found.placement, self.in_float) if self.in_float else self.found.placement

    @cached_property
    def ranges(self) -> dict[str, float]:
        """tensor -> amax; also of tensors that no pair reads any more."""
        return {**self.found.ranges(self.method), **(self.learnt or {})}

    def twin(self) -> onnx.ModelProto:
        """The graph with its rest in FP32: a quarter of the FP16-rest graph's cost to simulate, the same scales."""
        return self.written(self.source)

    def written(self, source: onnx.ModelProto) -> onnx.ModelProto:
        """`source`, the candidate's own at whatever opset, with the pairs in it."""
        if self.weight_bits is None:
            return qdq.inserted(source, self.placement, self.ranges)
        placed = cpu_placement(source, self.placement)
        limits = cpu_ranges(self.found.statistics.histograms, self.method, placed.groups)
        return cpu_inserted(source, placed, limits, self.weight_bits)

    def leaving(self, nodes: Sequence[str]) -> Candidate:
        """The same, with `nodes` in float too and their weights and biases as they were."""
        source = self.source if self.plain is None else bias.restored(self.source, self.plain, nodes)
        return replace(self, source=source, in_float=(*self.in_float, *(n for n in nodes if n not in self.in_float)))

    def corrected(self, pixels: Pixels, threads: int = 0, monitor: Monitor = SILENT) -> Candidate:
        """The same with its biases corrected on `pixels`. Raises GraphError."""
        plain = self.source if self.plain is None else self.plain
        source = bias.corrected(self.source, self.twin(), pixels, threads, monitor, base=plain)
        return replace(self, source=source, plain=plain, steps=(*self.steps, "bias corrected"))

    def rounded(self, pixels: Pixels, threads: int = 0, monitor: Monitor = SILENT) -> Candidate:
        """The same with its weights rounded so that they make up for each other on `pixels`. Raises GraphError."""
        levels = qdq.LEVELS if self.weight_bits is None else 2 ** (self.weight_bits - 1) - 1
        source = rounding.rounded(self.source, self.placement, pixels, threads, monitor, levels=levels)
        return replace(self, source=source, plain=self.source, steps=(*self.steps, "weights rounded"))
