from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgetl.errors import CorruptImage
from edgetl.images import ReadOptions, Sample, read_data
from edgetl.monitor import Monitor
from edgetl.transfer import FinetuneOptions, blocks, finetune, large

OPTIONS: dict[str, Any] = {"weights": "embedded", "epochs": 1, "batch_size": 16, "amp": "off"}


class Order(Monitor):
    """Which kinds of work were heard of, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.said: list[str] = []

    def progress(self, what: str, done: int, total: int) -> None:
        if what not in self.heard:
            self.heard.append(what)

    def say(self, line: str) -> None:
        self.said.append(line)


def _run(folder: Path, to: Path, **change: Any) -> tuple[dict[str, Any], Order]:
    order = Order()
    return finetune(read_data(str(folder), ReadOptions()), to, FinetuneOptions(**{**OPTIONS, **change}), order), order


def _told(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if k not in ("bundle", "seconds", "images_per_second")}


def test_a_large_set_comes_to_the_same_without_being_decoded_first(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(n=24)
    first, order = _run(folder, tmp_path / "eager")
    assert order.heard[0] == "decode"
    monkeypatch.setattr(large, "EAGER_IMAGES", 10)
    put_off, order = _run(folder, tmp_path / "lazy")
    assert "decode" not in order.heard and order.heard[0] == "features"
    assert _told(put_off) == _told(first)


def test_the_probe_of_a_large_set_is_fitted_to_a_draw_where_training_follows(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(n=24)
    monkeypatch.setattr(large, "EAGER_IMAGES", 10)
    monkeypatch.setattr(large, "PROBE_IMAGES", 8)
    monkeypatch.setattr(large, "PER_CLASS", 1)
    result, order = _run(folder, tmp_path / "b")
    assert [line for line in order.said if "8 of 32 training images" in line]
    assert result["n"]["train"] == 32
    _, order = _run(folder, tmp_path / "p", strategy="linear-probe")
    assert not [line for line in order.said if "drawn by class" in line], "here the probe is the result"


@pytest.mark.parametrize("strategy", ["lp-ft", "full", "auto"])
def test_training_on_a_large_set_starts_from_a_probe_on_a_part_and_competes_with_one_on_all(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    folder = make_folder(n=24)
    probe, _ = _run(folder, tmp_path / "p", strategy="linear-probe")
    monkeypatch.setattr(large, "EAGER_IMAGES", 10)
    monkeypatch.setattr(large, "START_IMAGES", 8)
    monkeypatch.setattr(large, "START_VAL", 4)
    monkeypatch.setattr(large, "PER_CLASS", 1)
    result, order = _run(folder, tmp_path / "b", strategy=strategy, lr=1e-2)
    assert [line for line in order.said if "8 of 32 images" in line]
    assert len([line for line in order.said if line.startswith("linear probe: ")]) == 2
    assert result["linear_probe"] == probe["linear_probe"]
    assert result["selection"]["candidates"][0]["val_loss"] == probe["selection"]["candidates"][0]["val_loss"]
    assert result["val"]["accuracy"] >= result["linear_probe"]["accuracy"]


@pytest.mark.parametrize("probe", [1, 2])
def test_a_large_run_that_was_stopped_at_either_probe_resumes_to_the_same(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, probe: int
) -> None:
    class Stop(Order):
        def say(self, line: str) -> None:
            super().say(line)
            if sum(said.startswith("linear probe: ") for said in self.said) == probe:
                raise KeyboardInterrupt

    folder = make_folder(n=24)
    for name, value in {"EAGER_IMAGES": 10, "START_IMAGES": 8, "START_VAL": 4, "PER_CLASS": 1}.items():
        monkeypatch.setattr(large, name, value)
    whole, _ = _run(folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        finetune(read_data(str(folder), ReadOptions()), tmp_path / "b", FinetuneOptions(**OPTIONS), Stop())
    resumed, _ = _run(folder, tmp_path / "b", resume=True)
    assert _told(resumed) == _told(whole)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_corrupt_image_of_a_large_set_ends_the_run_wherever_it_is(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    for seed, (name, count) in enumerate((("train", 10), ("val", 4), ("test", 4))):
        make_folder(n=count, name=f"given/{name}", seed=seed)
    bad = tmp_path / "given" / split / "left" / "002.png"
    bad.write_bytes(b"no image")
    monkeypatch.setattr(large, "EAGER_IMAGES", 10)
    with pytest.raises(CorruptImage, match=f"{split}/left/002.png"):
        _run(tmp_path / "given", tmp_path / "b")
    assert not (tmp_path / "b").exists() and not (tmp_path / "b.work").exists()
    if split == "train":
        result, order = _run(tmp_path / "given", tmp_path / "b", skip_corrupt=True)
        assert order.heard[0] == "decode"
        assert result["n"]["train"] == 19


def test_features_beyond_memory_come_to_the_same_with_folds_and_budgets(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(n=24)
    asked: dict[str, Any] = {"strategy": "features", "folds": 2, "label_budget": (3,)}
    small, _ = _run(folder, tmp_path / "small", **asked)
    monkeypatch.setattr(blocks, "LARGE", 0)
    monkeypatch.setattr(blocks, "BLOCK", 500)
    large, _ = _run(folder, tmp_path / "large", **asked)
    assert large["val"]["accuracy"] == small["val"]["accuracy"]
    assert large["folds"]["pooled"]["confusion"] == small["folds"]["pooled"]["confusion"]
    assert large["label_budget"]["rows"] == small["label_budget"]["rows"]
    assert not (tmp_path / "large.work").exists()


@given(st.lists(st.integers(0, 3), min_size=30, max_size=120), st.integers(5, 40), st.integers(0, 99))
def test_a_draw_has_the_classes_in_their_shares_and_some_of_each(targets: list[int], count: int, seed: int) -> None:
    samples = [Sample(f"{i}.png", target, f"{i % 100:064x}") for i, target in enumerate(targets)]
    found = large.share_of(samples, count, seed)
    assert len({s.path for s in found}) == len(found) and set(found) <= set(samples)
    assert large.share_of(samples[::-1], count, seed) == found or len(samples) <= count
    if len(samples) <= count:
        assert found == samples
        return
    for target in set(targets):
        have = len({s.digest for s in samples if s.target == target})
        drawn = [s.digest for s in found if s.target == target]
        assert len(set(drawn)) == len(drawn)
        share = count / len(samples) * have
        assert len(drawn) == min(have, max(large.PER_CLASS, round(share)))


@pytest.mark.parametrize("strategy", ["lp-ft", "auto"])
def test_a_large_set_is_adapted_too(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """The adaptation asks for the probe of a run that has fitted two, neither of them to all images."""
    folder = make_folder(n=24)
    rng = np.random.default_rng(0)
    (tmp_path / "there").mkdir()
    for i in range(16):
        pixels = rng.integers(120, 250, (32, 32, 3), dtype=np.uint8)
        pixels[i % 2 :: 2 + i % 2] //= 3
        Image.fromarray(pixels).save(tmp_path / "there" / f"{i}.png")
    sizes = {"EAGER_IMAGES": 10, "START_IMAGES": 8, "START_VAL": 4, "PROBE_IMAGES": 16, "PER_CLASS": 1}
    for name, value in sizes.items():
        monkeypatch.setattr(large, name, value)
    asked = {"adapt": "standardise", "unlabelled": tmp_path / "there", "strategy": strategy}
    result, order = _run(folder, tmp_path / "b", **asked)
    assert [line for line in order.said if "16 of 32 training images" in line] or strategy == "auto"
    assert result["adaptation"]["n_unlabelled"] == 16
    assert [score["name"] for score in result["adaptation"]["scores"]], "candidates were fitted"
