"""What torch can do on this machine, for `edgetl doctor`."""

from __future__ import annotations

import torch
import torchvision


def torch_facts() -> dict[str, str | bool]:
    """{"torch", "torchvision": versions, "threads", "cuda": whether a GPU answers, "why": what it is, or why not}."""
    facts: dict[str, str | bool] = {
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "threads": str(torch.get_num_threads()),
        "cuda": torch.cuda.is_available(),
    }
    if torch.cuda.is_available():
        return {**facts, "why": torch.cuda.get_device_name(0)}
    built = torch.version.cuda
    return {**facts, "why": f"built for CUDA {built}, which finds no GPU" if built else "a build without CUDA"}
