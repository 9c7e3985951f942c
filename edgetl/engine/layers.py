"""What became of each layer: the precision TensorRT says it runs in, read back and never assumed.

Two sources, one result: the engine inspector's JSON (on the GPU that built the engine) and the detailed
build log (ahead of time, without a GPU). Python 3.8, standard library only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from edgetl.errors import EngineError

# TensorRT's words for data types over the years -> ours. 8.x writes whole phrases ("Four wide channel
# vectorized row major Int8 format", "Row major linear FP32"), 10.x "Half", the build log "Datatype: Half".
_DTYPES = (
    (re.compile(r"\bint8\b", re.I), "int8"),
    (re.compile(r"\b(bf16|bfloat16)\b", re.I), "bf16"),
    (re.compile(r"\b(fp8|float8)", re.I), "fp8"),
    (re.compile(r"\b(fp16|half|float16)\b", re.I), "fp16"),
    (re.compile(r"\b(fp32|float|float32)\b", re.I), "fp32"),
)
PRECISIONS = ("int8", "fp16", "fp32")

# Kinds of plan layers that multiply; where a node is spread over several layers, these speak for it.
_COMPUTE_KIND = re.compile(r"correlation|gemm|fusion|conv|matrix", re.I)
# A small convolution generated into a pointwise kernel, whose name lists its steps: round, cast to int8, convolve.
_INSIDE_KERNEL = re.compile(r"RounCastCorr")
_ATTENTION = re.compile(
    r"^_gemm_mha"
)  # a fused attention kernel: its operands are activations, its constants a bias at most


@dataclass(frozen=True)
class Layer:
    """One layer of a plan. `onnx_nodes`: the graph's nodes fused into it. `inputs`: dtypes of its activations.

    `precision`: "int8", "fp16", "fp32", "bf16", "fp8", or "" where it computes on none of them (shapes).
    """

    name: str
    onnx_nodes: Tuple[str, ...]
    kind: str
    inputs: Tuple[str, ...]
    precision: str


@dataclass(frozen=True)
class Source:
    """A node of the graph that multiplies (convolution, matrix product), as NVIDIA's parser read it.

    `quantised`: both its operands come out of DequantizeLinear, so it should run in INT8.
    """

    node: str
    quantised: bool


@dataclass(frozen=True)
class Coverage:
    """How a graph came through parser and builder. `layers`: the plan's. `sources`: the graph's multiplying nodes."""

    layers: Tuple[Layer, ...]
    sources: Tuple[Source, ...]

    @property
    def ok(self) -> bool:
        """Every node that the graph quantises runs in INT8."""
        return not self.fallbacks()

    @property
    def counts(self) -> Dict[str, int]:
        """{"int8", "fp16", "fp32"}: plan layers that multiply, by precision; glue around them is not counted.

        Another precision ("bf16", "fp8") has a key where the plan uses it.
        """
        out = dict.fromkeys(PRECISIONS, 0)
        for layer in self._multiplying():
            if layer.precision:
                out[layer.precision] = out.get(layer.precision, 0) + 1
        return out

    @property
    def precisions(self) -> Dict[str, str]:
        """Node name -> precision it runs in, for each multiplying node; "" for one found in no layer (folded away)."""
        found = ((s.node, self._layer_of(s.node)) for s in self.sources)
        return {node: layer.precision if layer else "" for node, layer in found}

    def precision_of(self, node: str) -> str:
        """The precision that the graph's node runs in, "" where no layer of the plan names it."""
        layer = self._layer_of(node)
        return layer.precision if layer else ""

    def fallbacks(self, quantised: Optional[Iterable[str]] = None) -> Tuple[str, ...]:
        """The nodes among `quantised` (default: those the parser saw quantised) that do not run in INT8."""
        wanted = [s.node for s in self.sources if s.quantised] if quantised is None else list(quantised)
        return tuple(node for node in wanted if self.precision_of(node) != "int8")

    def _multiplying(self) -> List[Layer]:
        """The layers of the sources; by their kind where the plan names none of them (8.5 renames freely)."""
        found = [self._layer_of(s.node) for s in self.sources]
        named = {id(layer): layer for layer in found if layer is not None}
        return list(named.values()) or [layer for layer in self.layers if _COMPUTE_KIND.search(layer.kind)]

    def _layer_of(self, node: str) -> Optional[Layer]:
        """The layer that does the node's arithmetic: of those naming it the one of a computing kind."""
        naming = [layer for layer in self.layers if node in layer.onnx_nodes]
        heavy = [layer for layer in naming if _COMPUTE_KIND.search(layer.kind)]
        fused = [layer for layer in naming if _INSIDE_KERNEL.search(layer.name)]
        best = heavy or fused or [layer for layer in naming if layer.precision] or naming
        return best[0] if best else None


