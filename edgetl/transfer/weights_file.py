"""A file of weights that knows what it is: backbone, arguments, labels and preprocessing beside the tensors.

`edgetl pretrain` writes it and `--weights FILE` reads it. In a .safetensors file the card is a JSON text under
"edgetl" of the header's metadata; in a .pth it lies beside "state_dict". Any other program finds a plain state dict.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from edgetl.bundle import atomic_write, canonical_json
from edgetl.errors import InputError, WeightsError
from edgetl.spec import Preprocess

KEY = "edgetl"
FORMAT = 1
SUFFIXES = (".safetensors", ".pth")
# What torch's and safetensors' readers raise at bytes that are cut short or damaged.
UNREADABLE = (
    *(SafetensorError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, OSError, OverflowError, struct.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself; `training` is how it came to be, for people and for --resume."""

    backbone: str
    arguments: dict[str, Any]
    labels: tuple[str, ...]
    preprocess: Preprocess
    training: dict[str, Any] = field(default_factory=dict)

    def dumps(self) -> str:
        """As JSON text, the same for equal cards."""
        return canonical_json(
            {
                "format": FORMAT,
                "backbone": self.backbone,
                "backbone_args": self.arguments,
                "labels": list(self.labels),
                "preprocess": self.preprocess.to_json(),
                "training": self.training,
            }
        ).decode("utf-8")


def check_name(path: Path) -> None:
    """Raise InputError for a name that `write` could not give its contents to."""
    if path.suffix not in SUFFIXES:
        raise InputError("the weights go into a .safetensors or .pth file", path, "such as --to backbone.safetensors")


def write(path: Path, state: dict[str, torch.Tensor], card: Card) -> None:
    """Write tensors and card, whole or not at all. Raises DiskError."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        atomic_write(path, save(whole, {KEY: card.dumps()}))
        return
    stream = io.BytesIO()
    torch.save({"state_dict": whole, KEY: card.dumps()}, stream)
    atomic_write(path, stream.getvalue())


def card_of(path: Path) -> Card | None:
    """The card in a weights file; None for a file without one, or that is none (`weights.read_state` tells why).

    Raises WeightsError for a card that cannot be read, or of a newer format.
    """
    text = _text(path)
    if text is None:
        return None
    try:
        found = json.loads(text)
        if found["format"] > FORMAT:
            raise WeightsError("the weights file is from a newer edgetl", path, "update edgetl")
        return Card(
            str(found["backbone"]),
            dict(found["backbone_args"]),
            tuple(str(label) for label in found["labels"]),
            Preprocess.from_json(found["preprocess"]),
            dict(found.get("training", {})),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        do = "make it again with `edgetl pretrain`"
        raise WeightsError("the card in the weights file cannot be read", f"{path} ({error})", do) from error


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as opened:
                return (opened.metadata() or {}).get(KEY)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, *UNREADABLE):
        return None
    text = found.get(KEY) if isinstance(found, dict) else None
    return text if isinstance(text, str) else None
