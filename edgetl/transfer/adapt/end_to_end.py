"""Adaptation end to end: the method's loss joins the training of the whole network, with target images beside source's.

It starts from the source-only network and keeps the last epoch: accuracy on source images, by which a training is
otherwise stopped, is best before the domains have been brought together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgetl.bundle import read_json
from edgetl.images import Sample
from edgetl.transfer import probe
from edgetl.transfer.adapt.losses import AdaptationLoss, Codes, loss_of
from edgetl.transfer.adapt.methods import METHODS
from edgetl.transfer.augment import Views, stream_seed
from edgetl.transfer.backbones import BackboneRow, head_of
from edgetl.transfer.recipe import recipe_for
from edgetl.transfer.run import Run, State
from edgetl.transfer.step import ExtraLoss, Step, Unlabelled
from edgetl.transfer.train import DTYPES, Setting, Trainer


class Adapting(ExtraLoss):
    """A method's loss of the features (what the head is given) and logits of a step's two halves, times its weight.

    Distances between distributions are no means over images: all processes' rows go into them.
    """

    of_whole_batch = True

    def __init__(self, backbone: nn.Module, spec: BackboneRow, loss: AdaptationLoss, weight: float) -> None:
        super().__init__()
        self.loss = loss
        self.weight = weight
        self._caught: list[torch.Tensor] = []

        def catch(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if torch.is_grad_enabled():
                self._caught[:] = inputs[:1]

        self._hook = head_of(backbone, spec).register_forward_pre_hook(catch)

    def forward(self, step: Step) -> torch.Tensor:
        """The loss of the labelled against the unlabelled images."""
        found = self._caught[0].float()
        features = found.mean((2, 3)) if found.ndim == 4 else found
        source = Codes(step.whole(features[: len(step.targets)]), step.whole(step.outputs[0]))
        others = (features[len(step.samples) :], step.unlabelled_outputs[0])
        target = Codes(*map(step.whole_unlabelled, others))
        return self.weight * torch.as_tensor(self.loss(source, target, step.progress))

    def close(self) -> None:
        """Take the hook off the network."""
        self._hook.remove()


def train(run: Run, method: str, samples: Sequence[Sample]) -> State:
    """Train the run's network on with the method's loss against `samples`; its averaged weights after the last epoch.

    What a killed run left in `run.folder` is taken over. Raises StageError where it diverges.
    """
    start, options, data = run.start, run.options, run.data
    network, spec = start.network, start.spec
    labelled = data.split("train")
    decided = run.group.first(lambda: read_json(run.folder / "decisions.json", "training state"))
    views = Views(run.store.image, start.preprocess, options.seed, decided["flips"])
    head = head_of(network.backbone, spec)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(options.seed, "adapt", method))
        loss = loss_of(method, head.weight.shape[1], len(data.labels))
    extra = Adapting(network.backbone, spec, loss, METHODS[method].weight)
    setting = Setting(
        train=labelled,
        val=data.split("val"),
        views=views,
        inputs=run.store.inputs,
        weights=probe.class_weights(run.targets("train"), len(data.labels)),
        device=start.device,
        amp=DTYPES[decided["amp"]],
        seed=options.seed,
        monitor=run.monitor,
        extras=[extra],
        unlabelled=Unlabelled(samples, views),
        keeps_last=True,
        group=run.group,
    )
    trainer = Trainer(
        network, spec, recipe_for(options, len(labelled), run.plan), setting, run.folder / "adapt-state.pt"
    )
    trainer.restore()

    def on_epoch(line: dict[str, Any]) -> None:
        run.monitor.say(
            f"{method}, epoch {line['epoch']}: loss {line['train_loss']:.3f}, source val {line['val_accuracy']:.3f}"
        )

    progress = trainer.run(on_epoch)
    extra.close()
    assert progress.best is not None
    return progress.best
