"""Bundles made by hand from small random networks, so that the graph stage is tested without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edgetl.bundle import NewArtifact, create, locked
from edgetl.graph import ExportOptions, export
from edgetl.images import ReadOptions, draw_balanced, read_data, split_digest, stream, with_calibration
from edgetl.spec import Preprocess
from edgetl.transfer import backbones
from edgetl.transfer.network import Deployed


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
    for kind, array in (("golden-pixels", golden_pixels), ("golden-logits", logits)):
        with (work / kind).open("wb") as stream_:
            np.save(stream_, array)
    names = {
        "checkpoint": "checkpoint-{sha12}.safetensors",
        "splits": "splits-{sha12}.json",
        "golden-pixels": "golden/pixels-{sha12}.npy",
        "golden-logits": "golden/logits-{sha12}.npy",
    }
    new = [NewArtifact(work / kind, name, {"kind": kind, "made_by": "finetune"}) for kind, name in names.items()]
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


def photos(folder: Path, n: int = 40, size: int = 32, labels: tuple[str, ...] = ("left", "middle", "right")) -> Path:
    """An image folder whose classes differ in colour and texture."""
    rng = np.random.default_rng(0)
    for index, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
            pixels[:, :, index % 3] += 120
            pixels[index :: 2 + index, :, :] //= 2
            Image.fromarray(pixels).save(folder / label / f"{i:03}.png")
    return folder


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images of three classes, 32 px."""
    return photos(tmp_path_factory.mktemp("graph") / "photos")


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Path:
    """A smallnet bundle without graphs; copy it before writing to it."""
    return hand_made(tmp_path_factory.mktemp("graph") / "plain", photo_folder, "smallnet", 32)


@pytest.fixture
def fresh(plain_bundle: Path, tmp_path: Path) -> Path:
    """A copy of plain_bundle to write to."""
    return Path(shutil.copytree(plain_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, plain_bundle: Path) -> Path:
    """A bundle with the trt10 and trt8 graphs of all three precisions; read it only."""
    path = Path(shutil.copytree(plain_bundle, tmp_path_factory.mktemp("graph") / "exported"))
    for target in ("jetpack6", "jetpack5"):
        export(path, ExportOptions(int8=True, target=target, max_drop=100.0))
    return path


@pytest.fixture
def ready(exported: Path, tmp_path: Path) -> Path:
    """A copy of `exported` to write to; its calibration is known, so modelopt is not waited for."""
    return Path(shutil.copytree(exported, tmp_path / "ready"))
