"""Which networks are ranked, whose weights a file holds, and what a network costs before it has any weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file

from edgetl.errors import BackboneError, InputError, WeightsError
from edgetl.graph.export import source_of_network
from edgetl.graph.macs import macs
from edgetl.spec import Preprocess
from edgetl.transfer import backbones
from edgetl.transfer.network import Deployed
from edgetl.transfer.pretrained import open_pretrained
from edgetl.transfer.rank import candidates as module
from edgetl.transfer.rank.candidates import Search, backbone_of, candidates, on_disk
from edgetl.transfer.rank.cost import blank, size_of
from edgetl.transfer.weights import read_state
from edgetl.transfer.weights_file import Card, write

SMALL = ("mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1", "smallnet", "regnet_y_400mf")


@pytest.mark.parametrize("name", SMALL)
def test_the_network_of_a_file_is_known_by_its_weights(tmp_path: Path, name: str) -> None:
    spec = backbones.row(name)
    path = tmp_path / "weights.pth"
    torch.save(backbones.build(name, 7, spec.size).state_dict(), path)
    assert backbone_of(path, read_state(path), ()) == name


def test_without_its_classifier_and_under_another_networks_name(tmp_path: Path) -> None:
    state = backbones.build("squeezenet1_0", 7, 64).state_dict()
    path = tmp_path / "squeezenet1_1-mine.safetensors"
    save_file({k: v for k, v in state.items() if not k.startswith("classifier")}, path)
    assert backbone_of(path, read_state(path), ("squeezenet1_1", "squeezenet1_0")) == "squeezenet1_0"


def test_a_file_of_pretrain_says_itself_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    arguments = {"width_mult": 0.25}
    state = backbones.build("mobilenet_v2", 4, 48, arguments).state_dict()
    write(path, state, Card("mobilenet_v2", arguments, ("a", "b", "c", "d"), Preprocess(size=48, resize=54)))
    ((wish,), _) = candidates(Search((str(path),)))
    assert (wish.backbone, wish.image_size, wish.arguments) == ("mobilenet_v2", 48, "width_mult=0.25")
    opened = open_pretrained(wish)
    assert opened.preprocess == Preprocess(size=48, resize=54) and opened.arguments == arguments
    with pytest.raises(BackboneError, match="mobilenet_v2"):
        candidates(Search((str(path),), ("resnet18",)))


def test_weights_that_want_larger_images_than_their_networks_default_are_counted_and_timed_at_these() -> None:
    spec, entries = backbones.row("vit_b_16"), module.models.ViT_B_16_Weights
    assert spec.size == 224 and module.wanted_size(entries.IMAGENET1K_SWAG_E2E_V1, spec) == 384
    assert module.wanted_size(entries.IMAGENET1K_V1, spec) is None and module.wanted_size(None, spec) is None


def test_imagenet_says_nothing_of_weights_that_have_not_seen_it() -> None:
    accuracy = module.imagenet_accuracy("resnet18", {"source": "file", "name": "r.pth"})
    assert accuracy == pytest.approx(0.698, abs=0.001)
    for provenance in ({"source": "none"}, {"source": "file", "made_by": "pretrain"}):
        assert module.imagenet_accuracy("resnet18", provenance) is None
    assert module.imagenet_accuracy("smallnet", {"source": "embedded"}) is None


def test_weights_of_no_known_network(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"fc.weight": torch.zeros(3, 4), "conv1.weight": torch.zeros(1, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match="--backbone"):
        backbone_of(path, read_state(path), ("resnet18", "smallnet"))


def test_only_what_is_on_disk_is_ranked_and_the_rest_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = module.models.get_model_weights("resnet18").DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / Path(url).name).write_bytes(b"")
    assert on_disk("resnet18") and not on_disk("resnet34")
    wishes, missing = candidates(Search())
    assert [(w.backbone, w.weights) for w in wishes] == [("smallnet", "embedded"), ("resnet18", "auto")]
    assert "resnet34" in missing and not {"resnet18", "smallnet"} & set(missing)
    wishes, missing = candidates(Search(named=("resnet18", "resnet34")))
    assert ([w.backbone for w in wishes], missing) == (["resnet18"], ["resnet34"])
    wishes, missing = candidates(Search(("auto",), ("resnet34",), download=True))
    assert ([(w.backbone, w.weights) for w in wishes], missing) == ([("resnet34", "auto")], [])
    wishes, missing = candidates(Search(("auto",), download=True))
    assert {w.backbone for w in wishes} == {"resnet18", *module.EDGE} and "resnet152" in missing


def test_wishes_that_cannot_be_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="--download"):
        candidates(Search(("auto",)))
    with pytest.raises(InputError, match="--backbone"):
        candidates(Search(("none",)))
    with pytest.raises(BackboneError, match="resnet18"):
        candidates(Search(named=("resnet81",)))
    with pytest.raises(WeightsError, match="no such weights file"):
        candidates(Search((str(tmp_path / "gone.pth"),)))


@pytest.mark.parametrize("name", ["regnet_x_400mf", "swin_t", "maxvit_t", "densenet121", "vit_b_32", "googlenet"])
def test_a_blank_network_takes_no_memory_and_has_every_weight(name: str) -> None:
    spec = backbones.row(name)
    model = blank(name, 3, spec.size)
    assert all(p.device.type == "meta" for p in model.parameters())
    found = size_of(model, spec.size)
    assert found.params == sum(p.numel() for p in model.parameters()) > 1e6
    assert found.fp32_bytes == 4 * found.params > 3 * found.int8_bytes


@pytest.mark.parametrize(("name", "size"), [("mobilenet_v2", 64), ("squeezenet1_1", 96), ("shufflenet_v2_x0_5", 64)])
def test_macs_are_those_of_the_exported_graph(tmp_path: Path, name: str, size: int) -> None:
    spec = backbones.row(name)
    network = Deployed(backbones.build(name, 5, size), Preprocess(size=size, resize=size)).eval()
    graph: onnx.ModelProto = source_of_network(network, spec, size, tmp_path)
    assert size_of(blank(name, 5, size), size).macs == sum(macs(graph).values())


def test_sizes_of_a_known_network() -> None:
    """torchvision's page on mobilenet_v2: 3,504,872 parameters and 0.30 GFLOPS (multiply-accumulates)."""
    found = size_of(blank("mobilenet_v2", 1000, 224), 224)
    assert found.params == 3_504_872
    assert found.macs == pytest.approx(0.30e9, rel=0.01)
    assert 3.5e6 < found.int8_bytes < 3.9e6  # a byte a weight, a little for scales and biases
