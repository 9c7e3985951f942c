"""DeepStream's resize, emulated: equal to the bundle's where an image grows, and not where it shrinks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgetl.bench import BenchData
from edgetl.bench.resize import as_deepstream, resize_cost
from edgetl.bundle import sha256_bytes
from edgetl.errors import InputError
from edgetl.images import Sample
from edgetl.measure.rows import Row
from edgetl.measure.task import TASKS
from edgetl.spec import Fit, InputKind, Preprocess, image_input

SIZE = 32


def plainly(pixels: Any, size: int) -> Any:
    """Bilinear interpolation between the four pixels around each output pixel's centre, written out."""
    height, width = pixels.shape[:2]
    out = np.zeros((size, size, 3))
    for row in range(size):
        for column in range(size):
            y, x = (row + 0.5) * height / size - 0.5, (column + 0.5) * width / size - 0.5
            top, left = int(np.floor(y)), int(np.floor(x))
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = abs(1 - dy - (y - top)) * abs(1 - dx - (x - left))
                out[row, column] += weight * pixels[np.clip(top + dy, 0, height - 1), np.clip(left + dx, 0, width - 1)]
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(2, 16), st.integers(0, 2**32 - 1))
def test_it_is_four_pixel_bilinear_at_any_ratio(width: int, height: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = as_deepstream(Image.fromarray(pixels), size).astype(float)
    assert np.abs(found - plainly(pixels, size)).max() <= 0.501


def test_it_is_the_bundles_own_where_an_image_grows_and_aliases_where_it_shrinks() -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    own = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(as_deepstream(small, SIZE).astype(int) - own).max() <= 1
    # Noise averages out in a filter that grows with the ratio, 8 here; one of four pixels leaves half of it.
    noise = Image.fromarray(np.where(rng.random((256, 256, 1)) < 0.5, 0, 255).astype(np.uint8).repeat(3, axis=2))
    own = np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert own.std() < 20 and as_deepstream(noise, SIZE).std() > 55


class Contrast:
    """Two classes by the spread of the pixels: what aliasing changes."""

    input = image_input(InputKind.FLOAT32, SIZE)
    name = provider = "test"
    evidence = "simulated"

    def run(self, batch: Any) -> Any:
        spread = batch.reshape(len(batch), -1).std(axis=1)
        return np.stack([35 - spread, spread - 35], axis=1).astype(np.float32)

    def device_ms(self) -> None:
        return None

    def close(self) -> None:
        pass


@pytest.fixture
def images(tmp_path: Path) -> BenchData:
    """Eight images of noise, which is grey once it is made small properly, and eight of black and white halves."""
    rng, samples = np.random.default_rng(0), []
    for index in range(16):
        pixels = np.where(rng.random((256, 256)) < 0.5, 0, 255)
        if index >= 8:
            pixels[:, : 90 + index], pixels[:, 90 + index :] = 0, 255
        name = f"{index}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name)
        samples.append(Sample(name, index // 8, sha256_bytes((tmp_path / name).read_bytes())))
    spec = Preprocess(size=SIZE, resize=SIZE, fit=Fit.STRETCH)
    return BenchData(tmp_path, samples, "test", spec, ("grey", "halves"))


def test_the_row_and_the_resize_by_itself(images: BenchData) -> None:
    cost = resize_cost(Contrast(), RECORD, Contrast(), images, TASKS["classification"])
    row = Row.from_json(cost.row.to_json())
    assert (row.id, row.n_images, row.accuracy_evidence) == ("onnxruntime-trt10-fp16-deepstream-b1", 16, "simulated")
    assert row.provider == "test+DeepStream"
    assert row.latency_ms is None and row.environment == cost.environment["id"]
    # Reference and graph are the same here, so all that is lost is the resize's.
    assert cost.alone["own_accuracy"] == 1.0 and row.accuracy == 0.5 and row.drop_pp == cost.alone["drop_pp"] == 50.0
    assert row.flips == cost.alone["flips"] == 8 and cost.alone["drop_ci_pp"][0] > 0


def test_another_fit_is_refused(images: BenchData) -> None:
    other = dataclasses.replace(images, preprocess=Preprocess(size=SIZE, resize=SIZE))
    with pytest.raises(InputError, match="--fit crop"):
        resize_cost(Contrast(), RECORD, Contrast(), other, TASKS["classification"])


RECORD = {"profile": "trt10", "precision": "fp16", "sha256": "ab" * 32, "bytes": 10}
