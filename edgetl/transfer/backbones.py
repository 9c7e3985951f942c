"""Every backbone, as rows of one table: how it is built, where its head is, which sizes and profiles it takes.

A row speaks for a family of torchvision's classification builders; `row("resnet50")` fills in the builder
and the default size. Nothing else in the project knows one architecture from another.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from torchvision import models

from edgetl.errors import BackboneError
from edgetl.spec import Profile
from edgetl.transfer.resized import builder_of
from edgetl.transfer.small import plaincnn, smallnet

ALL = frozenset(Profile)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class BackboneRow:
    """What the line must know of a backbone. Sizes are in pixels of a square image.

    `head` is the path of the last layer; its input is the feature. `then` is a layer after the head that must
    go (SqueezeNet's ReLU on logits), so that logits are linear in the mean feature.

    `auxiliary` are the paths of the last layers of the auxiliary classifiers: they join the loss in training,
    each with `auxiliary_weight`, and a deployed network does not have them.

    `last_map` is the path of the module whose output is the last one with a place for each part of the image, "-1"
    standing for a module's last child. It is laid out as `map_layout` says: "nchw", "nhwc", or "tokens": (B, 1 + H*W,
    C), the first of them not of the image. What comes after that module mixes the places. `map_corner`: all strides
    are of odd kernels with symmetric padding, so a place looks at the upper left pixel of its cell, not at the middle.
    """

    family: str
    pattern: str  # of builder names, whole
    head: str
    kind: str = "linear"  # of the head: "linear", or "conv" (1x1)
    then: str = ""
    last_map: str = "features"
    map_layout: str = "nchw"
    map_corner: bool = False
    min_size: int = 1
    multiple: int = 1  # sizes must be a multiple of this
    size_argument: str = ""  # builder keyword that fixes the size ("" = the network takes any)
    size_is_pair: bool = False
    mean: Triple = IMAGENET_MEAN  # what torchvision's weights expect with the kwargs below
    std: Triple = IMAGENET_STD
    kwargs: tuple[tuple[str, Any], ...] = ()
    auxiliary: tuple[str, ...] = ()
    auxiliary_weight: float = 0.0
    auxiliary_min_size: int = 1  # of the images, for the auxiliary classifiers alone
    min_opset: int = 13
    torchscript_multiple: int = 1  # TorchScript exports only sizes that are a multiple of this; else dynamo
    profiles: frozenset[Profile] = ALL
    # Filled in by `row`:
    name: str = ""
    size: int = 224
    builder: Callable[..., nn.Module] = field(default=smallnet, compare=False, repr=False)

    @property
    def auxiliary_prefixes(self) -> tuple[str, ...]:
        """What the names of the auxiliary classifiers' weights begin with."""
        return tuple(path.partition(".")[0] + "." for path in self.auxiliary)

    def auxiliary_at(self, size: int) -> bool:
        """Whether there are auxiliary classifiers, and they take images of `size` px."""
        return bool(self.auxiliary) and size >= self.auxiliary_min_size

    @property
    def exporter(self) -> str:
        """The ONNX exporter for the default size; `exporter_at` for another."""
        return self.exporter_at(self.size)

    def exporter_at(self, size: int) -> str:
        """ "torchscript" (any opset from min_opset), or "dynamo" where that cannot (opset 18 and up only)."""
        return "torchscript" if size % self.torchscript_multiple == 0 else "dynamo"

    def profiles_at(self, size: int) -> frozenset[Profile]:
        """The graph profiles this backbone can make at `size`: trt8 needs an opset below 18."""
        return self.profiles - {Profile.TRT8} if self.exporter_at(size) == "dynamo" else self.profiles

    def check_size(self, size: int) -> None:
        """Raise BackboneError where the network cannot take images of `size` pixels."""
        least = max(self.min_size, self.multiple)
        if size < least or size % self.multiple:
            step = "" if self.multiple == 1 else f" and a multiple of {self.multiple}"
            raise BackboneError(
                f"{self.name} cannot take images of this size",
                f"{size} px",
                f"--image-size must be at least {least}{step}",
            )


# googlenet and inception_v3: torchvision's own weights come with transform_input=True, which turns ImageNet's
# normalisation into (0.5, 0.5) inside the network. We leave it out and normalise by 0.5 at once: same numbers.
# Their auxiliary classifiers are there for training: `build` adds them on request. Their weights in the loss are
# 0.3 (Szegedy et al. 2015, section 5) and, for v3, that of torchvision's reference training (0.4). v3's one ends in
# a 5x5 convolution without padding on a map that is large enough from 299 px on.
_INIT = (("init_weights", False),)  # seconds of random numbers; `build` turns it on where they are wanted
_AUX = (("aux_logits", False), ("transform_input", False), *_INIT)


def _vit(family: str, pattern: str, patch: int) -> BackboneRow:
    # After the last attention the head looks at the class token alone, so the last map is what that attention is given.
    last = "encoder.layers.-1.ln_1"
    return BackboneRow(
        family,
        pattern,
        "heads.head",
        last_map=last,
        map_layout="tokens",
        multiple=patch,
        size_argument="image_size",
        min_opset=14,
    )


