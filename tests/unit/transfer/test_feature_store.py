"""Features on disk: the same numbers, computed once, whatever happened to the process that wrote them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgetl.errors import DataError, DiskError
from edgetl.images import Sample
from edgetl.spec import Preprocess
from edgetl.transfer.feature_store import FeatureStore, model_key

CPU = torch.device("cpu")


def image(number: int) -> Sample:
    return Sample(f"{number}.png", 0, sha256(str(number).encode()).hexdigest())


def decode(samples: Sequence[Sample]) -> np.ndarray:
    """uint8 (B, 4, 4, 3) that is a function of the digest."""
    rows = [np.frombuffer(bytes.fromhex(s.digest) * 2, np.uint8)[:48].reshape(4, 4, 3) for s in samples]
    return np.stack(rows)


class Counting(nn.Module):
    """float32 (B, 3, 4, 4) -> (B, 5): a fixed projection that counts the images it was given."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.seen = 0
        self.register_buffer("kernel", torch.linspace(-1, 1, 48 * width).reshape(48, width))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen += len(pixels)
        return pixels.flatten(1) @ self.kernel


def expected(samples: Sequence[Sample]) -> np.ndarray:
    with torch.inference_mode():
        pixels = torch.from_numpy(decode(samples)).permute(0, 3, 1, 2).float()
        return Counting()(pixels).numpy()


def test_features_come_in_order_and_are_computed_once(tmp_path: Path) -> None:
    samples = [image(i) for i in (3, 1, 2, 1, 3)]
    first, second = Counting(), Counting()
    once = FeatureStore(tmp_path).features(first, "m", samples, decode, CPU)
    again = FeatureStore(tmp_path).features(second, "m", samples[::-1], decode, CPU)
    np.testing.assert_allclose(once, expected(samples), rtol=1e-5)
    np.testing.assert_array_equal(again, once[::-1])
    assert (first.seen, second.seen) == (3, 0)


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 40), max_size=30), min_size=1, max_size=5))
def test_any_sequence_of_requests(tmp_path_factory: pytest.TempPathFactory, requests: list[list[int]]) -> None:
    store, model = FeatureStore(tmp_path_factory.mktemp("store")), Counting()
    for numbers in requests:
        samples = [image(n) for n in numbers]
        found = store.features(model, "m", samples, decode, CPU)
        assert len(found) == len(samples)
        if samples:
            np.testing.assert_allclose(found, expected(samples), rtol=1e-4, atol=1e-3)
    assert model.seen == len({n for numbers in requests for n in numbers})


def test_other_keys_share_nothing(tmp_path: Path) -> None:
    store, samples = FeatureStore(tmp_path), [image(0)]
    narrow, wide = Counting(), Counting(9)
    assert store.features(narrow, "narrow", samples, decode, CPU).shape == (1, 5)
    assert store.features(wide, "wide", samples, decode, CPU).shape == (1, 9)
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_the_key_knows_weights_backbone_arguments_and_preprocessing() -> None:
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    spec = Preprocess(size=32, resize=36)
    keys = [
        model_key(net, "a", spec),
        model_key(other, "a", spec),
        model_key(net, "b", spec),
        model_key(net, "a", Preprocess(size=32, resize=40)),
        model_key(net, "a", spec, {"width_mult": 0.5}),
    ]
    assert len(set(keys)) == len(keys)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(net.state_dict())
    assert model_key(twin, "a", spec) == keys[0]


def stored(folder: Path) -> Path:
    return next((folder / "features").iterdir())


@pytest.mark.parametrize("cut", ["features.f32", "index.bin"])
def test_a_torn_tail_is_cut_off_and_computed_again(tmp_path: Path, cut: str) -> None:
    samples = [image(i) for i in range(10)]
    whole = FeatureStore(tmp_path).features(Counting(), "m", samples, decode, CPU)
    file = stored(tmp_path) / cut
    os.truncate(file, file.stat().st_size - 7)
    model = Counting()
    again = FeatureStore(tmp_path).features(model, "m", [*samples, image(10)], decode, CPU)
    np.testing.assert_allclose(again[:10], whole, rtol=1e-5)
    assert model.seen == 2  # the torn one and the new one
    last = Counting()
    FeatureStore(tmp_path).features(last, "m", [*samples, image(10)], decode, CPU)
    assert last.seen == 0


def test_a_damaged_row_is_noticed(tmp_path: Path) -> None:
    samples = [image(i) for i in range(6)]
    whole = FeatureStore(tmp_path).features(Counting(), "m", samples, decode, CPU)
    with (stored(tmp_path) / "features.f32").open("r+b") as stream:
        stream.seek(2 * 5 * 4)
        stream.write(bytes(20))  # what a power cut leaves of a page
    for seen in (1, 0):
        model = Counting()
        again = FeatureStore(tmp_path).features(model, "m", samples, decode, CPU)
        np.testing.assert_allclose(again, whole, rtol=1e-5)
        assert model.seen == seen


