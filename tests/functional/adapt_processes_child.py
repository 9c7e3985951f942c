"""What each process does in test_adapt_processes.py: train a network with every adaptation loss. Not a test itself.

python adapt_processes_child.py SOURCE TARGET WORK OUT   (OUT.json and OUT.npz are the first process's)
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edgetl.images import ReadOptions, read_data
from edgetl.spec import Preprocess
from edgetl.transfer import backbones, features, keep, train
from edgetl.transfer.adapt.end_to_end import Adapting
from edgetl.transfer.adapt.losses import loss_of
from edgetl.transfer.adapt.methods import METHODS
from edgetl.transfer.augment import Views
from edgetl.transfer.network import Deployed
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.processes import Group, joined
from edgetl.transfer.recipe import recipe_for
from edgetl.transfer.step import ExtraLoss, Unlabelled

SIZE, EPOCHS, BATCH = 32, 1, 12
SPEC = Preprocess(size=SIZE, resize=SIZE)
BSS = "bss"  # --keep's penalty that is no mean over images either


def extra_of(name: str, network: Deployed) -> ExtraLoss:
    """The loss of a method of --adapt, or BSS."""
    row = backbones.row("smallnet")
    if name == BSS:
        return keep.Bss(network.backbone, row)
    head = backbones.head_of(network.backbone, row)
    # Ten times its weight: with so few steps the cross-entropy would drown it.
    return Adapting(network.backbone, row, loss_of(name, head.weight.shape[1], len(head.weight), 64), 10.0)


def main(group: Group, source: str, target: str, work: str, out: str) -> None:
    """An epoch from the same start for every loss, whatever the number of processes."""
    ours, theirs = (read_data(folder, ReadOptions(val_fraction=0.2, test_fraction=0)) for folder in (source, target))
    stores = [
        PixelStore(Path(work) / name, data.root, SPEC, process=group.rank, processes=group.size)
        for name, data in (("source", ours), ("target", theirs))
    ]
    views = [Views(store.image, SPEC, 0, False) for store in stores]
    logits, losses = {}, {}
    for name in ("none", *(m.name for m in METHODS.values() if m.trains), BSS):
        torch.manual_seed(0)
        network = Deployed(backbones.build("smallnet", len(ours.labels), SIZE), SPEC)
        network = network.to(memory_format=torch.channels_last)
        extras = [] if name == "none" else [extra_of(name, network)]
        setting = train.Setting(
            train=ours.split("train"),
            val=ours.split("val"),
            views=views[0],
            inputs=stores[0].inputs,
            weights=None,
            device=torch.device("cpu"),
            amp=None,
            seed=0,
            extras=extras,
            unlabelled=Unlabelled(theirs.all(), views[1]),
            keeps_last=True,
            group=group,
        )
        # BatchNorm is tested elsewhere; in training it enlarges rounding, which AdamW then enlarges.
        recipe = recipe_for(FinetuneOptions(weights="none", epochs=EPOCHS, batch_size=BATCH), 20)
        recipe = replace(recipe, patience=99, freeze_statistics=True)
        state = Path(work) / f"{name}-{group.rank}.pt"
        history = train.Trainer(network, backbones.row("smallnet"), recipe, setting, state).run().history
        losses[name] = [line["train_loss"] for line in history]
        logits[name] = features.forward(network, theirs.all(), stores[1].inputs, setting.device, "", group=group)
    if group.rank == 0:
        np.savez(out + ".npz", **logits)
        Path(out + ".json").write_text(json.dumps({"losses": losses, "train": len(ours.split("train"))}))
    for store in stores:
        store.close()


if __name__ == "__main__":
    with joined("cpu") as all_of_us:
        main(all_of_us, *sys.argv[1:])
