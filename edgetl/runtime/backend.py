"""What every backend is: an input, `run`, and how its answers were come by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional, Protocol, Tuple

import numpy as np

from edgetl.errors import BackendError
from edgetl.images import to_batch
from edgetl.spec import TensorSpec

if TYPE_CHECKING:
    import numpy.typing as npt

# How a number was come by. `simulated`: onnxruntime runs the TensorRT graph's arithmetic on another device.
EVIDENCE = ("simulated", "host-cpu", "host-gpu", "device")
PROBABILITIES = "probabilities"  # the output's name in a graph that ends in a Softmax
_TINY = np.float32(1e-30)


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

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """`input` with B images -> float32 (B, C) logits. Raises BackendError."""

    def device_ms(self) -> Optional[float]:
        """GPU time of the last run in milliseconds, copies left out; None on a CPU."""

    def close(self) -> None:
        """Give back memory and device; a second call does nothing."""


def check_batch(batch: npt.NDArray[Any], spec: TensorSpec, backend: str) -> None:
    """Raise BackendError unless `batch` has the dtype and shape of `spec` (-1 takes any size above zero)."""
    fits = batch.ndim == len(spec.shape) and all(
        want in (-1, got) and got > 0 for want, got in zip(spec.shape, batch.shape)
    )
    if str(batch.dtype) != spec.dtype or not fits:
        raise BackendError(
            backend + " was given another input than its graph takes",
            "%s %s instead of %s %s" % (batch.dtype, list(batch.shape), spec.dtype, list(spec.shape)),
        )


def as_logits(values: npt.NDArray[Any], output: str) -> npt.NDArray[np.float32]:
    """What a graph's output of this name says, as float32 logits (B, C).

    A graph that ends in a Softmax (its output is called "probabilities") gives their logarithm, which is
    its logits up to a constant each row: argmax, softmax and KL come out the same.
    """
    out = np.asarray(values, dtype=np.float32)
    return np.log(np.maximum(out, _TINY)) if output == PROBABILITIES else out


def run_pixels(backend: Backend, pixels: npt.NDArray[np.uint8], max_batch: int = 32) -> npt.NDArray[np.float32]:
    """uint8 (B, S, S, 3) RGB -> float32 (B, C) logits, in runs of at most `max_batch` images.

    A backend that takes no fewer than some number of images (a graph of a fixed batch size, an engine)
    is given that many: the last run repeats its last image, and the answers to those are cut off.
    """
    low, high = _limits(backend, max_batch)
    parts = []
    for start in range(0, len(pixels), high):
        piece = pixels[start : start + high]
        fill = max(0, low - len(piece))
        given = np.concatenate([piece, np.repeat(piece[-1:], fill, axis=0)]) if fill else piece
        parts.append(_run(backend, to_batch(given, backend.input.dtype))[: len(piece)])
    return np.concatenate(parts)


def _limits(backend: Backend, max_batch: int) -> Tuple[int, int]:
    """Fewest and most images of one run: a fixed batch, an engine's optimisation profile, or 1 to max_batch."""
    fixed = backend.input.shape[0]
    if fixed > 0:
        return fixed, fixed
    low, high = getattr(backend, "batches", (1, max_batch))
    return low, max(low, min(high, max_batch))


def _run(backend: Backend, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    out = backend.run(batch)
    if out.ndim != 2 or len(out) != len(batch):
        raise BackendError(
            "%s gave another shape than one row of logits an image" % backend.name,
            "%s for %d images" % (list(out.shape), len(batch)),
        )
    return out
