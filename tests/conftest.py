"""Shared fixtures: small image folders made here, and the real sample images where they are present."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = Path(os.environ.get("EDGETL_SAMPLES", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder with data/ and weights/; tests that want it are skipped where it is absent."""
    if not (SAMPLES / "data").is_dir():
        pytest.skip(f"no sample images at {SAMPLES} (set EDGETL_SAMPLES)")
    return SAMPLES


@pytest.fixture(scope="session")
def mobilenet_weights(samples: Path) -> Path:
    """ImageNet weights of torchvision's mobilenet_v2."""
    path = samples / "weights/mobilenet_v2/mobilenet_v2-imagenet-coral-dequant.pth"
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    return path


MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """make_folder(classes=("a", "b"), n=6, size=32) -> an image folder whose classes differ in colour and texture."""

    def make(
        classes: tuple[str, ...] = ("left", "right"), n: int = 8, size: int = 32, name: str = "photos", seed: int = 0
    ) -> Path:
        rng = np.random.default_rng(seed)
        for index, label in enumerate(classes):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
                pixels[:, :, index % 3] += 120
                pixels[index :: 2 + index, :, :] //= 2
                Image.fromarray(pixels).save(folder / f"{i:03}.png")
        return tmp_path / name

    return make