@pytest.mark.parametrize("meta", ["", "{", "[]", '{"format": 99}', '{"format": 1, "width": 3, "model": "m cpu"}'])
def test_a_folder_that_is_not_to_be_trusted_is_begun_again(tmp_path: Path, meta: str) -> None:
    samples = [image(i) for i in range(6)]
    whole = FeatureStore(tmp_path).features(Counting(), "m", samples, decode, CPU)
    (stored(tmp_path) / "meta.json").write_text(meta, encoding="utf-8")
    for seen in (6, 0):
        model = Counting()
        again = FeatureStore(tmp_path).features(model, "m", samples, decode, CPU)
        np.testing.assert_allclose(again, whole, rtol=1e-5)
        assert model.seen == seen
    assert json.loads((stored(tmp_path) / "meta.json").read_text())["width"] == 5


def test_an_image_that_cannot_be_read_keeps_what_came_before(tmp_path: Path) -> None:
    samples = [image(i) for i in range(130)]  # three chunks

    def breaks(chunk: Sequence[Sample]) -> np.ndarray:
        if chunk[-1].digest == samples[-1].digest:
            raise DataError("broken", "129.png")
        return decode(chunk)

    with pytest.raises(DataError, match=r"129\.png"):
        FeatureStore(tmp_path).features(Counting(), "m", samples, breaks, CPU)
    model = Counting()
    FeatureStore(tmp_path).features(model, "m", samples, decode, CPU)
    assert model.seen == 2


def test_the_cache_stays_within_its_limit(tmp_path: Path) -> None:
    samples = [image(i) for i in range(100)]
    FeatureStore(tmp_path).features(Counting(), "old", samples, decode, CPU)
    old = stored(tmp_path)
    os.utime(old / "meta.json", (1, 1))
    FeatureStore(tmp_path).features(Counting(), "young", samples, decode, CPU)
    FeatureStore(tmp_path, limit_bytes=10_000).features(Counting(), "new", samples[:1], decode, CPU)
    assert not old.exists()
    assert len([f for f in (tmp_path / "features").iterdir() if f.is_dir()]) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="EDGETL_CACHE"):
        FeatureStore(tmp_path).features(Counting(), "m", [image(0)], decode, CPU)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_only_be_read_serves_what_it_holds(tmp_path: Path) -> None:
    samples = [image(i) for i in range(6)]
    whole = FeatureStore(tmp_path).features(Counting(), "m", samples, decode, CPU)
    for folder in (stored(tmp_path), tmp_path / "features", tmp_path):
        folder.chmod(0o500)
    model = Counting()
    np.testing.assert_array_equal(FeatureStore(tmp_path).features(model, "m", samples, decode, CPU), whole)
    assert model.seen == 0
    with pytest.raises(DiskError, match="EDGETL_CACHE"):
        FeatureStore(tmp_path).features(model, "m", [image(9)], decode, CPU)


def test_a_disk_that_is_full_elsewhere_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def full(chunk: Sequence[Sample]) -> np.ndarray:
        raise DiskError("no space left", "/elsewhere", "free some there")

    with pytest.raises(DiskError, match="/elsewhere") as caught:
        FeatureStore(tmp_path).features(Counting(), "m", [image(0)], full, CPU)
    assert caught.value.do == "free some there"


def test_a_file_in_the_place_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(DiskError, match="EDGETL_CACHE"):
        FeatureStore(tmp_path / "cache").features(Counting(), "m", [image(0)], decode, CPU)


def worker(folder: Path, numbers: range, pause: float = 0.0) -> subprocess.Popen[str]:
    """A process of its own that wants the features of some images; prints what its model had to see."""
    code = (
        "import sys, time, importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('here', {str(Path(__file__))!r})\n"
        "here = importlib.util.module_from_spec(spec); spec.loader.exec_module(here)\n"
        "class Slow(here.Counting):\n"
        "    def forward(self, x):\n"
        f"        time.sleep({pause}); print('batch', flush=True); return super().forward(x)\n"
        "model = Slow()\n"
        f"samples = [here.image(i) for i in range({numbers.start}, {numbers.stop})]\n"
        f"found = here.FeatureStore(here.Path({str(folder)!r})).features(model, 'm', samples, here.decode, here.CPU)\n"
        "here.np.testing.assert_allclose(found, here.expected(samples), rtol=1e-4, atol=1e-3)\n"
        "print('seen', model.seen, flush=True)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_and_two_processes_at_once(tmp_path: Path) -> None:
    killed = worker(tmp_path, range(640), pause=0.02)
    assert killed.stdout is not None
    for _ in range(4):
        killed.stdout.readline()
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    both = [worker(tmp_path, range(400), pause=0.01), worker(tmp_path, range(200, 640), pause=0.01)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    seen = [int(text.split()[-1]) for text in said]
    assert seen[0] <= 400 - 128  # two chunks at the least were kept
    samples, last = [image(i) for i in range(640)], Counting()
    found = FeatureStore(tmp_path).features(last, "m", samples, decode, CPU)
    np.testing.assert_allclose(found, expected(samples), rtol=1e-4, atol=1e-3)
    assert last.seen == 0
