"""What every backend is: an input, `run`, and how its answers were come by."""

from __future__ import annotations

from typing import Optional, Protocol

import numpy as np

from edgetl.errors import BackendError
from edgetl.spec import TensorSpec

# How a number was come by. `simulated`: onnxruntime runs the TensorRT graph's arithmetic on another device.
EVIDENCE = ("simulated", "host-cpu", "host-gpu", "device")


class Backend(Protocol):
    """Runs one graph. Used by one thread at a time."""

    @property
    def name(self) -> str:
        """ "torch", "onnxruntime" or "tensorrt"."""

    @property
    def provider(self) -> str:
        """What does the arithmetic: "cpu", "cuda:0", "CPUExecutionProvider", "TensorRT 10.13.3.9", ..."""

    @property
    def input(self) -> TensorSpec:
        """float32 (-1, 3, S, S) RGB 0-255 or uint8 (-1, S, S, 3) RGB; a fixed batch size stands for -1."""

    @property
    def evidence(self) -> str:
        """One of EVIDENCE, of this backend's accuracy."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """`input` with B images -> float32 (B, C) logits. Raises BackendError."""

    def device_ms(self) -> Optional[float]:
        """GPU time of the last run in milliseconds, copies left out; None on a CPU."""

    def close(self) -> None:
        """Give back memory and device; a second call does nothing."""


def check_batch(batch: np.ndarray, spec: TensorSpec, backend: str) -> None:
    """Raise BackendError unless `batch` has the dtype and shape of `spec` (-1 takes any size above zero)."""
    fits = batch.ndim == len(spec.shape) and all(
        want in (-1, got) and got > 0 for want, got in zip(spec.shape, batch.shape)
    )
    if str(batch.dtype) != spec.dtype or not fits:
        raise BackendError(
            backend + " was given another input than its graph takes",
            "%s %s instead of %s %s" % (batch.dtype, list(batch.shape), spec.dtype, list(spec.shape)),
        )
