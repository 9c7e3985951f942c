"""The training loop: AdamW, cosine, averaged weights, early stopping, and a state that resumes exactly.

All randomness is a function of (seed, epoch, image), and the state is written whole after each epoch, so a
run that was killed at any moment ends in the same bits as one that was not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from edgetl.errors import DiskError, InputError, StageError, disk_errors
from edgetl.images import Sample
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer import backbones
from edgetl.transfer import recipe as recipes
from edgetl.transfer.augment import epoch_order, stream_seed
from edgetl.transfer.backbones import BackboneRow
from edgetl.transfer.features import Floats, Inputs, forward, to_device
from edgetl.transfer.feed import Feed, Portion, in_batches
from edgetl.transfer.network import Deployed
from edgetl.transfer.processes import ALONE, Group
from edgetl.transfer.recipe import Recipe
from edgetl.transfer.step import ExtraLoss, MakesViews, Step, Unlabelled

State = dict[str, torch.Tensor]
Epoch = dict[str, Any]  # one line of the log


@dataclass
class Progress:
    """What a run has come to: written after each epoch, read by --resume."""

    epoch: int = 0
    history: list[Epoch] = field(default_factory=list)
    best: State | None = None  # as it will be deployed: without auxiliary classifiers
    best_epoch: int = 0
    best_score: tuple[float, float] = (-1.0, 0.0)  # accuracy, minus loss on val

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - self.best_epoch


@dataclass(frozen=True)
class Setting:
    """What the loop trains on and with; `weights` are the classes' in the loss."""

    train: Sequence[Sample]
    val: Sequence[Sample]
    views: MakesViews
    inputs: Inputs
    weights: npt.NDArray[np.float32] | None
    device: torch.device
    amp: torch.dtype | None
    seed: int
    monitor: Monitor = SILENT
    extras: Sequence[ExtraLoss] = ()  # added to the cross-entropy
    unlabelled: Unlabelled | None = None  # for the extra losses
    keeps_last: bool = False  # not the epoch that is best on val: every epoch is run, and the last is kept
    group: Group = ALONE