FAMILIES: tuple[BackboneRow, ...] = (
    BackboneRow("smallnet", r"smallnet", "fc", last_map="stages", map_corner=True, min_size=8),
    BackboneRow("plaincnn", r"plaincnn", "fc", multiple=16),
    BackboneRow("resnet", r"(wide_)?resnet\d+(_2)?|resnext\d+_\d+x\d+d", "fc", last_map="layer4", map_corner=True),
    BackboneRow("mobilenet_v2", r"mobilenet_v2", "classifier.1", map_corner=True),
    BackboneRow("mobilenet_v3", r"mobilenet_v3_\w+", "classifier.3", map_corner=True),
    BackboneRow("efficientnet", r"efficientnet_\w+", "classifier.1", map_corner=True),
    BackboneRow("convnext", r"convnext_\w+", "classifier.2", min_size=32),
    BackboneRow("regnet", r"regnet_\w+", "fc", last_map="trunk_output", map_corner=True),
    BackboneRow("shufflenet_v2", r"shufflenet_v2_\w+", "fc", last_map="conv5", map_corner=True),
    BackboneRow("squeezenet", r"squeezenet\w+", "classifier.1", kind="conv", then="classifier.2", min_size=21),
    BackboneRow("densenet", r"densenet\d+", "classifier", min_size=29),
    BackboneRow("mnasnet", r"mnasnet\w+", "classifier.1", last_map="layers", map_corner=True),
    BackboneRow("vgg", r"vgg\d+(_bn)?", "classifier.6", min_size=32, torchscript_multiple=224, kwargs=_INIT),
    BackboneRow("alexnet", r"alexnet", "classifier.6", min_size=63, torchscript_multiple=224),
    BackboneRow(
        "inception",
        r"inception_v3",
        "fc",
        last_map="Mixed_7c",
        min_size=75,
        mean=HALF,
        std=HALF,
        kwargs=_AUX,
        auxiliary=("AuxLogits.fc",),
        auxiliary_weight=0.4,
        auxiliary_min_size=299,
    ),
    BackboneRow(
        "googlenet",
        r"googlenet",
        "fc",
        last_map="inception5b",
        min_size=15,
        mean=HALF,
        std=HALF,
        kwargs=_AUX,
        auxiliary=("aux1.fc2", "aux2.fc2"),
        auxiliary_weight=0.3,
    ),
    _vit("vit16", r"vit_\w_16", 16),
    _vit("vit32", r"vit_\w_32", 32),
    _vit("vit14", r"vit_\w_14", 14),
    BackboneRow("swin", r"swin_\w+", "head", last_map="norm", map_layout="nhwc", min_size=32),
    BackboneRow(
        "maxvit",
        r"maxvit_t",
        "classifier.5",
        last_map="blocks.-1",
        multiple=224,
        size_argument="input_size",
        size_is_pair=True,
    ),
)


# Networks that torchvision does not have; no weights are published for them.
OWN: dict[str, Callable[..., nn.Module]] = {"plaincnn": plaincnn, "smallnet": smallnet}


@cache
def names() -> tuple[str, ...]:
    """Every backbone name that `row` knows, sorted."""
    found = [n for n in models.list_models(module=models) if any(re.fullmatch(f.pattern, n) for f in FAMILIES)]
    return tuple(sorted([*found, *OWN]))


