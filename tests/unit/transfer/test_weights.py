import argparse
import io
import os
import pickle
import re
import socket
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch.optim.swa_utils import AveragedModel
from torchvision import models

from edgetl.errors import WeightsError
from edgetl.monitor import Monitor
from edgetl.spec import Fit, Preprocess
from edgetl.transfer import backbones, weights

ROW = backbones.row("smallnet")


class Lines(Monitor):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def _state(classes: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return backbones.build("smallnet", classes, 32).state_dict()


def _apply(path: Path, classes: int, monitor: Monitor) -> tuple[torch.nn.Module, bool]:
    model = backbones.build("smallnet", classes, 32)
    kept = weights.apply(model, ROW, weights.read_state(path), 32, path.name, monitor)
    return model, kept


# The third is torch.compile's, the fourth Lightning's.
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.", "module.backbone."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state", "state_dict_ema"])
def test_a_state_dict_is_found_in_its_wrapping(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    path, state = tmp_path / "w.pth", _state()
    wrapped = OrderedDict((prefix + k, v) for k, v in state.items())
    torch.save({wrapper: wrapped, "epoch": 3} if wrapper else wrapped, path)
    model, kept = _apply(path, 7, Lines())
    assert kept
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_what_torchvisions_own_training_script_saves_is_read(tmp_path: Path) -> None:
    """References/classification/train.py: network, optimiser, options, and an average that counts its updates."""
    model = backbones.build("smallnet", 7, 32)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimiser.step()
    average = AveragedModel(model)
    rest = {"optimizer": optimiser.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.1, model="smallnet")}
    torch.save({"model": model.state_dict(), **rest, "model_ema": average.state_dict()}, tmp_path / "whole.pth")
    torch.save({"model_ema": average.state_dict(), **rest}, tmp_path / "average.pth")
    torch.save(average.state_dict(), tmp_path / "bare.pth")
    for name in ("whole.pth", "average.pth", "bare.pth"):
        loaded, kept = _apply(tmp_path / name, 7, Lines())
        assert kept
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = _state()
    save_file(state, tmp_path / "w.safetensors")
    model, _ = _apply(tmp_path / "w.safetensors", 7, Lines())
    assert torch.equal(model.state_dict()["fc.weight"], state["fc.weight"])


def test_a_classifier_of_another_size_is_left_out_and_said(tmp_path: Path) -> None:
    path, state, said = tmp_path / "w.pth", _state(7), Lines()
    torch.save(state, path)
    model, kept = _apply(path, 3, said)
    assert not kept
    assert said.lines == ["the classifier of w.pth (7 classes) is left out: there are 3 classes here"]
    own = model.state_dict()
    assert own["fc.weight"].shape[0] == 3
    assert all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith("fc."))


def test_weights_without_a_classifier_are_taken(tmp_path: Path) -> None:
    state = {k: v for k, v in _state().items() if not k.startswith("fc.")}
    torch.save(state, tmp_path / "w.pth")
    assert not _apply(tmp_path / "w.pth", 3, Lines())[1]