class _Outputs(nn.Module):
    """The network, called for what training wants of it."""

    def __init__(self, network: Deployed) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits, then those of auxiliary classifiers."""
        return self.network.outputs(images)


class Trainer:
    """One training run of `model` (its weights are where it starts from)."""

    def __init__(self, model: Deployed, spec: BackboneRow, recipe: Recipe, setting: Setting, state_file: Path) -> None:
        self.model, self.spec, self.recipe, self.setting = model, spec, recipe, setting
        if recipe.batch < setting.group.size:
            value = f"{recipe.batch} images a step, {setting.group.size} processes"
            raise InputError("every process wants an image of each step", value, "start fewer, or raise --batch-size")
        self.per_epoch = len(in_batches(setting.train, recipe.batch))
        self.steps = self.per_epoch * recipe.epochs
        self.extras = nn.ModuleList(setting.extras).to(setting.device)
        groups = recipes.parameter_groups(model.backbone, spec, recipe)
        if own := [p for p in self.extras.parameters() if p.requires_grad]:
            groups.append({"params": own, "lr": recipe.lr, "peak": recipe.lr, "weight_decay": recipe.weight_decay})
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.average = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.scaler = torch.amp.GradScaler(setting.device.type, enabled=setting.amp is torch.float16)
        self.progress = Progress()
        self._file = state_file
        self._feed = Feed(setting.views, setting.unlabelled, setting.seed, recipe.batch, setting.group)
        self._forward: nn.Module = _Outputs(model)
        self._trainable: list[int] = []
        weights = setting.weights
        self._weights = None if weights is None else torch.from_numpy(weights).to(setting.device)

    def run(self, on_epoch: Callable[[Epoch], None] = lambda _: None) -> Progress:
        """Train to the end. Raises StageError where the loss diverges."""
        while self.progress.epoch < self.recipe.epochs and self.progress.stale < self.recipe.patience:
            line = self._epoch(self.progress.epoch + 1)
            self.progress.history.append(line)
            self.progress.epoch += 1
            score = (line["val_accuracy"], -line["val_loss"])
            if self.setting.keeps_last or score > self.progress.best_score:
                best = backbones.deployed_state(self._averaged.backbone, self.spec)
                self.progress.best = {k: v.detach().clone() for k, v in best.items()}
                self.progress.best_epoch = self.progress.epoch
                self.progress.best_score = score
            self._save()
            on_epoch(line)
        return self.progress

    def _epoch(self, number: int) -> Epoch:
        recipe, setting, group = self.recipe, self.setting, self.setting.group
        _reseed(stream_seed(setting.seed, "dropout", number))
        recipes.set_mode(self.model.backbone, self.spec, recipe.open_stages(number), recipe.freeze_statistics)
        self._wrap()
        order = epoch_order(setting.train, setting.seed, number)
        batches = in_batches(order, recipe.batch)
        started, total = time.perf_counter(), 0.0
        first = (number - 1) * self.per_epoch
        with closing(self._feed.epoch(batches, number, first)) as portions:
            for index, portion in enumerate(portions):
                total += self._step(portion, number, first + index) * len(portion.batch)
                setting.monitor.progress(f"epoch {number} of {recipe.epochs}", index + 1, self.per_epoch)
        total = sum(group.gathered(total)) / group.size
        seconds = time.perf_counter() - started
        if not np.isfinite(total):
            raise StageError("the training diverged: its loss is not a number", f"epoch {number}", "use a lower --lr")
        accuracy, loss = self._validate()
        return {
            "epoch": number,
            "train_loss": total / len(order),
            "val_accuracy": accuracy,
            "val_loss": loss,
            "lr": max(g["lr"] for g in self.optimizer.param_groups),
            "seconds": seconds,
            "images_per_second": len(order) / seconds,
        }

    def _wrap(self) -> None:
        """(Re)connect the processes: what is summed over them are the gradients of what trains now."""
        trainable = [id(p) for p in self.model.parameters() if p.requires_grad]
        if trainable != self._trainable:
            self._forward = self.setting.group.wrapped(_Outputs(self.model))
            self._trainable = trainable
        self.extras.train()

    def _validate(self) -> tuple[float, float]:
        setting = self.setting
        what = (setting.inputs, setting.device, "validate", setting.monitor)
        logits = forward(self._averaged, setting.val, *what, group=setting.group)
        return judge(logits, np.array([s.target for s in setting.val]))

    @property
    def _averaged(self) -> Deployed:
        network = self.average.module
        assert isinstance(network, Deployed)
        return network

    def _step(self, portion: Portion, epoch: int, number: int) -> float:
        """One step; returns this process's part of the batch's loss, scaled so that the parts' mean is the loss."""
        recipe, group = self.recipe, self.setting.group
        factor = recipes.schedule(number, self.steps, recipe.warm_up)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = parameters["peak"] * factor
        with group.whole_batch(*portion.rows()):
            loss = self._losses(portion, epoch, number)
        self.optimizer.zero_grad(set_to_none=True)
        group.backward(self.scaler.scale(loss))
        group.average_gradients(self.extras.parameters())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.model)
        return float(loss.detach())

    def _losses(self, portion: Portion, epoch: int, number: int) -> torch.Tensor:
        """Cross-entropy and extra losses of a portion; the processes' mean is the loss of the whole batch."""
        setting, device = self.setting, self.setting.device
        images, extra = to_device(portion.pixels, device), portion.unlabelled
        unlabelled = None if extra is None else to_device(extra, device)
        with torch.autocast(device.type, dtype=setting.amp, enabled=setting.amp is not None):
            both = self._forward(images if unlabelled is None else torch.cat([images, unlabelled]))
        # An image that does not count has its row, for the graph's sake, and weighs nothing.
        count, passed = len(portion.samples) if portion.counts else 0, len(portion.samples)
        outputs = tuple(o[:count].float() for o in both)
        targets = torch.tensor([s.target for s in portion.samples[:count]], dtype=torch.int64, device=device)
        loss = self._loss(outputs, targets, portion.batch) * setting.group.size
        if self.extras:
            labelled = (portion.samples, images, targets, outputs)
            others = (unlabelled, tuple(o[passed:].float() for o in both), portion.unlabelled_samples)
            places = portion.places(setting.group)
            seen = Step(self.model, *labelled, *others, epoch, number, number / self.steps, *places)
            loss = sum(self._extra_losses(seen, portion), start=loss)
        return loss

    def _extra_losses(self, seen: Step, portion: Portion) -> Iterator[torch.Tensor]:
        share = len(seen.targets) * self.setting.group.size / len(portion.batch)
        for loss_of in self.setting.extras:
            if loss_of.of_whole_batch:
                yield loss_of(seen)
            elif share:
                yield share * loss_of(seen)

    def _loss(self, outputs: Sequence[torch.Tensor], targets: torch.Tensor, batch: Sequence[Sample]) -> torch.Tensor:
        """Cross-entropy summed over `targets` and divided by the weight of the whole `batch`.

        That of auxiliary classifiers comes in with the weight of their row.
        """
        weights = self._weights
        mass = len(batch) if weights is None else weights[[s.target for s in batch]].sum()
        main, *auxiliary = (
            functional.cross_entropy(
                logits, targets, weight=weights, reduction="sum", label_smoothing=self.recipe.smoothing
            )
            / mass
            for logits in outputs
        )
        return sum((self.spec.auxiliary_weight * loss for loss in auxiliary), start=main)

    def _average(self, averaged: Any, current: Any, count: Any) -> None:
        """AveragedModel's hook: one call for the tensors of one dtype; whole numbers (batch counts) are copied."""
        with torch.no_grad():
            if averaged[0].is_floating_point():
                torch._foreach_lerp_(averaged, current, 1 - recipes.ema_decay(int(count), self.steps))
            else:
                for old, new in zip(averaged, current, strict=True):
                    old.copy_(new)

    def _save(self) -> None:
        if self.setting.group.rank:
            return  # all processes hold the same
        state = {
            "progress": vars(self.progress),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "extras": self.extras.state_dict(),
        }
        temporary = self._file.with_suffix(".tmp")
        with disk_errors(self._file):
            try:
                # By name: torch writes to an open file from a destructor too, where Ctrl-C has closed it meanwhile, and
                # an error in a destructor ends the process.
                torch.save(state, temporary)
                with temporary.open("rb+") as stream:
                    os.fsync(stream.fileno())
            except RuntimeError as error:
                # torch ends the archive on the way out and raises anew, over the Ctrl-C that came.
                if isinstance(error.__context__, OSError | KeyboardInterrupt):
                    raise error.__context__ from None
                do = "free some space, then run the same command with --resume"
                raise DiskError("the training state could not be written", f"{self._file} ({error})", do) from error
            temporary.replace(self._file)

    def restore(self) -> Progress:
        """Take over the state file where there is one; what has been done so far."""
        if not self._file.is_file():
            return self.progress
        state = torch.load(self._file, map_location=self.setting.device, weights_only=True)
        self.progress = Progress(**state["progress"])
        self.progress.best_score = (self.progress.best_score[0], self.progress.best_score[1])
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.extras.load_state_dict(state["extras"])
        self.setting.monitor.say(f"resumed after epoch {self.progress.epoch} of {self.recipe.epochs}")
        return self.progress


def judge(logits: Floats, targets: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of logits (N, C)."""
    loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets))
    return float((logits.argmax(1) == targets).mean()), float(loss)


def training_dtype(asked: str, kind: str, capability: tuple[int, int] = (0, 0), tiles: bool = False) -> str:
    """ "off", "bf16" or "fp16": for "auto" what such hardware multiplies faster than fp32.

    `kind` is "cpu" or "cuda", `capability` a GPU's compute capability, `tiles` whether a CPU has AMX's. A GPU has
    tensor cores for fp16 from 7.0 on and for bf16 from 8.0 on; without tiles bf16 is no faster on a CPU
    (docs/log.md). Nothing is timed: on a busy machine chance would decide what is learnt.
    """
    if asked != "auto":
        return asked
    if kind == "cuda":
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "off"
    return "bf16" if tiles else "off"


def dtype_here(asked: str, device: torch.device) -> str:
    """`training_dtype` of this machine's `device`."""
    if device.type == "cuda":
        return training_dtype(asked, "cuda", torch.cuda.get_device_capability(device))
    return training_dtype(asked, "cpu", tiles=torch.cpu._is_amx_tile_supported())


DTYPES: dict[str, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def _reseed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
