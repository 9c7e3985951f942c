"""Auxiliary classifiers (GoogLeNet's and Inception v3's): part of the training, not of what is deployed."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torchvision import models

from edgetl.bundle import Bundle
from edgetl.errors import WeightsError
from edgetl.images import Dataset, ReadOptions, Sample, read_data
from edgetl.monitor import Monitor
from edgetl.spec import Preprocess
from edgetl.transfer import FinetuneOptions, backbones, finetune, recipe, train, weights
from edgetl.transfer.augment import Views
from edgetl.transfer.network import Deployed, deployed
from edgetl.transfer.options import STRATEGIES
from edgetl.transfer.pixels import PixelStore

GOOGLENET = backbones.row("googlenet")
SPEC = Preprocess(size=32, resize=32)


class Said(Monitor):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Killed(BaseException):
    """Stands for a kill between two instructions."""


class KillAt(Monitor):
    def __init__(self, after: int) -> None:
        self.after = after

    def progress(self, what: str, done: int, total: int) -> None:
        self.after -= 1
        if self.after == 0:
            raise Killed


class KillIn(Monitor):
    def __init__(self, what: str) -> None:
        self.what = what

    def progress(self, what: str, done: int, total: int) -> None:
        if what == self.what:
            raise Killed


class Side(nn.Module):
    """An auxiliary classifier with a norm of its own, and dropout: a resumed run must draw the same."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(functional.dropout(self.norm(x).mean((2, 3)), 0.3, self.training))