@cache
def row(name: str) -> BackboneRow:
    """The row of a backbone. Raises BackboneError with the nearest name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.4)
        raise BackboneError(
            "unknown backbone", name, f"did you mean {near[0]}?" if near else "use a torchvision classification model"
        )
    family = next(f for f in FAMILIES if re.fullmatch(f.pattern, name))
    if name in OWN:
        return replace(family, name=name, size=32, builder=OWN[name])
    default = models.get_model_weights(name).DEFAULT.transforms()
    return replace(family, name=name, size=int(default.crop_size[0]), builder=builder_of(name))


def parse_arguments(text: str) -> dict[str, Any]:
    """`"width_mult=0.5,dropout=0.1"` as keywords; values are Python literals. Raises BackboneError."""
    out: dict[str, Any] = {}
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError("not keywords")
        for keyword in call.keywords:
            if keyword.arg is None:
                raise ValueError("not keywords")
            out[keyword.arg] = ast.literal_eval(keyword.value)
    except (SyntaxError, ValueError) as error:
        raise BackboneError("--backbone-args cannot be read", text, "write name=value,name=value") from error
    return out


def build(
    name: str,
    classes: int,
    size: int,
    arguments: dict[str, Any] | None = None,
    init: bool = True,
    auxiliary: bool = False,
) -> nn.Module:
    """A network with `classes` logits for `size` px images, randomly initialised; heads are fresh.

    `init=False` skips slow initialisers where weights will be loaded anyway. `auxiliary=True` adds the auxiliary
    classifiers where there are any at this size: in training mode the network then returns a tuple, its logits
    first. Raises BackboneError.
    """
    spec = row(name)
    spec.check_size(size)
    kwargs: dict[str, Any] = dict(spec.kwargs)
    if "init_weights" in kwargs:
        kwargs["init_weights"] = init
    if spec.auxiliary_at(size):
        kwargs["aux_logits"] = auxiliary
    if spec.size_argument:
        kwargs[spec.size_argument] = (size, size) if spec.size_is_pair else size
    reserved = {*kwargs, "num_classes", "weights", "progress"} & set(arguments or {})
    if reserved:
        raise BackboneError("--backbone-args may not set this", ", ".join(sorted(reserved)), "leave it out")
    try:
        model = spec.builder(**kwargs, **(arguments or {}))
    except (TypeError, ValueError, RuntimeError, AttributeError, AssertionError) as error:
        # What torchvision raises depends on which argument is wrong.
        what, do = f"{name} cannot be built with these arguments", "correct --backbone-args"
        raise BackboneError(what, f"{arguments} ({error})", do) from error
    replace_head(model, spec, classes)
    return model


def replace_head(model: nn.Module, spec: BackboneRow, classes: int) -> None:
    """Put a fresh head with `classes` outputs and a bias in place (the probe needs one; MaxViT has none)."""
    there = [path for path, head in zip(spec.auxiliary, _auxiliary(model, spec), strict=True) if head is not None]
    for path in (spec.head, *there):
        old = model.get_submodule(path)
        if not isinstance(old, nn.Conv2d | nn.Linear):
            do = "another torchvision may have moved it; install the pinned one"
            raise BackboneError("the head is not where the table says", f"{path} of {spec.name}", do)
        model.set_submodule(path, _fresh(old, classes))
    if spec.then:
        model.set_submodule(spec.then, nn.Identity())
    if hasattr(model, "num_classes"):
        setattr(model, "num_classes", classes)  # noqa: B010  # torch types every attribute as a Module


def _fresh(old: nn.Conv2d | nn.Linear, classes: int) -> nn.Module:
    fresh: nn.Conv2d | nn.Linear
    if isinstance(old, nn.Conv2d):
        fresh = nn.Conv2d(old.in_channels, classes, 1)
        nn.init.normal_(fresh.weight, std=0.01)
    else:
        fresh = nn.Linear(old.in_features, classes)
        nn.init.trunc_normal_(fresh.weight, std=0.02)
    assert fresh.bias is not None
    nn.init.zeros_(fresh.bias)
    return fresh


def _auxiliary(model: nn.Module, spec: BackboneRow) -> list[nn.Module | None]:
    return [getattr(model, prefix[:-1]) for prefix in spec.auxiliary_prefixes]


def last_map_of(model: nn.Module, spec: BackboneRow) -> nn.Module:
    """The module that `spec.last_map` names."""
    found = model
    for name in spec.last_map.split("."):
        found = list(found.children())[-1] if name == "-1" else found.get_submodule(name)
    return found


def auxiliary_heads(model: nn.Module, spec: BackboneRow) -> list[nn.Module]:
    """The auxiliary classifiers that this model was built with."""
    return [head for head in _auxiliary(model, spec) if head is not None]


def drop_auxiliary(model: nn.Module, spec: BackboneRow) -> None:
    """Take the auxiliary classifiers out, where there are any: what is deployed does without them."""
    if spec.auxiliary:
        setattr(model, "aux_logits", False)  # noqa: B010  # torch types every attribute as a Module
    for prefix in spec.auxiliary_prefixes:
        setattr(model, prefix[:-1], None)


def deployed_state(model: nn.Module, spec: BackboneRow) -> dict[str, torch.Tensor]:
    """The state dict of `model` (not a copy) as it is after `drop_auxiliary`."""
    return {key: value for key, value in model.state_dict().items() if not key.startswith(spec.auxiliary_prefixes)}


def head_of(model: nn.Module, spec: BackboneRow) -> nn.Linear | nn.Conv2d:
    """The last layer: Linear (C, D) or Conv2d (C, D, 1, 1), always with a bias."""
    head = model.get_submodule(spec.head)
    assert isinstance(head, (nn.Linear, nn.Conv2d))
    return head


@contextmanager
def headless(model: nn.Module, spec: BackboneRow) -> Iterator[nn.Module]:
    """Within the block `model` returns features, float32 (B, D): its head is an Identity."""
    head = head_of(model, spec)
    model.set_submodule(spec.head, nn.Identity())
    try:
        yield model
    finally:
        model.set_submodule(spec.head, head)


def set_head(model: nn.Module, spec: BackboneRow, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Write weight (C, D) and bias (C,) into the head."""
    head = head_of(model, spec)
    with torch.no_grad():
        head.weight.copy_(weight.reshape(head.weight.shape))
        assert head.bias is not None
        head.bias.copy_(bias)
