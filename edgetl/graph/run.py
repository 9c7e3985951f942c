"""One export under way: what its steps share."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgetl.bundle import Bundle, NewArtifact, sha256_bytes
from edgetl.errors import GraphError
from edgetl.graph import surgery
from edgetl.graph.options import ExportOptions
from edgetl.graph.parity import Parity, check_relative, comparable, parity, run_graph, tolerance
from edgetl.graph.pixels import Pixels
from edgetl.graph.reference import origin
from edgetl.graph.sets import ImageSet, ImageSets
from edgetl.graph.worker import Worker
from edgetl.monitor import Monitor
from edgetl.spec import Precision, Profile

_TOOLS = ("torch", "onnx", "onnxruntime", "onnxslim", "nvidia-modelopt")


@dataclass
class Run:
    """One export. `proof`: pixels and reference logits that every graph is checked on.

    `pixels` and `answers` (the reference's logits) are kept by the name of their set; `trained` tells what
    quantisation-aware training did, where there was any.
    """

    bundle: Bundle
    scratch: Path
    options: ExportOptions
    monitor: Monitor
    sets: ImageSets
    source: onnx.ModelProto
    proof: tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
    child: Worker | None = None
    new: list[NewArtifact] = field(default_factory=list)
    guard: dict[str, Any] | None = None
    trained: dict[str, Any] | None = None
    pixels: dict[str, Pixels] = field(default_factory=dict)
    answers: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def profile(self) -> Profile:
        """The graph profile that is being made."""
        return self.options.profile

    @property
    def temperature(self) -> float | None:
        """What the graphs divide their logits by before the Softmax; None: nothing (export asked before any work)."""
        return float(self.bundle.manifest["confidence"]["temperature"]) if self.options.calibrated else None

    def decoded(self, name: str) -> Pixels:
        """The images of one of the sets, decoded on first use."""
        if name not in self.pixels:
            found: ImageSet | None = getattr(self.sets, name)
            assert found is not None  # image_sets drew whatever the options need
            self.pixels[name] = decode(self.bundle, self.scratch, name, found, self.monitor)
        return self.pixels[name]

    def facts(self) -> dict[str, Any]:
        """What every artifact of this export says of how it was made."""
        return {
            "made_by": "export",
            "made_from": origin(self.bundle)["sha256"],
            "options": self.options.to_json(),
            "versions": {name: version(name) for name in _TOOLS if _installed(name)},
        }

    def shipped(self, graph: onnx.ModelProto, precision: Precision) -> tuple[onnx.ModelProto, Path]:
        """`graph` with the wanted input, output and metadata, written into the scratch folder."""
        options, bundle, temperature = self.options, self.bundle, self.temperature
        whole = surgery.with_ends(graph, options.input, options.output == "probabilities", temperature)
        model = surgery.finished(whole, self.profile, precision, bundle.labels, bundle.preprocess, temperature)
        return model, surgery.save(model, self.scratch / f"{precision}.onnx")

    def record(self, model: onnx.ModelProto, path: Path, precision: Precision, extra: dict[str, Any]) -> None:
        """Check a finished graph against the reference on the proof images and add it to what will be recorded."""
        found, logits = self._check(path, precision)
        record = {
            "kind": "graph",
            "profile": self.profile,
            "precision": precision,
            "input": self.options.input,
            "output": self.options.output,
            "temperature": self.temperature,
            "opset": surgery.opset_of(model),
            "parity": found.to_json(),
            "met": None,
            "guard": None,
            "int8_macs_share": None,
            **extra,
            **self.facts(),
        }
        own = self.scratch / f"{precision}.npy"
        np.save(own, logits)
        digest = sha256_bytes(path.read_bytes())
        self.new.append(NewArtifact(path, f"graphs/{self.profile}/{precision}-{{sha12}}.onnx", record))
        proof = {"kind": "graph-logits", "made_by": "export", "made_from": digest, "precision": precision}
        # Named by the graph too: two graphs may well give the same logits.
        self.new.append(NewArtifact(own, f"golden/graph-{digest[:12]}-{{sha12}}.npy", proof))

    def _check(self, path: Path, precision: Precision) -> tuple[Parity, npt.NDArray[np.float32]]:
        pixels, reference = self.proof
        threads = self.options.threads
        logits = run_graph(path, pixels, threads)
        found = parity(*comparable(reference, logits, self.options.output, self.temperature))
        if precision is not Precision.INT8:
            check_relative(found, tolerance(self.bundle, precision, "relative"), f"{self.profile}/{precision}")
        if precision is Precision.FP32:
            single = run_graph(path, pixels[:1], threads)
            if not np.allclose(single, logits[:1], atol=1e-3 * max(1.0, float(np.abs(logits[:1]).max()))):
                raise GraphError("the graph answers otherwise for another batch size", self.profile)
        return found, logits


def decode(bundle: Bundle, scratch: Path, name: str, found: ImageSet, monitor: Monitor) -> Pixels:
    """The images of a set as the bundle's network sees them, in a file of `scratch`."""
    file = scratch / f"{name}.pixels"
    return Pixels.decoded(file, found.root, found.samples, bundle.preprocess, monitor, f"decode: {name}")


def _installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:
        return False  # onnxruntime goes by onnxruntime-gpu on x86-64
    return True
