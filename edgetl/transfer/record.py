"""What fine-tuning leaves behind: the checkpoint, the splits, the golden cases, and the manifest that names them."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import save_file

from edgetl import __version__
from edgetl.bundle import Bundle, NewArtifact, atomic_write, canonical_json, create
from edgetl.errors import DiskError, disk_errors
from edgetl.images import Dataset, Sample, draw_balanced, split_digest, with_calibration
from edgetl.spec import Preprocess
from edgetl.transfer.network import Deployed

GOLDEN = 32
CALIBRATION = 512
FEWEST_TARGET = 64  # images of the target that calibrate by themselves
# Relative to the spread of the logits (fp32, fp16); mean KL divergence in nats (int8).
TOLERANCES = {"fp32": {"relative": 1e-3}, "fp16": {"relative": 5e-2}, "int8": {"kl": 1e-3}}


@dataclass(frozen=True)
class Outcome:
    """A finished run, ready to be recorded. `pixels` are the golden images', uint8 (N, S, S, 3)."""

    data: Dataset  # with its "calibration" split
    golden: Sequence[Sample]
    pixels: npt.NDArray[np.uint8]
    network: Deployed
    preprocess: Preprocess
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    confidence: Mapping[str, Any]
    local: Mapping[str, Any]


def drawn(data: Dataset, seed: int, unlabelled: Sequence[Sample] = ()) -> tuple[Dataset, list[Sample]]:
    """`data` with its calibration split, and the golden cases: both from train, none in common.

    An adapted network will see the target's images, so it is calibrated on these: `unlabelled` (absolute paths) join
    as a split of that name, and are drawn from. Where they are few, train makes up the number.
    """
    train = data.split("train")
    golden = draw_balanced(train, max(1, min(GOLDEN, len(train) // 4)), seed)
    taken = {s.digest for s in golden}
    rest = replace(data, splits={**data.splits, "train": tuple(s for s in train if s.digest not in taken)})
    calibration = with_calibration(rest, CALIBRATION, seed).split("calibration")
    if not unlabelled:
        return replace(data, splits={**data.splits, "calibration": calibration}), golden
    there = tuple(replace(s, path=os.path.relpath(s.path, data.root)) for s in unlabelled)
    mixed = [*draw_balanced(there, CALIBRATION, seed), *calibration[: max(0, FEWEST_TARGET - len(there))]]
    return replace(data, splits={**data.splits, "calibration": tuple(mixed), "unlabelled": there}), golden


def write(to: Path, scratch: Path, outcome: Outcome, photos: bool, overwrite: bool) -> Bundle:
    """Make the bundle (or its next generation) whole. Call it under the bundle's lock."""
    scratch.mkdir(exist_ok=True)
    new = [
        _checkpoint(scratch, outcome.network),
        _json(scratch, "splits", outcome.data.to_json()),
        _array(scratch, "pixels", outcome.pixels),
        _array(scratch, "logits", golden_logits(outcome.network, outcome.pixels)),
    ]
    if photos:
        new += [_photo(outcome.data.root, index, sample) for index, sample in enumerate(outcome.golden)]
    manifest = {
        "task": "classification",
        "made_by": "finetune",
        "labels": list(outcome.data.labels),
        "preprocess": outcome.preprocess.to_json(),
        "model": dict(outcome.model),
        "splits": {
            name: {"n": len(samples), "digest": split_digest(samples)} for name, samples in outcome.data.splits.items()
        },
        "tolerances": TOLERANCES,
        "training": dict(outcome.training, versions=versions()),
        "confidence": dict(outcome.confidence),
    }
    local = dict(outcome.local, host=platform.node(), python=sys.version.split()[0])
    return create(to, manifest, new, local, overwrite)


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {"edgetl": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__}


def golden_logits(network: Deployed, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """float32 (N, C): PyTorch's answer on the CPU in fp32, one image at a time so that no batch size is in it."""
    network.eval().cpu()
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
        return torch.cat([network(image[None]) for image in images]).numpy()


def _checkpoint(scratch: Path, network: Deployed) -> NewArtifact:
    path = scratch / "checkpoint.safetensors"
    state = {key: value.detach().cpu().contiguous() for key, value in network.backbone.state_dict().items()}
    try:
        save_file(state, path)
    except SafetensorError as error:  # its word for every OSError
        raise DiskError(
            "the checkpoint cannot be written", f"{path} ({error})", "free some space and run the same command again"
        ) from error
    return NewArtifact(path, "checkpoint-{sha12}.safetensors", {"kind": "checkpoint", "made_by": "finetune"})


def _json(scratch: Path, kind: str, data: Any) -> NewArtifact:
    path = scratch / (kind + ".json")
    atomic_write(path, canonical_json(data))
    return NewArtifact(path, kind + "-{sha12}.json", {"kind": kind, "made_by": "finetune"})


def _array(scratch: Path, what: str, array: npt.NDArray[Any]) -> NewArtifact:
    path = scratch / (what + ".npy")
    with disk_errors(path):
        np.save(path, array)
    return NewArtifact(path, f"golden/{what}-{{sha12}}.npy", {"kind": "golden-" + what, "made_by": "finetune"})


def _photo(root: Path, index: int, sample: Sample) -> NewArtifact:
    path = root / sample.path
    record = {"kind": "golden-image", "made_by": "finetune", "index": index, "label": sample.target}
    return NewArtifact(path, f"golden/images/{index:02}-{{sha12}}{path.suffix.lower()}", record)
