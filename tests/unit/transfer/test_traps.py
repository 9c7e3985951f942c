"""Mistakes that tutorials make, each shut out by a test; those of a single module are tested beside it.

Elsewhere: freezing by requires_grad alone and the head's learning rate for the body (test_recipe.py), fitting or
choosing on the test split and a source of which nothing is carried over (test_finetune_stage.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl import embedded
from edgetl.bundle import Bundle
from edgetl.errors import DataError
from edgetl.images import Dataset, Sample, read_data, to_batch, to_input
from edgetl.transfer import FinetuneOptions, finetune, tune
from edgetl.transfer.network import TorchBackend, deployed

BASE: dict[str, Any] = {"weights": "embedded", "image_size": 16, "epochs": 2, "batch_size": 8, "amp": "off"}


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> Dataset:
    return read_data(str(make_folder(n=20, size=24)))


def test_only_training_images_are_augmented(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random views are made of the images of train and of no other."""
    seen: set[str] = set()

    class Watched(tune.Views):
        def __call__(self, samples: Sequence[Sample], epoch: int) -> np.ndarray:
            seen.update(s.digest for s in samples)
            return super().__call__(samples, epoch)

    monkeypatch.setattr(tune, "Views", Watched)
    finetune(data, tmp_path / "b", FinetuneOptions(**BASE))
    assert seen == {s.digest for s in data.split("train")}


@pytest.mark.parametrize("strategy", ["linear-probe", "lp-ft"])
def test_the_figures_of_val_and_test_are_of_their_own_plain_images(
    tmp_path: Path, data: Dataset, strategy: str
) -> None:
    """Asked again image by image, by the deployed network: the same accuracy on each split, and test is not val's."""
    result = finetune(data, tmp_path / "b", FinetuneOptions(**BASE, strategy=strategy))
    bundle = Bundle.open(tmp_path / "b")
    backend = TorchBackend(bundle)
    for split in ("val", "test"):
        samples = data.split(split)
        pixels = np.stack([to_input((data.root / s.path).read_bytes(), bundle.preprocess) for s in samples])
        guesses = backend.run(to_batch(pixels, "float32")).argmax(1)
        right = float((guesses == [s.target for s in samples]).mean())
        assert result[split]["accuracy"] == pytest.approx(right)
        assert result[split]["n"] == len(samples)
    assert not {s.digest for s in data.split("val")} & {s.digest for s in data.split("test")}


def test_normalisation_is_the_weights_own(tmp_path: Path, data: Dataset) -> None:
    finetune(data, tmp_path / "b", FinetuneOptions(**BASE, strategy="linear-probe"))
    own = embedded.preprocess()
    bundle = Bundle.open(tmp_path / "b")
    assert (bundle.preprocess.mean, bundle.preprocess.std) == (own.mean, own.std)
    network = deployed(bundle)
    torch.testing.assert_close(network.mean.flatten(), torch.tensor(own.mean) * 255)
    torch.testing.assert_close(network.std.flatten(), torch.tensor(own.std) * 255)


def test_one_class_is_nothing_to_learn(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"class"):
        finetune(read_data(str(make_folder(classes=("only",)))), tmp_path / "b", FinetuneOptions(**BASE))
    assert not (tmp_path / "b").exists()
