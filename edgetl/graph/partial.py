"""Graphs that differ in one place: what comes before it is run once, and each of them from there on.

A search leaves one group of layers after another in float and asks what that brings. Up to the group all of these
graphs are the same, so a batch goes through their common part once; where a single tensor carries everything that
follows (an articulation point), each goes on from that tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from edgetl.graph import surgery
from edgetl.graph.calibrate import session
from edgetl.graph.pixels import Pixels
from edgetl.images import to_batch
from edgetl.measure.environment import available_cores
from edgetl.monitor import SILENT, Monitor

_BATCH = 4  # images a run: the tensors at all cuts of a batch are in memory at once
_KEPT = 256 << 20  # bytes of graphs that are open at a time; the common part is run again for the next ones

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rest:
    """The part of a graph that follows the tensor `start` (the image: all of it); `skipped`: nodes before it."""

    model: onnx.ModelProto
    start: str
    skipped: int


class Trunk:
    """A graph that others branch off; what they have in common with it is looked up in it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._ends = {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
        inferred = onnx.shape_inference.infer_shapes(model)
        self._known = {value.name: value for value in inferred.graph.value_info}

    def rest_of(self, variant: onnx.ModelProto) -> Rest:
        """What of `variant` must be run where the trunk was: from the last cut before they differ.

        A cut is a float tensor that a QuantizeLinear of the trunk reads and that alone is read after it, so that no
        kernel that onnxruntime fuses lies across it, and what is computed is the same to the bit.
        """
        same = self._common(variant)
        cuts = [(count, name) for count, name in _cuts(variant, same) if name in self._ends & self._known.keys()]
        if not cuts:
            return Rest(variant, surgery.INPUT, 0)
        skipped, start = cuts[-1]
        nodes = variant.graph.node[skipped:]
        read = {name for node in nodes for name in node.input}
        constants = [tensor for tensor in variant.graph.initializer if tensor.name in read]
        ends = [self._known[start]], list(variant.graph.output)
        graph = helper.make_graph(nodes, variant.graph.name, *ends, constants)
        model = helper.make_model(graph, opset_imports=list(variant.opset_import), ir_version=variant.ir_version)
        return Rest(model, start, skipped)

    def _common(self, variant: onnx.ModelProto) -> int:
        """How many nodes from the first one on are the same in both, and read the same constants."""
        changed = {t.name for t in variant.graph.initializer if self._constants.get(t.name) != t}
        count = 0
        for one, other in zip(self.model.graph.node, variant.graph.node, strict=False):
            if one != other or changed.intersection(one.input):
                break
            count += 1
        return count


def _cuts(model: onnx.ModelProto, limit: int) -> Iterator[tuple[int, str]]:
    """(n, tensor) for each n <= `limit` such that `tensor` alone connects the first n nodes with the others."""
    constants = {tensor.name for tensor in model.graph.initializer} | {""}
    last = {value.name: len(model.graph.node) for value in model.graph.output}
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            last[name] = max(index, last.get(name, 0))
    live = {surgery.INPUT}
    for index, node in enumerate(model.graph.node[:limit]):
        live.update(name for name in node.output if name in last)
        live -= {name for name in live if last[name] <= index} | constants
        if len(live) == 1:
            yield index + 1, next(iter(live))


def logits_of_all(
    base: onnx.ModelProto,
    variants: Sequence[onnx.ModelProto],
    pixels: Pixels,
    threads: int = 0,
    monitor: Monitor = SILENT,
    what: str = "run",
) -> tuple[Logits, list[Logits]]:
    """float32 (n, C) of `base` and of each of `variants` over `pixels`, to the bit as each alone gives in batches of 4.

    `threads`: batches at a time, each on one; 0: as many as there are cores. Raises GraphError.
    """
    trunk = Trunk(base)
    rests = [trunk.rest_of(variant) for variant in variants]
    out: list[Logits] = []
    own: Logits | None = None
    for part in _parts(rests) or [[]]:
        found = _run(base, part, pixels, threads or available_cores(), monitor, what)
        own = found[0] if own is None else own
        out.extend(found[1:])
    assert own is not None
    return own, out


def _parts(rests: Sequence[Rest]) -> list[list[Rest]]:
    parts: list[list[Rest]] = []
    size = 0
    for rest in rests:
        more = rest.model.ByteSize()
        if not parts or size + more > _KEPT:
            parts.append([])
            size = 0
        parts[-1].append(rest)
        size += more
    return parts


def _run(
    base: onnx.ModelProto, rests: Sequence[Rest], pixels: Pixels, workers: int, monitor: Monitor, what: str
) -> list[Logits]:
    """Logits of `base` and of the graphs that `rests` are the ends of."""
    output = base.graph.output[0].name
    cuts = sorted({rest.start for rest in rests} - {surgery.INPUT})
    first = session(base, [output, *cuts], 1, simulate=True)
    ends = [session(rest.model, [output], 1, simulate=True) for rest in rests]

    def one(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        batch = to_batch(images, "float32")
        values: Mapping[str, Any] = dict(
            zip([output, *cuts], first.run([output, *cuts], {surgery.INPUT: batch}), strict=True)
        )
        made = [
            end.run([output], {rest.start: values.get(rest.start, batch)})[0]
            for end, rest in zip(ends, rests, strict=True)
        ]
        return [values[output], *made]

    done = 0
    parts: list[list[npt.NDArray[np.float32]]] = []
    batches = pixels.batches(step=_BATCH)
    with ThreadPoolExecutor(workers) as pool:
        while group := list(itertools.islice(batches, workers)):  # no more in memory than are being run
            parts.extend(pool.map(one, group))
            done += sum(map(len, group))
            monitor.progress(what, done, pixels.n)
    return [np.concatenate(logits) for logits in zip(*parts, strict=True)]
