"""The backbone that ships: its files agree with each other, and it is worth having."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from edgetl import embedded
from edgetl.errors import WeightsError
from edgetl.transfer.small import SmallNet, smallnet
from models import evaluate


@pytest.fixture(scope="module")
def backbone() -> SmallNet:
    net = smallnet(embedded.card()["num_classes"])
    net.load_state_dict(load_file(embedded.weights_path()))
    return net.eval()


def test_card_and_weights_belong_together() -> None:
    card, path = embedded.card(), embedded.weights_path()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card["sha256"]
    assert path.stat().st_size == card["bytes"] <= 5_000_000
    assert card["file"] == path.name
    assert len(set(card["labels"])) == card["num_classes"]
    assert set("0123456789") < set(card["labels"])  # as models/CARD.md says
    assert (embedded.preprocess().size, embedded.preprocess().resize) == (32, 32)


def test_weights_are_finite_and_give_an_answer(backbone: SmallNet) -> None:
    assert all(bool(t.isfinite().all()) for t in backbone.state_dict().values())
    with torch.inference_mode():
        assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, embedded.card()["num_classes"])


def test_its_features_beat_raw_pixels_and_random_weights_on_handwriting(backbone: SmallNet) -> None:
    torch.manual_seed(0)
    images = evaluate.pixels()
    pretrained = evaluate.probe_accuracy(evaluate.features(backbone, images), draw=0)
    random = evaluate.probe_accuracy(evaluate.features(smallnet(), images), draw=0)
    raw = evaluate.probe_accuracy(images[:, 0].reshape(len(images), -1).astype(np.float64), draw=0)
    assert pretrained > 0.94
    assert pretrained - max(raw, random) > 0.04


def test_an_installation_without_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_HERE", tmp_path)
    for asked in (embedded.weights_path, embedded.card, embedded.preprocess):
        with pytest.raises(WeightsError, match=r"models\.make_embedded"):
            asked()
