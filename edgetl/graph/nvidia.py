"""What NVIDIA's parser and builder make of an INT8 graph, joined with its MACs. Needs tensorrt-rtx, no GPU.

The rule (docs/decisions/0002-int8.md): a product that we quantise and the builder runs in float all the same
pays for its Q/DQ pairs in accuracy and gains nothing. It is left out of the placement and recorded as
IN_FLOAT; a convolution that falls back even then is an error with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edgetl import engine
from edgetl.errors import EngineError
from edgetl.graph.local import PRODUCTS
from edgetl.graph.macs import int8_share
from edgetl.monitor import SILENT, Monitor

IN_FLOAT = "NVIDIA's builder runs it in float"
_CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))


@dataclass(frozen=True)
class Built:
    """An INT8 graph after NVIDIA's builder.

    int8_macs_share: of the whole graph's multiply-accumulates; precisions: multiplying node -> "int8", "fp16",
    ... ("" for one that no layer of the plan names); fallbacks: quantised products that do not run in INT8,
    convolutions: those of them that are convolutions; layers: plan layers that multiply, by precision.
    evidence: who says so; where: the runtime, as a message calls it.
    """

    int8_macs_share: float
    precisions: Mapping[str, str]
    fallbacks: tuple[str, ...]
    convolutions: tuple[str, ...]
    layers: Mapping[str, int]
    evidence: str = engine.PROXY
    where: str = "NVIDIA's builder"

    @property
    def in_float(self) -> str:
        """Why a node is left out of the placement."""
        return f"{self.where} runs it in float"

    def record(self) -> dict[str, Any]:
        """What the graph's artifact says of it; the precisions are in the X-ray."""
        return {"layers": dict(self.layers), "fallbacks": list(self.fallbacks), "evidence": self.evidence}

    def check(self) -> None:
        """Raise EngineError naming the quantised convolutions that run in float."""
        if self.convolutions:
            names = ", ".join(self.convolutions[:3]) + (" ..." if len(self.convolutions) > 3 else "")
            raise EngineError(
                f"{len(self.convolutions)} quantised convolutions run in float in {self.where}",
                names,
                "ship the fp16 graph, and report the network with your versions",
            )


@dataclass(frozen=True)
class Settled:
    """The graph that ships, in `path`; what the builder made of it, where it is installed; nodes left out."""

    model: onnx.ModelProto
    path: Path
    built: Built | None
    left_out: tuple[str, ...]

    def record(self) -> dict[str, Any] | None:
        """What the graph's artifact says of it; None where nobody was asked."""
        if self.built is None:
            return None
        return {**self.built.record(), "left_out": dict.fromkeys(self.left_out, self.built.in_float)}


Make = Callable[[tuple[str, ...]], tuple[onnx.ModelProto, Path]]
Look = Callable[[onnx.ModelProto, Path, Monitor], Built | None]


def built(model: onnx.ModelProto, path: Path, monitor: Monitor = SILENT) -> Built | None:
    """`model`, which lies in `path`, through NVIDIA's parser and builder; None where tensorrt-rtx is not installed.

    Raises EngineError with the parser's words when the graph is refused.
    """
    if engine.missing():
        return None
    found = engine.coverage(path, monitor=monitor)
    wanted = quantised(model)
    fallen = found.fallbacks(wanted)
    return Built(
        int8_share(model, found.precisions),
        {**found.precisions, **{node: found.precision_of(node) for node in wanted}},
        fallen,
        tuple(node for node in fallen if wanted[node] in _CONVOLUTIONS),
        found.counts,
    )


def settled(make: Make, monitor: Monitor = SILENT, look: Look = built) -> Settled:
    """The graph of `make(())`, made once more without the products that the builder runs in float (see the rule).

    `make(left_out)`: writes the INT8 graph with no pairs into the nodes `left_out`; `look`: what runs in what.
    Raises EngineError where a quantised convolution runs in float even then.
    """
    model, path = make(())
    found = look(model, path, monitor)
    left_out = found.fallbacks if found is not None else ()
    if found is not None and left_out:
        monitor.warn(f"{len(left_out)} layers lose their Q/DQ pairs, first {left_out[0]}: {found.in_float}")
        model, path = make(left_out)
        found = look(model, path, monitor)
        assert found is not None  # it was there a moment ago
        found.check()
    return Settled(model, path, found, left_out)


def with_whole_pairs(graph: onnx.ModelProto, kept: Iterable[str]) -> set[str]:
    """`kept` (nodes that stay FP32) and what must stay with them so that no Cast comes between a DQ and a product.

    NVIDIA's builder fuses a DequantizeLinear only into the product that reads it directly. So a product in FP32
    takes the DequantizeLinear nodes that it reads along, and those the other products that read them.
    """
    out = set(kept)
    made_by = {name: node for node in graph.graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.graph.node:
        for name in node.input if node.op_type in PRODUCTS else ():
            readers.setdefault(name, []).append(node.name)
    waiting = [node for node in graph.graph.node if node.name in out and node.op_type in PRODUCTS]
    by_name = {node.name: node for node in graph.graph.node}
    while waiting:
        for name in waiting.pop().input:
            pair = made_by.get(name)
            if pair is None or pair.op_type != "DequantizeLinear" or pair.name in out:
                continue
            out.add(pair.name)
            waiting.extend(by_name[other] for other in readers.get(name, ()) if other not in out)
            out.update(readers.get(name, ()))
    return out


def quantised(model: onnx.ModelProto) -> dict[str, str]:
    """Node -> operator of each product in `model` both of whose operands come out of a DequantizeLinear.

    Read off the graph and not off the parser's network, which puts a reshape before the operand of a MatMul. A
    Cast between the two does not hide it: NVIDIA's builder does not fuse across one, and that is to be seen.
    """
    made_by: dict[str, str] = {}
    for node in model.graph.node:
        through = node.op_type == "Cast" and made_by.get(node.input[0])
        made_by.update(dict.fromkeys(node.output, through or node.op_type))
    return {
        node.name: node.op_type
        for node in model.graph.node
        if node.op_type in PRODUCTS and all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])
    }
