"""What a bench is handed: how to open one backend, and what its row says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgetl.runtime import Backend


@dataclass(frozen=True)
class Candidate:
    """One backend with one graph. `opens` makes it anew and must be picklable (memory is measured in a child).

    `latency_evidence`: one of runtime.EVIDENCE, or None where a time here would mean nothing.
    `input`: the graph's input kind, "float32" or "uint8".
    `temperature`: what the graph divides its own logits by (`export --calibrated`), 1 for none.
    `size_bytes`: of the file that would travel. `graph_sha256`, `engine_key`: None where there is no such file.
    """

    backend: str
    provider: str
    profile: str | None
    precision: str
    opens: Callable[[], Backend]
    latency_evidence: str | None
    size_bytes: int | None = None
    graph_sha256: str | None = None
    engine_key: str | None = None
    input: str = "float32"
    temperature: float = 1.0

    @property
    def name(self) -> str:
        """The same for the same candidate in every run: "onnxruntime-cpu-trt10-int8"."""
        provider = self.provider.replace("ExecutionProvider", "").lower().replace(" ", "-")
        provider = provider.removeprefix(self.backend + "-")
        kind = "" if self.input == "float32" else self.input
        return "-".join(part for part in (self.backend, provider, self.profile, self.precision, kind) if part)
