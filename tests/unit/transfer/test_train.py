import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetl.errors import StageError
from edgetl.images import Dataset, ReadOptions, read_data
from edgetl.monitor import Monitor
from edgetl.spec import Preprocess
from edgetl.transfer import backbones, train
from edgetl.transfer.augment import Views
from edgetl.transfer.network import Deployed
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.recipe import Recipe, recipe_for

SPEC = Preprocess(size=16, resize=16)
ROW = backbones.row("smallnet")


class Killed(BaseException):
    """Stands for a kill between two instructions."""


@pytest.fixture
def data(make_folder: Callable[..., Path]) -> Dataset:
    return read_data(str(make_folder(n=14, size=20)), ReadOptions())


def _trainer(data: Dataset, work: Path, recipe: Recipe, **change: Any) -> train.Trainer:
    torch.manual_seed(0)
    network = Deployed(backbones.build("smallnet", 2, 16), SPEC).to(memory_format=torch.channels_last)
    store = PixelStore(work, data.root, SPEC)
    store.fill(data.all(), False)
    setting = train.Setting(
        train=data.split("train"),
        val=data.split("val"),
        views=Views(store.image, SPEC, 0, True),
        inputs=store.inputs,
        weights=change.pop("weights", None),
        device=torch.device("cpu"),
        amp=change.pop("amp", None),
        seed=0,
        **change,
    )
    return train.Trainer(network, ROW, recipe, setting, work / "state.pt")


def _recipe(**change: Any) -> Recipe:
    return recipe_for(FinetuneOptions(**{"weights": "none", "epochs": 3, "batch_size": 8, **change}), 20)


def test_training_learns_and_logs(tmp_path: Path, data: Dataset) -> None:
    lines: list[dict[str, Any]] = []
    progress = _trainer(data, tmp_path, _recipe(epochs=6)).run(lines.append)
    assert lines == progress.history
    assert progress.history[-1]["train_loss"] < progress.history[0]["train_loss"]
    assert progress.best is not None
    assert progress.best_score[0] == max(line["val_accuracy"] for line in lines)


class KillAt(Monitor):
    """Ends the process (as far as the loop can tell) at the n-th sign of life."""

    def __init__(self, after: int) -> None:
        self.after = after

    def progress(self, what: str, done: int, total: int) -> None:
        self.after -= 1
        if self.after == 0:
            raise Killed


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, data: Dataset, after: int) -> None:
    whole = _trainer(data, tmp_path / "whole", _recipe())
    whole.restore()
    expected = whole.run()
    with pytest.raises(Killed):
        _trainer(data, tmp_path / "cut", _recipe(), monitor=KillAt(after)).run()
    resumed = _trainer(data, tmp_path / "cut", _recipe())
    done = resumed.restore().epoch
    assert done < 3
    found = resumed.run()
    assert found.best_epoch == expected.best_epoch
    for old, new in ((whole.model, resumed.model), (whole.average, resumed.average)):
        assert all(torch.equal(v, new.state_dict()[k]) for k, v in old.state_dict().items())
    assert [h["train_loss"] for h in found.history] == [h["train_loss"] for h in expected.history]


def test_a_finished_run_does_nothing_more(tmp_path: Path, data: Dataset) -> None:
    _trainer(data, tmp_path, _recipe()).run()
    again = _trainer(data, tmp_path, _recipe(), monitor=KillAt(1))
    again.restore()
    assert len(again.run().history) == 3


def test_training_stops_when_val_no_longer_improves(tmp_path: Path, data: Dataset) -> None:
    recipe = _recipe(epochs=30, lr=1e-9)  # nothing can change
    progress = _trainer(data, tmp_path, Recipe(**{**vars(recipe), "patience": 2, "warm_up": 1.0})).run()
    assert progress.epoch < 30
    assert progress.stale == 2


def test_a_diverged_run_says_so(tmp_path: Path, data: Dataset) -> None:
    trainer = _trainer(data, tmp_path, _recipe())
    with torch.no_grad():
        trainer.model.backbone.get_submodule("fc").weight.fill_(float("inf"))
    with pytest.raises(StageError, match=r"diverged.*--lr"):
        trainer.run()


def test_the_body_stays_while_the_head_trains_alone(tmp_path: Path, data: Dataset) -> None:
    trainer = _trainer(data, tmp_path, _recipe(epochs=2, head_epochs=2))
    before = {k: v.clone() for k, v in trainer.model.backbone.state_dict().items()}
    trainer.run()
    after = trainer.model.backbone.state_dict()
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert moved == {"fc.weight", "fc.bias"}


def test_rare_classes_weigh_in_the_loss(tmp_path: Path, data: Dataset) -> None:
    even = _trainer(data, tmp_path / "a", _recipe(epochs=1)).run().history[0]["train_loss"]
    skewed = np.array([0.1, 1.9], np.float32)
    assert _trainer(data, tmp_path / "b", _recipe(epochs=1), weights=skewed).run().history[0]["train_loss"] != even


def test_bf16_training_works(tmp_path: Path, data: Dataset) -> None:
    trainer = _trainer(data, tmp_path, _recipe(epochs=1), amp=torch.bfloat16)
    assert np.isfinite(trainer.run().history[0]["train_loss"])
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("kind", "capability", "tiles", "expected"),
    [
        ("cpu", (0, 0), False, "off"),
        ("cpu", (0, 0), True, "bf16"),
        ("cuda", (6, 1), False, "off"),  # Pascal
        ("cuda", (7, 5), False, "fp16"),  # Turing
        ("cuda", (8, 0), False, "bf16"),  # Ampere
        ("cuda", (12, 0), False, "bf16"),
    ],
)
def test_the_precision_of_the_training_follows_from_the_hardware_alone(
    kind: str, capability: tuple[int, int], tiles: bool, expected: str
) -> None:
    assert train.training_dtype("auto", kind, capability, tiles) == expected
    assert {train.training_dtype(asked, kind, capability, tiles) for asked in ("off", "bf16")} == {"off", "bf16"}


def test_judge_is_accuracy_and_cross_entropy() -> None:
    logits = np.array([[5, 0], [0, 5], [5, 0]], np.float32)
    accuracy, loss = train.judge(logits, np.array([0, 1, 1]))
    assert accuracy == pytest.approx(2 / 3)
    assert loss == pytest.approx((2 * np.log1p(np.exp(-5)) + np.log1p(np.exp(5))) / 3, abs=1e-5)


def test_ctrl_c_where_torch_closes_the_state_file_does_not_end_the_process(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fork: torch's archive, left open, is ended by its destructor, and an error there is std::terminate."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for writer in ("_open_zipfile_writer_file", "_open_zipfile_writer_buffer"):
        monkeypatch.setattr(getattr(torch.serialization, writer), "__exit__", interrupt)
    trainer = _trainer(data, tmp_path, _recipe())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            trainer._save()
        except KeyboardInterrupt:
            code = 130
        os._exit(code)  # the error is gone by now, and the archive with it
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert not (tmp_path / "state.pt").exists()
