"""Checkpoint -> fp32, fp16 and int8 graphs: export, FP16, calibration, Q/DQ, the accuracy guard, parity.

Importing this loads torch and onnx: commands do so inside their function.
"""

from edgetl.graph.adopt import AdoptOptions, adopt
from edgetl.graph.options import ExportOptions
from edgetl.graph.parity import check_parity
from edgetl.graph.reference import reference_backend
from edgetl.graph.stage import export

__all__ = ["AdoptOptions", "ExportOptions", "adopt", "check_parity", "export", "reference_backend"]
