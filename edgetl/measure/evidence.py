"""Whether a time says anything, and on what it was taken: for the PC's bench and the device's. Python 3.8."""

from __future__ import annotations

from typing import Optional


def latency_evidence(
    backend: str, provider: str, profile: Optional[str], precision: str, jetson: bool = False
) -> Optional[str]:
    """One of runtime.EVIDENCE, or None where a time means nothing. `jetson`: this machine is one.

    A lowered-precision TensorRT graph on onnxruntime's own kernels is arithmetic in slow motion (an int8
    one is slower than fp32 there, and several times faster on the device): None. On CUDA's kernels FP16
    is FP16, but Q/DQ still is a simulation.
    """
    found = _on_a_pc(backend, provider, profile, precision)
    return "device" if jetson and found is not None else found


def _on_a_pc(backend: str, provider: str, profile: Optional[str], precision: str) -> Optional[str]:
    if backend == "torch":
        return "host-gpu" if provider.startswith("cuda") else "host-cpu"
    if backend == "tensorrt" or provider.startswith("Tensorrt"):
        return "host-gpu"
    if provider.startswith("CUDA"):
        return None if precision == "int8" else "host-gpu"
    return "host-cpu" if precision == "fp32" or profile == "cpu" else None
