"""Backends that run a graph: one protocol, onnxruntime, TensorRT. Device-side rules: numpy, Python 3.8.

The heavy doors (`runtime.ort`, `runtime.trt`) are imported where they are used, never from here.
"""

from edgetl.runtime.backend import EVIDENCE, Backend, as_logits, check_batch, run_pixels

__all__ = ["EVIDENCE", "Backend", "as_logits", "check_batch", "run_pixels"]
