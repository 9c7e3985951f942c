"""A fine-tuned bundle as a PyTorch network, and as the backend that is the reference for every other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import nn

from edgetl.bundle import Bundle
from edgetl.errors import BackendError
from edgetl.runtime import check_batch
from edgetl.spec import InputKind, Preprocess, image_input
from edgetl.transfer import backbones, weights


class Deployed(nn.Module):
    """Normalisation and backbone: float32 (B, 3, S, S), RGB 0-255 -> logits float32 (B, C)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor(preprocess.mean).mul(255).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).mul(255).reshape(shape), persistent=False)
        self.backbone = backbone

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of pixels."""
        return self.outputs(image)[0]

    def outputs(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The logits, followed in training mode by those of the auxiliary classifiers: each float32 (B, C)."""
        found = self.backbone((image - self.mean) / self.std)
        return (found,) if isinstance(found, torch.Tensor) else tuple(found)


def deployed(bundle: Bundle) -> Deployed:
    """The network of a fine-tuned bundle in eval mode, fp32, on the CPU.

    Raises BundleError (no checkpoint, changed bytes) or WeightsError.
    """
    model = bundle.manifest["model"]
    path = bundle.file(bundle.artifact("checkpoint"))
    backbone = backbones.build(
        model["backbone"], len(bundle.labels), bundle.preprocess.size, model.get("backbone_args") or {}, init=False
    )
    weights.load_exactly(backbone, load_file(path))
    return Deployed(backbone, bundle.preprocess).eval()


class TorchBackend:
    """PyTorch fp32 as a Backend: the reference that drops and parities are measured against."""

    name = "torch"

    def __init__(self, bundle: Bundle, device: str = "cpu", threads: int = 0) -> None:
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise BackendError("PyTorch sees no CUDA device", device, "use --device cpu")
        if threads:
            torch.set_num_threads(threads)
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            # fp32 means fp32: TF32 would make the reference itself drift.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self.provider = f"cuda:{self._device.index or 0}" if on_gpu else "cpu"
        self.evidence = "host-gpu" if on_gpu else "host-cpu"
        self.input = image_input(InputKind.FLOAT32, bundle.preprocess.size)
        network = deployed(bundle).to(self._device)
        self._model: nn.Module | None = network.to(memory_format=torch.channels_last)
        self._device_ms: float | None = None

    def run(self, batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Logits float32 (B, C) of float32 (B, 3, S, S)."""
        if self._model is None:
            raise BackendError("the backend was closed", self.name)
        check_batch(batch, self.input, self.name)
        if not (batch.flags.c_contiguous and batch.flags.writeable):
            batch = batch.copy()  # torch shares the memory, and takes neither negative strides nor read-only
        with torch.inference_mode():
            images = torch.from_numpy(batch).to(self._device)
            if self._device.type != "cuda":
                return self._model(images).numpy()  # type: ignore[no-any-return]
            begin, end = torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)
            begin.record()
            logits = self._model(images)
            end.record()
            end.synchronize()
            self._device_ms = begin.elapsed_time(end)
            return logits.cpu().numpy()  # type: ignore[no-any-return]

    def device_ms(self) -> float | None:
        """GPU time of the last run in ms; None on a CPU."""
        return self._device_ms

    def close(self) -> None:
        """Let go of the network."""
        self._model = None
