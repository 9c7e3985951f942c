"""Quantisation-aware training, the last rung of the ladder: the source graph itself is trained, in PyTorch."""

from edgetl.graph.qat.options import QatOptions
from edgetl.graph.qat.train import Trained, trained

__all__ = ["QatOptions", "Trained", "trained"]
