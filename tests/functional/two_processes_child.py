"""What each process does in test_two_processes: train, evaluate, and say which images it took. Not a test itself.

python two_processes_child.py DATA WORK OUT BACKBONE   (OUT.json and OUT.npz are the first process's)
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgetl.images import ReadOptions, Sample, read_data
from edgetl.spec import Preprocess
from edgetl.transfer import backbones, features, train
from edgetl.transfer.augment import Views
from edgetl.transfer.network import Deployed
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.processes import Group, joined
from edgetl.transfer.recipe import recipe_for
from edgetl.transfer.step import ExtraLoss, Step, Unlabelled

SIZE = 32
SPEC = Preprocess(size=SIZE, resize=SIZE)
EPOCHS, BATCH = 2, 10


class Pull(ExtraLoss):
    """A loss over labelled and unlabelled images with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, step: Step) -> torch.Tensor:
        """Mean squares: what a mean over parts of the batch adds up to."""
        return (step.outputs[0].mean(1) - self.level).square().mean()


class Noting:
    """Views that note which image was looked at in which epoch."""

    def __init__(self, views: Views) -> None:
        self.views, self.seen = views, []  # type: ignore[var-annotated]

    def __call__(self, samples: Any, epoch: int) -> np.ndarray:
        """The views."""
        self.seen += [(epoch, s.digest) for s in samples]
        return self.views(samples, epoch)


def main(group: Group, data: str, work: str, out: str, backbone: str) -> None:
    """Train for two epochs from the same start, whatever the number of processes."""
    found = read_data(data, ReadOptions())
    torch.manual_seed(0)
    network = Deployed(backbones.build(backbone, len(found.labels), SIZE), SPEC).to(memory_format=torch.channels_last)
    store = PixelStore(Path(work), found.root, SPEC, process=group.rank, processes=group.size)
    noting = Noting(Views(store.image, SPEC, 0, True))
    options = FinetuneOptions(weights="none", epochs=EPOCHS, batch_size=BATCH)
    pull = Pull()
    setting = train.Setting(
        train=found.split("train"),
        val=found.split("val"),
        views=noting,  # type: ignore[arg-type]  # a callable like it
        inputs=store.inputs,
        weights=np.linspace(0.5, 1.5, len(found.labels)).astype(np.float32),
        device=torch.device("cpu"),
        amp=None,
        seed=0,
        extras=[pull],
        unlabelled=Unlabelled(found.split("test"), Views(store.image, SPEC, 0, True)),
        group=group,
    )
    recipe = replace(recipe_for(options, 20), freeze_statistics=True)
    trainer = train.Trainer(network, backbones.row(backbone), recipe, setting, Path(work) / f"state-{group.rank}.pt")
    before = features.cached(
        Path(work) / "f32", network, found.all(), store.inputs, setting.device, setting.monitor, group
    )
    before = np.array(before)
    history = trainer.run().history
    logits = features.forward(network, found.all(), store.inputs, setting.device, "", batch=7, group=group)
    seen: list[list[tuple[int, str]]] = group.gathered(noting.seen)
    if group.rank == 0:
        lines = [{k: h[k] for k in ("train_loss", "val_loss", "val_accuracy")} for h in history]
        Path(out + ".json").write_text(
            json.dumps({"seen": seen, "history": lines, "train": _digests(found.split("train"))})
        )
        np.savez(out + ".npz", logits=logits, before=before, level=pull.level.detach().numpy())
    store.close()


def _digests(samples: Any) -> list[str]:
    return [s.digest for s in samples if isinstance(s, Sample)]


if __name__ == "__main__":
    with joined("cpu") as all_of_us:
        main(all_of_us, *sys.argv[1:])
