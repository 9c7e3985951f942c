"""The recipe of the transfer-learning tutorials, written plainly with torch and torchvision.

    python -m benchmarks.tutorial DATA --backbone mobilenet_v2 --weights FILE --size 128

DATA holds train/<class>/ and val/<class>/ (with --test also test/<class>/). Freeze the backbone and train the head
for 10 epochs, unfreeze and train everything for 10 more; SGD at 1e-3 with momentum 0.9, batches of 32, random crop
and flip. The last line on stdout is JSON: seconds since training began and validation accuracy, an entry an epoch.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from edgetl import embedded
from edgetl.transfer.small import smallnet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Loader = DataLoader[tuple[torch.Tensor, torch.Tensor]]


def network(backbone: str, weights: str, classes: int) -> tuple[nn.Module, nn.Module]:
    """The pretrained network with a fresh head of `classes` outputs, and that head."""
    if backbone == "smallnet":
        path = embedded.weights_path()
        small = smallnet(int(embedded.card()["num_classes"]))
        small.load_state_dict(load_file(path))
        small.fc = nn.Linear(small.fc.in_features, classes)
        return small, small.fc
    net: Any = torchvision.models.get_model(backbone)
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    net.classifier[-1] = nn.Linear(net.classifier[-1].in_features, classes)
    return net, net.classifier[-1]


def loaders(data: Path, size: int, small: bool, batch: int, workers: int) -> tuple[Loader, Loader]:
    """Batches of train (shuffled, augmented) and val; digits are not flipped, for a mirrored 2 is no 2."""
    normalise = transforms.Normalize(*(HALF if small else IMAGENET))
    flip = [] if small else [transforms.RandomHorizontalFlip()]
    train = transforms.Compose([transforms.RandomResizedCrop(size), *flip, transforms.ToTensor(), normalise])
    resize = size if small else round(size * 256 / 224)
    val = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor(), normalise])
    return (
        DataLoader(ImageFolder(str(data / "train"), train), batch, shuffle=True, num_workers=workers),
        DataLoader(ImageFolder(str(data / "val"), val), batch, num_workers=workers),
    )


def held_out(data: Path, val: Loader, workers: int) -> Loader:
    """Batches of test, prepared as val is."""
    transform = val.dataset.transform  # type: ignore[attr-defined]  # an ImageFolder
    return DataLoader(ImageFolder(str(data / "test"), transform), val.batch_size, num_workers=workers)


def train_epoch(net: nn.Module, batches: Loader, optimiser: torch.optim.Optimizer) -> None:
    """One pass over train."""
    net.train()
    for images, targets in batches:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(net(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimiser.step()


@torch.no_grad()
def accuracy(net: nn.Module, batches: Loader) -> float:
    """Share of right answers."""
    net.eval()
    hits = [(net(images).argmax(1) == targets).float() for images, targets in batches]
    return float(torch.cat(hits).mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="freeze, 10 epochs of head, unfreeze, 10 more")
    parser.add_argument("data", type=Path)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=10, help="of each of the two phases")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", action="store_true", help="test accuracy too, of the epochs that are best on val")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    train, val = loaders(options.data, options.size, options.backbone == "smallnet", 32, options.workers)
    started = time.perf_counter()
    net, head = network(options.backbone, options.weights, len(val.dataset.classes))  # type: ignore[attr-defined]
    epochs: list[dict[str, Any]] = []
    for phase in ("head", "all"):
        for parameter in net.parameters():
            parameter.requires_grad = phase == "all"
        for parameter in head.parameters():
            parameter.requires_grad = True
        optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
        for _ in range(options.epochs):
            train_epoch(net, train, optimiser)
            reached = accuracy(net, val)
            epochs.append({"phase": phase, "val_accuracy": reached, "seconds": time.perf_counter() - started})
            if options.test and all(reached > earlier["val_accuracy"] for earlier in epochs[:-1]):
                epochs[-1]["test_accuracy"] = accuracy(net, held_out(options.data, val, options.workers))
    print(json.dumps(epochs))


if __name__ == "__main__":
    main()
