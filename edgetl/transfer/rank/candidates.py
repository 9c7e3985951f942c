"""Which pretrained networks are ranked: files, the embedded one, and torchvision's rows whose weights are on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torchvision import models

from edgetl import embedded
from edgetl.bundle import sha256_file
from edgetl.errors import BackboneError, InputError, WeightsError
from edgetl.spec import Fit
from edgetl.transfer import backbones, weights
from edgetl.transfer.pretrained import Wish
from edgetl.transfer.rank.cost import blank
from edgetl.transfer.weights_file import card_of

WORDS = ("auto", "embedded", "none")
# What --download fetches where no --backbone is named: classifiers of up to 12 M parameters, one or two a family.
EDGE = (
    "efficientnet_b0",
    "mnasnet1_0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
)


@dataclass(frozen=True)
class Search:
    """`weights`: auto, embedded, none or files; `named`: the backbones to look at (empty: any)."""

    weights: tuple[str, ...] = ("embedded", "auto")
    named: tuple[str, ...] = ()
    arguments: str = ""
    image_size: int | None = None
    fit: Fit = Fit.CROP
    device: str = "auto"
    seed: int = 0
    download: bool = False

    def wish(self, backbone: str, choice: str) -> Wish:
        """A network of this search."""
        return Wish(backbone, choice, self.image_size, self.fit, self.device, self.seed, self.arguments)


def candidates(search: Search) -> tuple[list[Wish], list[str]]:
    """(networks to rank, torchvision rows that a download would add).

    Raises BackboneError, WeightsError, InputError.
    """
    for name in search.named:
        backbones.row(name)
    found: list[Wish] = []
    for choice in dict.fromkeys(search.weights):
        if choice == "embedded":
            found += [search.wish(embedded.NAME, choice)] if search.named in ((), (embedded.NAME,)) else []
        elif choice == "none":
            if not search.named:
                do = "name the networks with --backbone"
                raise InputError("random weights are those of any network", "--weights none", do)
            found += [search.wish(name, choice) for name in search.named]
        elif choice != "auto":
            found.append(_of_file(search, choice))
    rows = [name for name in search.named or backbones.names() if name not in backbones.OWN]
    there = [name for name in rows if on_disk(name)]
    if "auto" in search.weights:
        fetched = [n for n in rows if n not in there and n in (search.named or EDGE)] if search.download else []
        found += [search.wish(name, "auto") for name in rows if name in there or name in fetched]
        there += fetched
    if not found:
        do = "give --weights FILE, or --download to fetch torchvision's"
        raise InputError("no pretrained weights to rank are on this disk", ", ".join(search.named) or "none", do)
    return found, [name for name in rows if name not in there]


def _of_file(search: Search, choice: str) -> Wish:
    """A file's network: by its card, where `edgetl pretrain` made it, else by its weights."""
    path = Path(choice)
    card = card_of(path)
    if card is None:
        spec = backbones.row(backbone_of(path, weights.read_state(path), search.named))
        own = wanted_size(weights.published(spec, sha256_file(path)), spec)
        return replace(search.wish(spec.name, choice), image_size=search.image_size or own)
    if search.named and card.backbone not in search.named:
        said = "--backbone " + ", ".join(search.named)
        raise BackboneError(f"{path.name} are weights of {card.backbone}", said, "leave --backbone out")
    size = search.image_size or card.preprocess.size
    arguments = search.arguments or ",".join(f"{name}={value!r}" for name, value in card.arguments.items())
    return replace(search.wish(card.backbone, choice), image_size=size, arguments=arguments)


def wanted_size(entry: Any, spec: backbones.BackboneRow) -> int | None:
    """The crop in px of torchvision's weights `entry`, where it is another than that of the backbone's default ones."""
    size = int(entry.transforms().crop_size[0]) if entry else spec.size
    return size if size != spec.size else None


def imagenet_accuracy(name: str, provenance: Mapping[str, Any]) -> float | None:
    """Top-1 of the architecture on ImageNet, 0..1, as published with torchvision's default weights.

    None where there is none, and for weights that are random or were made from scratch on images of one's own
    (`edgetl pretrain`): such an accuracy says nothing of them.
    """
    if name in backbones.OWN or provenance["source"] == "none" or provenance.get("made_by"):
        return None
    return float(models.get_model_weights(name).DEFAULT.meta["_metrics"]["ImageNet-1K"]["acc@1"]) / 100


def on_disk(name: str) -> bool:
    """Whether torchvision's default weights of a backbone were downloaded before."""
    return weights.published_file(models.get_model_weights(name).DEFAULT).is_file()


def backbone_of(path: Path, state: weights.State, named: Sequence[str]) -> str:
    """The network whose weights these are: by the names and shapes of all but the head.

    Of `named` where there are any: one alone is taken at its word (loading will tell). Raises WeightsError.
    """
    if len(named) == 1:
        return named[0]
    given = weights.modern_names(state)
    known = named or backbones.names()
    # A file with a classifier has it where few networks have theirs.
    plausible = [name for name in known if backbones.row(name).head + ".weight" in given] or known
    for name in sorted(plausible, key=lambda name: (name not in path.name, -len(name), name)):
        spec = backbones.row(name)
        if _shapes(given, spec) == _shapes(_blank_state(name), spec):
            return name
    do = "name it with --backbone (and --backbone-args); other libraries' networks come as ONNX, with `edgetl adopt`"
    raise WeightsError("no backbone that is known has these weights", path, do)


@cache
def _blank_state(name: str) -> weights.State:
    return blank(name, 2, backbones.row(name).size).state_dict()


def _shapes(state: weights.State, spec: backbones.BackboneRow) -> dict[str, tuple[int, ...]]:
    """What tells networks apart: not the head, nor auxiliary classifiers, nor what depends on the image size."""
    left_out = (spec.head + ".", *spec.auxiliary_prefixes)
    return {
        key: () if key == "encoder.pos_embedding" else tuple(value.shape)
        for key, value in state.items()
        if not key.startswith(left_out) and not key.endswith("num_batches_tracked")
    }