def test_a_classifier_of_several_layers_is_left_out_and_said(tmp_path: Path) -> None:
    state, said = {k: v for k, v in _state().items() if not k.startswith("fc.")}, Lines()
    head = torch.nn.Sequential(torch.nn.Linear(192, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    torch.save({**state, **{f"fc.{k}": v for k, v in head.state_dict().items()}}, tmp_path / "w.pth")
    model, kept = _apply(tmp_path / "w.pth", 3, said)
    assert not kept and said.lines == ["the classifier of w.pth is left out: there are 3 classes here"]
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_named(tmp_path: Path, value: float) -> None:
    state = _state()
    state["stages.0.0.bn1.running_var"][3] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not finite numbers.*w\.pth: stages\.0\.0\.bn1\.running_var"):
        _apply(tmp_path / "w.pth", 7, Lines())


def test_weights_in_codes_are_no_weights(tmp_path: Path) -> None:
    state = _state()
    state["stem.0.weight"] = state["stem.0.weight"].to(torch.int8)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"1 in whole numbers \(stem\.0\.weight\)"):
        _apply(tmp_path / "w.pth", 7, Lines())


def test_half_precision_is_taken(tmp_path: Path) -> None:
    state = _state()
    save_file({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "w.safetensors")
    model, kept = _apply(tmp_path / "w.safetensors", 7, Lines())
    assert kept and all(v.dtype == state[k].dtype for k, v in model.state_dict().items())


def test_what_does_not_fit_is_listed_with_counts(tmp_path: Path) -> None:
    state = _state()
    del state["stem.0.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["stem.1.weight"] = torch.zeros(5)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        _apply(tmp_path / "w.pth", 3, Lines())
    line = str(caught.value)
    for part in (
        "1 missing (stem.0.weight)",
        "1 unexpected (extra.weight)",
        "1 of another shape (stem.1.weight [5], not [32])",
    ):
        assert part in line


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"do not fit smallnet.*missing.*, \.\.\."):
        _apply(tmp_path / "w.pth", 3, Lines())


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, writer: str) -> None:
    path, ran = tmp_path / "evil.pth", tmp_path / "ran"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(_Evil(ran)))
    else:
        torch.save({"state_dict": _Evil(ran)}, path)
    with pytest.raises(WeightsError, match="nothing in it was run"):
        weights.read_state(path)
    assert not ran.exists()


def test_an_object_beside_the_tensors_is_named_and_nothing_smuggles_code(tmp_path: Path) -> None:
    torch.save({"state_dict": _state(), "best": np.float64(0.5)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"nothing in it was run.*a numpy[\w.]*\.scalar\)"):
        weights.read_state(tmp_path / "w.pth")
    torch.save({"state_dict": _state(), "args": argparse.Namespace(lr=_Evil(tmp_path / "ran"))}, tmp_path / "e.pth")
    with pytest.raises(WeightsError, match="nothing in it was run"):
        weights.read_state(tmp_path / "e.pth")
    assert not (tmp_path / "ran").exists()


def _file(kind: str) -> bytes:
    state = {"conv.weight": torch.ones(2, 3, 3, 3), "fc.bias": torch.zeros(4)}
    if kind == "safetensors":
        return save(state)
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(["zip", "legacy", "safetensors"]), st.data())
def test_a_damaged_file_is_one_error_or_a_state_dict(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    whole = bytearray(_file(kind))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.mktemp("damaged") / ("w.safetensors" if kind == "safetensors" else "w.pth")
    path.write_bytes(whole[:cut] if data.draw(st.booleans()) else whole)
    try:
        assert all(isinstance(v, torch.Tensor) for v in weights.read_state(path).values())
    except WeightsError as error:
        assert str(path) in error.value and error.do


def test_a_graph_and_a_photo_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x07\x12\x07pytorch:")
    with pytest.raises(WeightsError, match=r"m\.onnx \(an ONNX graph\); `edgetl adopt`"):
        weights.read_state(tmp_path / "m.onnx")
    (tmp_path / "p.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    with pytest.raises(WeightsError, match=r"p\.png \(no state dict of PyTorch\)"):
        weights.read_state(tmp_path / "p.png")


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="are a folder"):
        weights.read_state(tmp_path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut short", b"\x80\x02}q\x00."])
def test_a_file_that_holds_no_state_dict_is_one_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError):
        weights.read_state(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        weights.load(str(tmp_path / "nowhere.pth"), ROW)


def test_mnasnet_without_layer_versions_loads(tmp_path: Path) -> None:
    state = backbones.build("mnasnet0_5", 4, 32).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "w.safetensors")
    model = backbones.build("mnasnet0_5", 4, 32)
    spec = backbones.row("mnasnet0_5")
    assert weights.apply(model, spec, weights.read_state(tmp_path / "w.safetensors"), 32, "w")
    weights.load_exactly(model, dict(state))


