from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetl.images import Dataset, ReadOptions, Sample, read_data
from edgetl.monitor import Monitor
from edgetl.spec import Preprocess
from edgetl.transfer import backbones, train
from edgetl.transfer.augment import Views
from edgetl.transfer.network import Deployed
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.recipe import recipe_for
from edgetl.transfer.step import ExtraLoss, Step, Unlabelled

SPEC = Preprocess(size=16, resize=16)


class Watch(ExtraLoss):
    """Keeps what it saw, and has a parameter of its own: a scalar that is pulled to the mean logit."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(5.0))
        self.seen: list[Step] = []

    def forward(self, step: Step) -> torch.Tensor:
        self.seen.append(step)
        return (self.level - step.outputs[0].mean()).square()


class KillAt(Monitor):
    def __init__(self, after: int) -> None:
        self.after = after

    def progress(self, what: str, done: int, total: int) -> None:
        self.after -= 1
        if self.after == 0:
            raise KeyboardInterrupt


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> Dataset:
    return read_data(str(make_folder(n=14, size=20)), ReadOptions())


def _trainer(data: Dataset, work: Path, **change: Any) -> train.Trainer:
    torch.manual_seed(0)
    network = Deployed(backbones.build("smallnet", 2, 16), SPEC).to(memory_format=torch.channels_last)
    store = PixelStore(work, data.root, SPEC)
    store.fill(data.all(), False)
    views = Views(store.image, SPEC, 0, True)
    unlabelled = Unlabelled(data.split("test"), views) if change.pop("target", False) else None
    setting = train.Setting(
        train=data.split("train"),
        val=data.split("val"),
        views=views,
        inputs=store.inputs,
        weights=None,
        device=torch.device("cpu"),
        amp=None,
        seed=0,
        unlabelled=unlabelled,
        **change,
    )
    recipe = recipe_for(FinetuneOptions(weights="none", epochs=2, batch_size=8), 20)
    return train.Trainer(network, backbones.row("smallnet"), recipe, setting, work / "state.pt")


def test_an_extra_loss_sees_each_step_and_its_own_parameters_train(tmp_path: Path, data: Dataset) -> None:
    watch = Watch()
    trainer = _trainer(data, tmp_path, extras=[watch], target=True)
    trainer.run()
    assert [s.number for s in watch.seen] == list(range(trainer.steps))
    assert [s.progress for s in watch.seen] == [n / trainer.steps for n in range(trainer.steps)]
    for step in watch.seen:
        assert step.unlabelled is not None
        assert len(step.images) == len(step.targets) == len(step.outputs[0]) == len(step.samples)
        assert len(step.unlabelled) == len(step.unlabelled_outputs[0]) == len(step.unlabelled_samples) == 8
    assert float(watch.level.detach()) != 5


def test_without_unlabelled_images_an_extra_loss_gets_none(tmp_path: Path, data: Dataset) -> None:
    watch = Watch()
    _trainer(data, tmp_path, extras=[watch]).run()
    assert all(s.unlabelled is None and len(s.unlabelled_outputs[0]) == 0 for s in watch.seen)


def test_an_extra_loss_that_is_zero_changes_nothing(tmp_path: Path, data: Dataset) -> None:
    class Zero(ExtraLoss):
        def forward(self, step: Step) -> torch.Tensor:
            return 0 * step.outputs[0].sum()

    plain, zero = _trainer(data, tmp_path / "a"), _trainer(data, tmp_path / "b", extras=[Zero()])
    plain.run()
    zero.run()
    assert all(torch.equal(v, zero.model.state_dict()[k]) for k, v in plain.model.state_dict().items())


@pytest.mark.parametrize("after", [2, 6])
def test_a_killed_run_with_extra_losses_resumes_to_the_same_bits(tmp_path: Path, data: Dataset, after: int) -> None:
    whole = _trainer(data, tmp_path / "whole", extras=[Watch()], target=True)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        _trainer(data, tmp_path / "cut", extras=[Watch()], target=True, monitor=KillAt(after)).run()
    resumed = _trainer(data, tmp_path / "cut", extras=[Watch()], target=True)
    resumed.restore()
    resumed.run()
    for old, new in ((whole.model, resumed.model), (whole.extras, resumed.extras)):
        assert all(torch.equal(v, new.state_dict()[k]) for k, v in old.state_dict().items())


def test_every_unlabelled_image_passes_once_a_lap_and_any_step_can_be_started_from() -> None:
    samples = [Sample(f"{i}.png", -1, f"{i:064x}") for i in range(7)]

    target = Unlabelled(samples, lambda chunk, epoch: np.zeros(len(chunk), np.uint8))
    stream = target.batches(3, 0, 5)
    drawn = [next(stream) for _ in range(14)]
    assert all(len(batch) == 5 for batch in drawn)
    flat = [pair for batch in drawn for pair in batch]
    for lap in range(10):
        mine = flat[lap * 7 : (lap + 1) * 7]
        assert {number for _, number in mine} == {lap + 1}
        assert sorted(s.path for s, _ in mine) == sorted(s.path for s in samples)
    for number in (1, 6, 13):
        assert next(target.batches(3, number, 5)) == drawn[number]
