"""Bundles made by hand from small random networks, so that the graph stage is tested without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgetl.bundle import Bundle, NewArtifact, create, locked, sha256_file
from edgetl.images import ReadOptions, draw_balanced, read_data, split_digest, stream, with_calibration
from edgetl.spec import Preprocess
from edgetl.transfer import backbones
from edgetl.transfer.network import Deployed

MakeBundle = Callable[..., Path]


def hand_made(to: Path, data: Path, backbone: str, size: int, arguments: dict[str, Any] | None = None) -> Path:
    """A bundle whose network has seeded random weights and settled BatchNorm statistics."""
    dataset = with_calibration(read_data(str(data), ReadOptions()), 512, 0)
    spec = Preprocess(size, size)
    torch.manual_seed(0)
    body = backbones.build(backbone, len(dataset.labels), size, arguments or {})
    network = Deployed(body, spec)
    train = list(dataset.split("train"))
    pixels = np.concatenate([b.pixels for b in stream(dataset.root, train[:32], spec, 8)])
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        for layer in body.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # plain averages: statistics that fit the images at once
        network.train()
        network(images)
        network.eval()
        golden = draw_balanced(train, 8, 1)
        golden_pixels = np.concatenate([b.pixels for b in stream(dataset.root, golden, spec, 8)])
        logits = network(torch.from_numpy(golden_pixels.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    work = to.with_name(to.name + ".parts")
    work.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in body.state_dict().items()}, work / "checkpoint")
    (work / "splits").write_text(json.dumps(dataset.to_json()))
    np.save(work / "pixels.npy", golden_pixels)
    np.save(work / "logits.npy", logits)
    new = [
        NewArtifact(work / "checkpoint", "checkpoint-{sha12}.safetensors", {"kind": "checkpoint", "made_by": "finetune"}),
        NewArtifact(work / "splits", "splits-{sha12}.json", {"kind": "splits", "made_by": "finetune"}),
        NewArtifact(work / "pixels.npy", "golden/pixels-{sha12}.npy", {"kind": "golden-pixels", "made_by": "finetune"}),
        NewArtifact(work / "logits.npy", "golden/logits-{sha12}.npy", {"kind": "golden-logits", "made_by": "finetune"}),
    ]
    manifest = {
        "task": "classification",
        "made_by": "finetune",
        "labels": list(dataset.labels),
        "preprocess": spec.to_json(),
        "model": {"backbone": backbone, "backbone_args": arguments or {}, "num_classes": len(dataset.labels)},
        "splits": {name: {"n": len(s), "digest": split_digest(s)} for name, s in dataset.splits.items()},
        "tolerances": {"fp32": {"relative": 1e-3}, "fp16": {"relative": 2e-2}, "int8": {"kl": 1e-3}},
        "training": {},
    }
    with locked(to):
        create(to, manifest, new, {"data": str(dataset.root)})
    return to


@pytest.fixture
def make_bundle(tmp_path: Path, make_folder: Callable[..., Path]) -> MakeBundle:
    """make_bundle(backbone="smallnet", size=32, n=40) -> the path of a bundle over generated images."""

    def make(backbone: str = "smallnet", size: int = 32, n: int = 40, **arguments: Any) -> Path:
        folder = tmp_path / "photos"
        data = folder if folder.is_dir() else make_folder(classes=("left", "middle", "right"), n=n, size=size)
        return hand_made(tmp_path / f"bundle-{backbone}", data, backbone, size, arguments)

    return make


def digests(bundle: Path) -> dict[str, str]:
    """Every file of a bundle and its sha256: what "as it was before" means."""
    return {p.relative_to(bundle).as_posix(): sha256_file(p) for p in sorted(bundle.rglob("*")) if p.is_file()}


@pytest.fixture
def opened() -> Callable[[Path], Bundle]:
    """Bundle.open."""
    return Bundle.open
