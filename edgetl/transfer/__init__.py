"""From a pretrained backbone and an image folder to a checkpoint in a bundle. The torch side of the house."""

from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.stage import finetune

__all__ = ["FinetuneOptions", "finetune"]