def test_densenets_published_names_are_understood() -> None:
    model, spec = backbones.build("densenet121", 4, 32), backbones.row("densenet121")
    state = model.state_dict()
    old = {}
    for key, value in state.items():
        if not key.endswith("num_batches_tracked"):
            old[re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key)] = value
    assert set(old) - set(state)
    assert weights.apply(backbones.build("densenet121", 4, 32), spec, old, 32, "old")


def test_auxiliary_heads_in_the_weights_are_not_missed() -> None:
    full = models.googlenet(aux_logits=True, init_weights=False, num_classes=4)
    model, spec = backbones.build("googlenet", 4, 32), backbones.row("googlenet")
    assert weights.apply(model, spec, full.state_dict(), 32, "full")
    assert torch.equal(model.state_dict()["conv1.conv.weight"], full.state_dict()["conv1.conv.weight"])


def test_position_embeddings_of_a_vit_follow_the_image_size() -> None:
    def tiny(size: int) -> models.VisionTransformer:
        return models.VisionTransformer(size, 32, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=4)

    small, model, spec = tiny(64), tiny(96), backbones.row("vit_b_32")
    assert weights.apply(model, spec, small.state_dict(), 96, "small")
    assert model.state_dict()["encoder.pos_embedding"].shape == (1, 1 + 9, 16)


def test_a_failed_download_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens on port 9
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"could not be downloaded.*--weights FILE"):
        weights.load("auto", backbones.row("squeezenet1_1"))


def _downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place where torchvision's weights of squeezenet1_1 lie once they were downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return weights.published_file(models.SqueezeNet1_1_Weights.DEFAULT)


def test_weights_that_were_downloaded_are_read_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens on port 9
    local = _downloaded(tmp_path, monkeypatch)
    local.parent.mkdir(parents=True)
    state = models.squeezenet1_1().state_dict()
    torch.save(state, local)
    found = weights.load("auto", backbones.row("squeezenet1_1"))
    assert found.state is not None and all(torch.equal(found.state[k], v) for k, v in state.items())
    assert found.provenance["source"] == "torchvision" and len(found.provenance["sha256"]) == 64
    local.write_bytes(local.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"cannot be read.*squeezenet1_1.*delete it"):
        weights.load("auto", backbones.row("squeezenet1_1"))
    local.write_bytes(pickle.dumps(_Evil(tmp_path / "ran")))
    with pytest.raises(WeightsError, match="nothing in it was run"):
        weights.load("auto", backbones.row("squeezenet1_1"))
    assert not (tmp_path / "ran").exists()


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = _downloaded(tmp_path, monkeypatch)
    monkeypatch.setattr(weights, "SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(WeightsError, match="could not be downloaded"):
            weights.load("auto", backbones.row("squeezenet1_1"))
    assert socket.getdefaulttimeout() is None and list(local.parent.iterdir()) == []


def test_preprocessing_is_that_of_the_weights() -> None:
    assert weights.load("none", backbones.row("efficientnet_b0")).preprocess.interpolation == "bicubic"
    assert weights.load("none", backbones.row("resnet18")).preprocess.resize == 256
    assert weights.load("none", backbones.row("resnet50")).preprocess.resize == 232
    assert weights.load("none", backbones.row("inception_v3")).preprocess.mean == (0.5, 0.5, 0.5)


def test_a_published_file_is_known_by_its_hash() -> None:
    entry = models.ResNet50_Weights.IMAGENET1K_V1
    digest = entry.url.rsplit("-", 1)[1].split(".")[0].ljust(64, "0")
    found = weights.published(backbones.row("resnet50"), digest)
    assert found is entry
    assert weights._of_entry(found, backbones.row("resnet50")).resize == 256
    assert weights.published(backbones.row("resnet50"), "0" * 64) is None


def test_image_size_keeps_the_ratio_of_the_resize() -> None:
    base = Preprocess(size=224, resize=256)
    assert weights.preprocess_for(base, 112, Fit.CROP) == Preprocess(size=112, resize=128)
    assert weights.preprocess_for(base, None, Fit.CROP) == base
    assert weights.preprocess_for(base, 112, Fit.LETTERBOX).resize == 112
