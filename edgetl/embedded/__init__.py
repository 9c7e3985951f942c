"""What ships in the wheel: a small backbone pretrained on machine fonts, with its card, and the demo's data.

`models/make_embedded.py` makes the two files; `models/CARD.md` tells what they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgetl.errors import WeightsError
from edgetl.spec import Preprocess

NAME = "smallnet"
_HERE = Path(__file__).parent


def weights_path() -> Path:
    """The state dict (safetensors, fp32). Raises WeightsError where the installation lacks it."""
    path = _HERE / (NAME + ".safetensors")
    if not path.is_file():
        raise WeightsError(
            "the embedded backbone is not in this installation",
            path,
            "make it with `python -m models.make_embedded`, or install edgetl again",
        )
    return path


def card() -> dict[str, Any]:
    """The backbone's card: backbone, backbone_args, num_classes, labels, sha256, preprocess, training, versions."""
    weights_path()
    return dict(json.loads((_HERE / (NAME + ".json")).read_text(encoding="utf-8")))


def preprocess() -> Preprocess:
    """The pixels that the embedded backbone was trained on."""
    return Preprocess.from_json(card()["preprocess"])
