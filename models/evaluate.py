"""What the embedded backbone's features are worth on handwriting, beside no pretraining at all.

    python -m models.evaluate

A logistic regression on ten labelled scans a class of load_digits, tested on all others, over several draws;
on raw pixels, on the features of SmallNet with random weights, and on those of the embedded backbone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from edgetl.embedded import card, preprocess, weights_path
from edgetl.images import fitted, resized
from edgetl.transfer.small import SmallNet, smallnet

DRAWS = 10
PER_CLASS = 10
C = 0.1  # of the logistic regression, for all alike


def pixels() -> npt.NDArray[np.float32]:
    """float32 (1797, 3, 32, 32): the scans as the network is given them, normalised."""
    spec = preprocess()
    scans = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    images = [fitted(resized(Image.fromarray(scan).convert("RGB"), spec), spec) for scan in scans]
    stacked = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    normalised = (stacked - np.array(spec.mean, np.float32)) / np.array(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


@torch.no_grad()
def features(net: SmallNet, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """float64 (N, F): what the classifier of `net` would see."""
    body = nn.Sequential(net.stem, net.stages, net.avgpool, nn.Flatten()).eval()
    return np.concatenate([body(torch.from_numpy(part)).numpy() for part in np.array_split(images, 10)]).astype(float)


def probe_accuracy(found: npt.NDArray[np.float64], draw: int) -> float:
    """Share of right answers on the scans that were not drawn for training."""
    targets = load_digits().target
    rng = np.random.default_rng(draw)
    train = np.concatenate([rng.permutation(np.flatnonzero(targets == c))[:PER_CLASS] for c in range(10)])
    test = np.setdiff1d(np.arange(len(targets)), train)
    scaler = StandardScaler().fit(found[train])
    model = LogisticRegression(C=C, max_iter=1000).fit(scaler.transform(found[train]), targets[train])
    return float(model.score(scaler.transform(found[test]), targets[test]))


def main() -> None:
    """Print one line a kind of features: mean, lowest and highest accuracy over the draws."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = pixels()
    pretrained = smallnet(int(card()["num_classes"]))
    pretrained.load_state_dict(load_file(weights_path()))
    kinds = {
        "raw 8 x 8 pixels": load_digits().data,
        "SmallNet, random weights": features(smallnet(), images),
        "SmallNet, embedded weights": features(pretrained, images),
    }
    for name, found in kinds.items():
        scores = [probe_accuracy(found, draw) for draw in range(DRAWS)]
        print(f"{name:<28} mean {np.mean(scores):.3f}  lowest {min(scores):.3f}  highest {max(scores):.3f}")


if __name__ == "__main__":
    main()