class Small(nn.Module):
    """Built as torchvision's two are (a tuple in training mode), at a size that trains in a blink."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.aux_logits = True
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.side: Side | None = Side(classes)
        self.last = nn.Conv2d(8, 8, 3, stride=2)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.norm(self.stem(x)).relu()
        logits = self.fc(self.last(x).relu().mean((2, 3)))
        return (logits, self.side(x)) if self.training and self.side is not None else logits


SMALL = backbones.BackboneRow("small", "small", "fc", name="small", auxiliary=("side.fc",), auxiliary_weight=0.5)


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> Dataset:
    return read_data(str(make_folder(n=14, size=32)), ReadOptions())


def _trainer(data: Dataset, work: Path, spec: backbones.BackboneRow = SMALL, **change: Any) -> train.Trainer:
    torch.manual_seed(0)
    store = PixelStore(work, data.root, SPEC)
    store.fill(data.all(), False)
    setting = train.Setting(
        train=data.split("train"),
        val=data.split("val"),
        views=Views(store.image, SPEC, 0, True),
        inputs=store.inputs,
        weights=np.array([0.5, 1.5], np.float32),
        device=torch.device("cpu"),
        amp=None,
        seed=0,
        **change,
    )
    options = FinetuneOptions(strategy="full", epochs=3, batch_size=8)
    return train.Trainer(Deployed(Small(), SPEC), spec, recipe.recipe_for(options, 20), setting, work / "state.pt")


@pytest.mark.parametrize(("name", "size"), [("googlenet", 32), ("inception_v3", 299)])
def test_gradients_of_the_loss_reach_the_auxiliary_heads(name: str, size: int) -> None:
    spec = backbones.row(name)
    network = Deployed(backbones.build(name, 3, size, init=False, auxiliary=True), SPEC)
    recipe.set_mode(network.backbone, spec, open_stages=recipe.STAGES, freeze_statistics=True)
    outputs = network.outputs(torch.rand(2, 3, size, size) * 255)
    assert [tuple(o.shape) for o in outputs] == [(2, 3)] * (1 + len(spec.auxiliary))
    functional.cross_entropy(torch.stack(outputs).sum(0), torch.tensor([0, 2])).backward()
    heads = backbones.auxiliary_heads(network.backbone, spec)
    assert len(heads) == len(spec.auxiliary)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for head in heads for p in head.parameters())


@pytest.mark.parametrize(("name", "least"), [("googlenet", 15), ("inception_v3", 299)])
def test_auxiliary_heads_are_built_from_the_size_on_that_they_take(name: str, least: int) -> None:
    spec = backbones.row(name)
    assert spec.auxiliary_at(least)
    with torch.device("meta"):
        model = backbones.build(name, 2, least, init=False, auxiliary=True).train()
        assert len(model(torch.empty(2, 3, least, least))) == 1 + len(spec.auxiliary)
    if least > spec.min_size:
        with pytest.raises(RuntimeError), torch.device("meta"):
            model(torch.empty(2, 3, least - 1, least - 1))
        with torch.device("meta"):
            small = backbones.build(name, 2, least - 1, init=False, auxiliary=True).train()
            assert small(torch.empty(2, 3, least - 1, least - 1)).shape == (2, 2)


def test_rows_without_auxiliary_heads_build_as_ever() -> None:
    spec = backbones.row("smallnet")
    model = backbones.build("smallnet", 2, 16, auxiliary=True)
    assert not spec.auxiliary_at(16)
    assert backbones.auxiliary_heads(model, spec) == []
    assert backbones.deployed_state(model, spec).keys() == model.state_dict().keys()


def test_out_of_training_there_are_the_main_logits_alone() -> None:
    """And they are those of the same network without its auxiliary heads, which loads the rest strictly."""
    full = backbones.build("googlenet", 3, 32, init=False, auxiliary=True).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        logits = full(images)
        assert isinstance(logits, torch.Tensor)
        bare = backbones.build("googlenet", 3, 32, init=False).eval()
        weights.load_exactly(bare, backbones.deployed_state(full, GOOGLENET))
        assert torch.equal(bare(images), logits)
        backbones.drop_auxiliary(full, GOOGLENET)
        assert full.state_dict().keys() == bare.state_dict().keys()
        assert isinstance(full.train()(images), torch.Tensor)


def test_the_loss_is_the_main_one_and_the_weighted_others(tmp_path: Path, data: Dataset) -> None:
    trainer, targets = _trainer(data, tmp_path), torch.tensor([0, 1, 1, 0])
    outputs = [torch.randn(4, 2) for _ in range(3)]
    batch = [Sample("", int(target), "") for target in targets]

    def expected(logits: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, targets, torch.tensor([0.5, 1.5]), label_smoothing=0.1)

    main, *others = (expected(o) for o in outputs)
    assert torch.equal(trainer._loss(outputs[:1], targets, batch), main)
    torch.testing.assert_close(trainer._loss(outputs, targets, batch), main + 0.5 * (others[0] + others[1]))


def test_auxiliary_heads_learn_as_fast_as_the_head_and_keep_their_norms_running(tmp_path: Path, data: Dataset) -> None:
    trainer = _trainer(data, tmp_path)
    peak = {id(p): g["peak"] for g in trainer.optimizer.param_groups for p in g["params"]}
    backbone = trainer.model.backbone
    for name, parameter in backbone.named_parameters():
        assert (peak[id(parameter)] == trainer.recipe.lr) == name.startswith(("fc.", "side.")), name
    recipe.set_mode(backbone, SMALL, open_stages=recipe.STAGES, freeze_statistics=True)
    assert [m.training for m in recipe.norms(backbone)] == [False, True]
    recipe.set_mode(backbone, SMALL, open_stages=0, freeze_statistics=True)
    assert [m.training for m in recipe.norms(backbone)] == [False, False]
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == {"fc.weight", "fc.bias"}


def test_the_auxiliary_loss_moves_the_body(tmp_path: Path, data: Dataset) -> None:
    ignored = replace(SMALL, auxiliary_weight=0.0)
    runs = [_trainer(data, tmp_path / s.name / str(s.auxiliary_weight), s) for s in (SMALL, ignored)]
    for run in runs:
        run.run()
    stems = [run.model.backbone.get_parameter("stem.weight") for run in runs]
    assert not torch.equal(*stems)


@pytest.mark.parametrize("after", [6, 11])
def test_a_killed_run_resumes_to_the_same_bits_with_its_auxiliary_heads(
    tmp_path: Path, data: Dataset, after: int
) -> None:
    whole = _trainer(data, tmp_path / "whole")
    expected = whole.run()
    with pytest.raises(Killed):
        _trainer(data, tmp_path / "cut", monitor=KillAt(after)).run()
    resumed = _trainer(data, tmp_path / "cut")
    assert 0 < resumed.restore().epoch < 3
    found = resumed.run()
    for old, new in ((whole.model, resumed.model), (whole.average, resumed.average)):
        state = new.state_dict()
        assert any("side." in key for key in state)
        assert all(torch.equal(v, state[k]) for k, v in old.state_dict().items())
    assert [h["train_loss"] for h in found.history] == [h["train_loss"] for h in expected.history]
    assert found.best is not None
    assert not any(key.startswith("side.") for key in found.best)


def _published(classes: int) -> dict[str, torch.Tensor]:
    return models.googlenet(aux_logits=True, init_weights=False, num_classes=classes).state_dict()


def test_pretrained_auxiliary_heads_come_with_their_trunk_and_a_fresh_last_layer() -> None:
    theirs = _published(7)
    model = backbones.build("googlenet", 3, 32, init=False, auxiliary=True)
    before = copy.deepcopy(model.state_dict())
    assert not weights.apply(model, GOOGLENET, theirs, 32, "theirs")
    own, last = model.state_dict(), ("fc.", "aux1.fc2.", "aux2.fc2.")
    assert own["aux1.fc2.weight"].shape == own["aux2.fc2.weight"].shape == (3, 1024)
    for key, value in own.items():
        assert torch.equal(value, before[key] if key.startswith(last) else theirs[key]), key


def test_auxiliary_heads_for_the_same_classes_come_whole() -> None:
    theirs = _published(3)
    model = backbones.build("googlenet", 3, 32, init=False, auxiliary=True)
    assert weights.apply(model, GOOGLENET, theirs, 32, "theirs")
    assert all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items())


def test_weights_saved_for_deployment_leave_the_auxiliary_heads_fresh() -> None:
    theirs = {k: v for k, v in _published(3).items() if not k.startswith("aux")}
    model = backbones.build("googlenet", 3, 32, init=False, auxiliary=True)
    before = model.state_dict()["aux1.fc1.weight"].clone()
    assert weights.apply(model, GOOGLENET, theirs, 32, "theirs")
    assert torch.equal(model.state_dict()["aux1.fc1.weight"], before)


def test_half_an_auxiliary_head_is_an_error() -> None:
    theirs = {k: v for k, v in _published(3).items() if k != "aux2.fc1.weight"}
    model = backbones.build("googlenet", 3, 32, init=False, auxiliary=True)
    with pytest.raises(WeightsError, match=r"1 missing \(aux2\.fc1\.weight\)"):
        weights.apply(model, GOOGLENET, theirs, 32, "theirs")


def test_auxiliary_heads_train_where_the_head_starts_fresh() -> None:
    assert {name for name, plan in STRATEGIES.items() if plan.auxiliary} == {"full", "scratch"}


def _options(strategy: str, weights: str, **change: Any) -> FinetuneOptions:
    base: dict[str, Any] = {"backbone": "googlenet", "image_size": 32, "epochs": 1, "batch_size": 8, "amp": "off"}
    return FinetuneOptions(**{**base, "strategy": strategy, "weights": weights, **change})


@pytest.mark.parametrize("strategy", ["scratch", "full"])
def test_a_bundle_holds_no_auxiliary_heads(tmp_path: Path, data: Dataset, strategy: str) -> None:
    source = tmp_path / "source.pth"
    torch.save(_published(7), source)
    finetune(data, tmp_path / "b", _options(strategy, "none" if strategy == "scratch" else str(source)))
    bundle = Bundle.open(tmp_path / "b")
    state = load_file(bundle.file(bundle.artifact("checkpoint")))
    assert not [key for key in state if key.startswith("aux")]
    with torch.inference_mode():
        logits = deployed(bundle)(torch.zeros(2, 3, 32, 32))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["epoch 2 of 2", "val"])  # in training; after it, where the heads are gone
def test_a_killed_run_resumes_to_the_same_checkpoint(tmp_path: Path, data: Dataset, phase: str) -> None:
    options = _options("scratch", "none", epochs=2)
    finetune(data, tmp_path / "whole", options)
    with pytest.raises(Killed):
        finetune(data, tmp_path / "cut", options, KillIn(phase))
    finetune(data, tmp_path / "cut", replace(options, resume=True))
    whole, cut = (Bundle.open(tmp_path / name).artifact("checkpoint") for name in ("whole", "cut"))
    assert cut["sha256"] == whole["sha256"]


def test_images_too_small_for_the_auxiliary_heads_are_trained_without_and_it_is_said(data: Dataset) -> None:
    from edgetl.transfer.prepare import prepare

    said = Said()
    start = prepare(data, FinetuneOptions(backbone="inception_v3", strategy="scratch", image_size=75), said)
    assert backbones.auxiliary_heads(start.network.backbone, start.spec) == []
    assert said.lines == [
        "trained without the auxiliary heads of inception_v3: they want images of at least 299 px, not 75"
    ]
