"""The X-ray of an INT8 graph: per layer, what quantising it costs, and whether it runs in INT8 at all.

Nothing is measured here. The ranges come from the calibration, the noise from `local`, the effects from
the ladder's search and the precisions from NVIDIA's builder; this joins them and sorts them by what matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgetl.bundle import NewArtifact, atomic_write, canonical_json, sha256_file
from edgetl.graph import qdq
from edgetl.graph.calibrate import Statistics
from edgetl.graph.exclude import Effect
from edgetl.graph.groups import groups
from edgetl.graph.local import PRODUCTS, LayerNoise
from edgetl.graph.macs import macs
from edgetl.graph.placement import Placement, Use
from edgetl.graph.ranges import Histogram

KIND = "layers"
SCHEMA = 1
SCHEMA_FILE = Path(__file__).with_name("layers.schema.json")
EVIDENCE = "simulated"  # noise and effects are onnxruntime's arithmetic on a CPU
FOR_ACCURACY = "accuracy"  # why a layer stays in float: the ladder took it out; nvidia.IN_FLOAT is the other reason


@dataclass(frozen=True)
class LayerRow:
    """One layer that multiplies and is quantised, or was until the export left it in float (`kept_float` says why).

    group: the node whose kernel it becomes part of; input: the quantised tensor it reads.
    amax, scale: that tensor's range and step; peak: the largest |x| that calibration saw in it.
    clipped: share of its calibration values beyond amax. weight_scale_min and _max: the smallest and largest
    step of its other operand, a channel each (one step where that is an activation too).
    sqnr_db: signal to quantisation noise of its output when nothing before it is quantised, on sqnr_n images.
    kl_regained (nats), agreement_regained (share of the images): what the network regains when its group stays
    in float and all else is quantised, on effect_n images that were not calibrated on.
    macs: multiply-accumulates for one image, macs_share: of the whole network's.
    precision: what NVIDIA's builder runs it in.
    None: not measured; of sqnr_db also where the noise or the signal is zero.
    """

    node: str
    op: str
    group: str
    input: str
    kept_float: str | None
    amax: float
    scale: float
    peak: float
    clipped: float
    weight_scale_min: float
    weight_scale_max: float
    sqnr_db: float | None
    sqnr_n: int | None
    kl_regained: float | None
    agreement_regained: float | None
    effect_n: int | None
    macs: int
    macs_share: float
    precision: str | None

    def to_json(self) -> dict[str, Any]:
        """A plain dict, keys as above."""
        return asdict(self)


def xray(
    source: onnx.ModelProto,
    placement: Placement,
    amax: Mapping[str, float],
    statistics: Statistics,
    noises: Mapping[str, LayerNoise],
    effects: Iterable[Effect],
    precisions: Mapping[str, str] | None,
    kept_float: Mapping[str, str],
    shipped: onnx.ModelProto | None = None,
) -> list[LayerRow]:
    """The rows of `source`, what matters most first (see `by_weight`).

    `placement`, `amax`, `statistics`: of the calibration, before any layer was taken out; `noises`: by node;
    `precisions`: node -> word of NVIDIA's builder, None where it was not asked; `kept_float`: node -> reason;
    `shipped`: the INT8 graph, whose steps are told (layers left in float: those that they would have had).
    Pure; an unmeasured figure stays None. Raises KeyError where `amax` lacks a tensor of `placement`.
    """
    quantised = _Quantised(source, placement, amax, statistics, shipped)
    counts = macs(source)
    total = sum(counts.values())
    group_of = {node: group.name for group in groups(source, placement) for node in group.nodes}
    effect_of = {node: effect for effect in effects for node in effect.nodes}
    rows = [
        LayerRow(
            node=node.name,
            op=node.op_type,
            group=group_of[node.name],
            kept_float=kept_float.get(node.name),
            macs=counts.get(node.name, 0),
            macs_share=counts.get(node.name, 0) / total if total else 0.0,
            precision=(precisions.get(node.name) or None) if precisions is not None else None,
            **quantised.facts(node, *operands),
            **_measured(noises.get(node.name), effect_of.get(node.name)),
        )
        for node in source.graph.node
        if node.op_type in PRODUCTS and (operands := quantised.operands(node)) is not None
    ]
    return sorted(rows, key=by_weight)


def by_weight(row: LayerRow) -> tuple[float, ...]:
    """Sort key: measured effects first, the largest KL regained before the smaller; then the noisiest; then MACs."""
    return (
        row.kl_regained is None,
        -(row.kl_regained or 0.0),
        row.sqnr_db is None,
        row.sqnr_db or 0.0,
        -row.macs,
    )


def clipped(histogram: Histogram, amax: float) -> float:
    """Share of the counted values that lie beyond `amax`.

    Exact where amax is the edge of a bin or at least the peak (percentile, max): a value on an edge belongs to
    the bin above it. Of a bin that amax cuts as much counts as lies beyond, its values taken as spread evenly up to
    its end or the peak.
    """
    total = int(histogram.counts.sum())
    if total == 0 or histogram.peak <= amax:
        return 0.0
    index = math.floor(amax / histogram.width)
    low, high = index * histogram.width, min((index + 1) * histogram.width, histogram.peak)
    beyond = (high - amax) / (high - low) * int(histogram.counts[index])
    return (beyond + int(histogram.counts[index + 1 :].sum())) / total


def artifact(
    rows: Sequence[LayerRow],
    graph: Path,
    method: str,
    calibration_n: int,
    builder: str | None,
    record: Mapping[str, Any],
) -> NewArtifact:
    """`rows` written beside the finished file `graph`, ready to enter the bundle as layers-<sha12>.json.

    `method`, `calibration_n`: what the ranges were read off; `builder`: who told the precisions (engine.PROXY),
    None where nobody did; `record`: what the manifest says beside kind and made_from, the graph's sha256.
    The same rows give the same bytes; their shape is layers.schema.json. Raises DiskError.
    """
    digest = sha256_file(graph)
    body = {
        "schema": SCHEMA,
        "graph": digest,
        "method": method,
        "calibration_n": calibration_n,
        "evidence": EVIDENCE,
        "builder": builder,
        "layers": [row.to_json() for row in rows],
    }
    path = graph.with_name(f"{graph.stem}-layers.json")
    atomic_write(path, canonical_json(body))
    return NewArtifact(path, "layers-{sha12}.json", {**record, "kind": KIND, "made_from": digest})


class _Quantised:
    """How the layers of one network are quantised: which operands, over what ranges."""

    def __init__(
        self,
        source: onnx.ModelProto,
        placement: Placement,
        amax: Mapping[str, float],
        statistics: Statistics,
        shipped: onnx.ModelProto | None,
    ) -> None:
        self._weights = {tensor.name: tensor for tensor in source.graph.initializer}
        self._tensor_of = {use: tensor for tensor, uses in placement.activations.items() for use in uses}
        self._axes, self._amax, self._statistics = placement.weights, amax, statistics
        self._shipped = _steps_in(shipped) if shipped is not None else {}

    def operands(self, node: onnx.NodeProto) -> tuple[int, int] | None:
        """Positions of the activation that `node` multiplies and of what by; None unless both are quantised."""
        uses = [(node.name, position) for position in (0, 1)]
        if not all(use in self._tensor_of or use in self._axes for use in uses):
            return None
        return next(((i, 1 - i) for i, use in enumerate(uses) if use in self._tensor_of), None)

    def facts(self, node: onnx.NodeProto, activation: int, other: int) -> dict[str, Any]:
        """The fields of a LayerRow that tell ranges and steps."""
        tensor = self._tensor_of[node.name, activation]
        steps = self._steps(node, other)
        return {
            "input": tensor,
            "amax": float(self._amax[tensor]),
            "scale": float(np.max(self._steps(node, activation))),
            "peak": float(self._statistics.peaks.get(tensor, 0.0)),
            "clipped": clipped(self._statistics.histograms[tensor], self._amax[tensor]),
            "weight_scale_min": float(np.min(steps)),
            "weight_scale_max": float(np.max(steps)),
        }

    def _steps(self, node: onnx.NodeProto, position: int) -> np.ndarray:
        if (node.name, position) in self._shipped:
            return self._shipped[node.name, position]
        name = node.input[position]
        if (node.name, position) in self._tensor_of:
            return qdq.scale_of(self._amax[name])
        values = numpy_helper.to_array(self._weights[name])
        return qdq.scale_of(qdq.weight_range(values, self._axes[node.name, position], name))


def _steps_in(model: onnx.ModelProto) -> dict[Use, np.ndarray]:
    """The float32 scales of each operand of a product in `model` that comes out of a DequantizeLinear."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    scales = {n.output[0]: n.input[1] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return {
        (node.name, position): numpy_helper.to_array(constants[scales[name]]).astype(np.float32)
        for node in model.graph.node
        if node.op_type in PRODUCTS
        for position, name in enumerate(node.input[:2])
        if name in scales
    }


def _measured(noise: LayerNoise | None, effect: Effect | None) -> dict[str, Any]:
    """The fields of a LayerRow that tell what quantising it costs."""
    return {
        "sqnr_db": _finite(noise.sqnr_db) if noise else None,
        "sqnr_n": noise.n if noise else None,
        "kl_regained": _finite(effect.kl_regained) if effect else None,
        "agreement_regained": _finite(effect.agreement_regained) if effect else None,
        "effect_n": effect.n if effect else None,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