def dtype_of(text: str) -> str:
    """Our word for TensorRT's description of a tensor's type, "" for integers, booleans and unknown ones."""
    for pattern, word in _DTYPES:
        if pattern.search(text):
            return word
    return ""


def precision_of(inputs: Sequence[str], constants: Sequence[str], name: str = "") -> str:
    """The arithmetic of a layer from the dtypes of its activations and weights, and the steps in its `name`.

    INT8 takes an INT8 activation and, where there are weights, INT8 ones: a layer that reads INT8 and
    widens it to multiply by Half weights fell back. Else the widest float among the activations decides.
    A kernel that quantises its float input itself says so in its name and holds INT8 weights; one of fused
    attention multiplies INT8 queries, keys and values.
    """
    if "int8" in constants and _INSIDE_KERNEL.search(name):
        return "int8"
    if _ATTENTION.search(name) and set(inputs) == {"int8"}:
        return "int8"
    for narrow in ("int8", "fp8"):
        if narrow in inputs and (narrow in constants or not any(constants)):
            return narrow
    floats = [d for d in (*inputs, *constants) if d in ("fp32", "fp16", "bf16")]
    leading = [d for d in inputs if d in ("fp32", "fp16", "bf16")] or floats
    for wide in ("fp32", "fp16", "bf16"):
        if wide in leading:
            return wide
    return ""


def onnx_nodes(metadata: str, name: str = "") -> Tuple[str, ...]:
    """Node names in `[ONNX Layer: a]\\x1f[ONNX Layer: b]`; without any, those in a name like "a + b" (8.5)."""
    parts = re.split(r"(?:^|\])[\x1e\x1f\s]*\[ONNX Layer: ", metadata)[1:]
    if parts:
        parts[-1] = parts[-1].rstrip("\x1e\x1f \r\n")
        parts[-1] = parts[-1][:-1] if parts[-1].endswith("]") else parts[-1]
        return tuple(parts)
    return tuple(part.strip() for part in name.split(" + ") if part.strip())


_LOG_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\]"
    r"(?:, Constants: \[(?P<constants>.*?)\])?, Outputs: \[(?P<outputs>.*?)\], .*?Metadata: ?(?P<metadata>.*)$"
)


def from_build_log(block: str) -> Tuple[Layer, ...]:
    """The layers in the `Layers:` message of a VERBOSE build log with DETAILED profiling verbosity.

    Raises EngineError when a line looks like a layer and cannot be read: a changed format must not pass
    for an engine without INT8.
    """
    out = []
    for line in block.split("\n"):  # not splitlines: metadata holds \x1e, which that takes for an end
        if not line.startswith("Name: ") or ", LayerType: " not in line:
            continue
        match = _LOG_LAYER.match(line)
        if match is None:
            raise EngineError("a layer in the build log cannot be read", line[:200], "report it with your versions")
        dtypes = {key: _log_dtypes(match.group(key) or "") for key in ("inputs", "constants")}
        out.append(
            Layer(
                name=match.group("name"),
                onnx_nodes=onnx_nodes(match.group("metadata")),
                kind=match.group("kind"),
                inputs=dtypes["inputs"],
                precision=precision_of(dtypes["inputs"], dtypes["constants"], match.group("name")),
            )
        )
    if not out:
        raise EngineError("the build log lists no layers", block[:200], "report it with your versions")
    return tuple(out)


def from_inspector(text: str) -> Tuple[Layer, ...]:
    """The layers in the JSON of an EngineInspector (TensorRT 8.5 to 11). Raises EngineError when it has no details."""
    try:
        rows: List[Any] = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError("the engine inspector's answer cannot be read", text[:200]) from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EngineError("the engine inspector names no layer details", text[:200], "report it with your versions")
    return tuple(_inspected(row) for row in rows)


def _inspected(row: Mapping[str, Any]) -> Layer:
    inputs = tuple(_tensor_dtype(tensor) for tensor in row.get("Inputs", ()))
    constants = tuple(_tensor_dtype(tensor) for tensor in row.get("Constants", ()))
    if isinstance(row.get("Weights"), dict):
        constants += (dtype_of(str(row["Weights"].get("Type", ""))),)
    name = str(row.get("Name", ""))
    return Layer(
        name=name,
        onnx_nodes=onnx_nodes(str(row.get("Metadata", "")), name),
        kind=str(row.get("LayerType", "")),
        inputs=inputs,
        precision=precision_of(inputs, constants, name),
    )


def _tensor_dtype(tensor: Any) -> str:
    if not isinstance(tensor, dict):
        return ""
    for key in ("Datatype", "DataType", "Format/Datatype", "Format"):
        if dtype_of(str(tensor.get(key, ""))):
            return dtype_of(str(tensor[key]))
    return ""


def _log_dtypes(tensors: str) -> Tuple[str, ...]:
    return tuple(dtype_of(word) for word in re.findall(r"Datatype: (\w+)", tensors))
