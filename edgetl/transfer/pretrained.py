"""A pretrained backbone that gives features, opened from the words of `--backbone` and `--weights`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgetl.errors import InputError
from edgetl.images import Sample
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Fit, Preprocess
from edgetl.transfer import backbones, weights
from edgetl.transfer.augment import stream_seed
from edgetl.transfer.backbones import BackboneRow
from edgetl.transfer.feature_store import FeatureStore, model_key
from edgetl.transfer.features import Inputs
from edgetl.transfer.network import Deployed

Floats = npt.NDArray[np.float32]
_CLASSES = 2  # of the fresh head, which no feature passes


@dataclass(frozen=True)
class SourceHead:
    """The classifier that came with the weights: logits = features @ weight.T + bias; (C, D) and (C,).

    SqueezeNet's ReLU on its logits and its mean over places are swapped here (see BackboneRow.then).
    """

    weight: Floats
    bias: Floats

    def probabilities(self, features: Floats) -> npt.NDArray[np.float64]:
        """float64 (N, C): what the source classifier says of images of another task."""
        logits = (features @ self.weight.T + self.bias).astype(np.float64)
        raised = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(raised / raised.sum(1, keepdims=True))


@dataclass(frozen=True)
class Pretrained:
    """A network without a head of its own task. `provenance` says where its weights are from."""

    spec: BackboneRow
    network: Deployed
    preprocess: Preprocess
    provenance: dict[str, Any]
    source_head: SourceHead | None
    device: torch.device
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The weights by a word or a file name."""
        return str(self.provenance.get("name") or self.provenance["source"])

    def describe(self) -> str:
        """For a line of text: backbone, weights, size."""
        return f"{self.spec.name} ({self.name}) at {self.preprocess.size} px"

    def features(
        self, samples: Sequence[Sample], inputs: Inputs, store: FeatureStore, monitor: Monitor = SILENT
    ) -> Floats:
        """float32 (N, D), the input of the head, in the order of `samples`; kept in `store`."""
        with backbones.headless(self.network.backbone, self.spec):
            key = model_key(self.network, self.spec.name, self.preprocess, self.arguments)
            what = f"features, {self.name}"
            return store.features(self.network, key, samples, inputs, self.device, what, monitor)


@dataclass(frozen=True)
class Wish:
    """Which backbone, as the options say it; `weights`: auto, none, embedded or a file."""

    backbone: str | None = None
    weights: str = "embedded"
    image_size: int | None = None
    fit: Fit = Fit.CROP
    device: str = "auto"
    seed: int = 0
    arguments: str = ""


def open_pretrained(wish: Wish) -> Pretrained:
    """The network of a wish, its weights loaded (`auto` downloads). Raises BackboneError, WeightsError, InputError."""
    spec, arguments = weights.network_of(wish.weights, wish.backbone, wish.arguments)
    device = device_of(wish.device)
    spec.check_size(wish.image_size or spec.size)  # before anything is downloaded
    found = weights.load(wish.weights, spec)
    preprocess = weights.preprocess_for(found.preprocess, wish.image_size, wish.fit)
    torch.default_generator.manual_seed(stream_seed(wish.seed, "init"))
    backbone = backbones.build(spec.name, _CLASSES, preprocess.size, arguments, init=found.state is None)
    if found.state is not None:
        weights.apply(backbone, spec, found.state, preprocess.size, str(found.provenance["name"]))
    network = Deployed(backbone, preprocess).to(device).to(memory_format=torch.channels_last).eval()
    width = backbones.head_of(backbone, spec).weight[0].numel()
    return Pretrained(spec, network, preprocess, dict(found.provenance), _head(found, spec, width), device, arguments)


def device_of(choice: str) -> torch.device:
    """auto, cpu or cuda. Raises InputError."""
    there = torch.cuda.is_available()
    if choice not in ("auto", "cpu", "cuda"):
        raise InputError("unknown value of --device", choice, "use auto, cpu or cuda")
    if choice == "cuda" and not there:
        raise InputError("PyTorch sees no CUDA device", "--device cuda", "use --device cpu")
    return torch.device("cuda" if choice != "cpu" and there else "cpu")


def _head(found: weights.Weights, spec: BackboneRow, width: int) -> SourceHead | None:
    """The classifier in the weights, where it is one of `width` features (D) and two classes at least."""
    state = found.state or {}
    weight, bias = state.get(spec.head + ".weight"), state.get(spec.head + ".bias")
    if weight is None or weight.ndim < 2 or len(weight) < 2 or weight[0].numel() != width:
        return None
    flat = weight.float().flatten(1).numpy()
    if bias is None or bias.shape != (len(flat),):
        return SourceHead(flat, np.zeros(len(flat), np.float32))
    return SourceHead(flat, bias.float().numpy())
