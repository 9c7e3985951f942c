"""Backends that run a graph: one protocol, onnxruntime, TensorRT. Device-side rules: numpy, Python 3.8.

The heavy doors (`runtime.ort`, `runtime.trt`) are imported where they are used, never from here.
"""

from edgetl.runtime.backend import EVIDENCE, Backend, check_batch

__all__ = ["EVIDENCE", "Backend", "check_batch"]
