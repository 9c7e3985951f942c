"""Pretrained weights: where they come from, the preprocessing they expect, and whether they fit.

`--weights auto` (torchvision's default, downloaded), `none`, `embedded`, or a file: .pth (tensors only, never
code) or .safetensors, wrapped or not, with a classifier of any size.
"""

from __future__ import annotations

import argparse
import pickle
import re
import socket
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from edgetl import embedded
from edgetl.bundle import sha256_file
from edgetl.errors import BackboneError, WeightsError
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Fit, Preprocess
from edgetl.transfer import backbones
from edgetl.transfer.backbones import BackboneRow
from edgetl.transfer.options import DEFAULT_BACKBONE
from edgetl.transfer.weights_file import UNREADABLE, card_of

# Where a training's file keeps the network; an average of its weights (EMA) is taken where there is nothing else.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "network", "net", "weights"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema"),
)
# What wraps a network in another module puts before its names; no backbone has a part of such a name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.", "backbone.")
_COUNTER = "n_averaged"  # torch's AveragedModel keeps it beside the network
# Of what such files hold beside tensors: plain attributes, no code. torchvision's own training script saves one.
_HARMLESS = (argparse.Namespace,)
# densenet's published files name "denselayer1.norm.1.weight" what the network calls "denselayer1.norm1.weight".
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)$")
_SHOWN = 3
SILENCE_S = 30.0  # of a download that stands still

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """A state dict (None: random initialisation), what it expects of its input, and where it is from."""

    state: State | None
    preprocess: Preprocess
    provenance: dict[str, Any]


def load(choice: str, spec: BackboneRow) -> Weights:
    """The weights that `--weights` names for this backbone. Raises WeightsError."""
    if choice == "none":
        return Weights(None, _default_preprocess(spec), {"source": "none", "sha256": ""})
    if choice == "embedded" or (choice == "auto" and spec.name == embedded.NAME):
        return _embedded()
    if choice == "auto":
        return _download(spec)
    path = Path(choice)
    state, digest = read_state(path), sha256_file(path)
    if card := card_of(path):
        made = {"source": "file", "name": path.name, "sha256": digest, "made_by": "pretrain"}
        return Weights(state, card.preprocess, made)
    entry = published(spec, digest)
    provenance = {"source": "file", "name": entry.name if entry else path.name, "sha256": digest}
    return Weights(state, _of_entry(entry, spec) if entry else _default_preprocess(spec), provenance)


def network_of(choice: str, backbone: str | None, arguments: str) -> tuple[BackboneRow, dict[str, Any]]:
    """The row and the builder's arguments that --weights, --backbone and --backbone-args name together.

    Weights that know what they are (the embedded ones, a file of `edgetl pretrain`) decide; without them it is the
    named backbone. Raises BackboneError where an option says otherwise.
    """
    given = backbones.parse_arguments(arguments)
    if choice == "embedded":
        known: tuple[str, dict[str, Any]] = (embedded.NAME, {})
    elif choice in ("auto", "none") or (card := card_of(Path(choice))) is None:
        return backbones.row(backbone or DEFAULT_BACKBONE), given
    else:
        known = (card.backbone, card.arguments)
    name = "the embedded weights" if choice == "embedded" else Path(choice).name
    if backbone not in (None, known[0]):
        raise BackboneError(f"{name} are weights of {known[0]}", f"--backbone {backbone}", "leave --backbone out")
    if arguments and given != known[1]:
        raise BackboneError(
            f"{name} are weights of a network with other arguments",
            f"--backbone-args {arguments}, and theirs are {known[1] or 'none'}",
            "leave --backbone-args out",
        )
    return backbones.row(known[0]), known[1]


def preprocess_for(base: Preprocess, image_size: int | None, fit: Fit) -> Preprocess:
    """`base` for another crop and fit: the resize keeps the ratio that the weights were made with."""
    size = image_size or base.size
    resize = size if fit is not Fit.CROP else max(size, round(size * base.resize / base.size))
    return replace(base, size=size, resize=resize, fit=fit)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .pth or .safetensors file, unwrapped.

    A pickle is read by torch's tensors-only reader: nothing in it can run. Raises WeightsError.
    """
    if path.is_dir():
        raise WeightsError("the weights are a folder", path, "name the file of weights in it")
    if not path.is_file():
        raise WeightsError("no such weights file", path, "--weights wants auto, none, embedded or a file")
    try:
        found = _read(path)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        graph = path.suffix.lower() == ".onnx"
        raise WeightsError(
            "the weights file holds more than tensors, or is none (nothing in it was run)",
            f"{path} ({f'a {named[1]}' if named else 'an ONNX graph' if graph else 'no state dict of PyTorch'})",
            "`edgetl adopt` takes a graph" if graph else "save `model.state_dict()` instead",
        ) from error
    except UNREADABLE as error:
        do = "save or download it again, as a state dict (.pth or .safetensors)"
        first = str(error).partition(". ")[0][:120]
        raise WeightsError("the weights file cannot be read", f"{path} ({first})", do) from error
    return _unwrapped(found, path)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    with warnings.catch_warnings(), torch.serialization.safe_globals(list(_HARMLESS)):
        warnings.simplefilter("ignore", UserWarning)  # on pickle protocols; what cannot be read raises
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(found: Any, path: Path) -> dict[str, torch.Tensor]:
    for _ in range(len(_WRAPPERS)):
        inner = next((found[k] for k in _WRAPPERS if isinstance(found, Mapping) and _is_state(found.get(k))), None)
        if inner is None:
            break
        found = inner
    if not _is_state(found):
        raise WeightsError("the file holds no state dict", path, "save `model.state_dict()`")
    metadata = getattr(found, "_metadata", None)
    out = OrderedDict((str(k), v) for k, v in found.items() if isinstance(v, torch.Tensor))
    if out.pop(_COUNTER, None) is not None:
        metadata = None
    while prefix := next((p for p in _PREFIXES if out and all(k.startswith(p) for k in out)), ""):
        out = OrderedDict((k[len(prefix) :], v) for k, v in out.items())
        metadata = None  # its keys carry the prefix too
    if metadata is not None:
        out._metadata = metadata  # type: ignore[attr-defined]  # torch keeps the layers' versions here
    return out


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and (
        any(isinstance(v, torch.Tensor) for v in value.values()) or any(_is_state(value.get(k)) for k in _WRAPPERS)
    )


def apply(model: nn.Module, spec: BackboneRow, state: State, size: int, origin: str, monitor: Monitor = SILENT) -> bool:
    """Load `state` into `model`; returns whether its classifier came along.

    A classifier for another number of classes, or of several layers, is left out (and said), and so are auxiliary ones
    that `model` was built without. Raises WeightsError that lists what else did not fit.
    """
    own = model.state_dict()
    given = modern_names(state)
    fresh = _fit_auxiliary(given, own, spec)
    weight, bias = spec.head + ".weight", spec.head + ".bias"
    has_head = weight in given and given[weight].shape == own[weight].shape
    if not has_head and (theirs := [k for k in given if k.startswith(spec.head + ".")]):
        classes = given[weight].shape[:1] if weight in given else ()
        of = f"({classes[0]} classes) " if classes else ""
        monitor.say(f"the classifier of {origin} {of}is left out: there are {len(own[weight])} classes here")
        for key in theirs:
            del given[key]
    if spec.size_argument == "image_size" and "encoder.pos_embedding" in given:
        given = _resized_positions(given, size, spec.multiple)
    _check(model, spec, given, own, {weight, bias} | fresh, origin, getattr(state, "_metadata", None))
    return has_head


def modern_names(state: State) -> OrderedDict[str, torch.Tensor]:
    """`state` with the names that torchvision's networks have today (published densenet files have older ones)."""
    return OrderedDict((_OLD_DENSENET.sub(r"\1\2", k), v) for k, v in state.items())


def _fit_auxiliary(given: OrderedDict[str, torch.Tensor], own: State, spec: BackboneRow) -> set[str]:
    """Take from `given` what the network's auxiliary classifiers cannot use; returns the keys that stay fresh.

    Theirs go where the network has none, and their last layers where those are for other classes. They need
    not be there: what was saved for deployment has none.
    """
    fresh: set[str] = set()
    for path, prefix in zip(spec.auxiliary, spec.auxiliary_prefixes, strict=True):
        theirs, ours = ({k for k in state if k.startswith(prefix)} for state in (given, own))
        last = {path + ".weight", path + ".bias"}
        same = all(k in given and k in own and given[k].shape == own[k].shape for k in last)
        gone = (set() if same else last) if ours else theirs
        for key in gone:
            given.pop(key, None)
        fresh |= gone & ours if theirs else ours
    return fresh


def _check(
    model: nn.Module,
    spec: BackboneRow,
    given: OrderedDict[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    fresh: set[str],
    origin: str,
    metadata: Any,
) -> None:
    """Load what fits by shape; raise WeightsError where anything but `fresh` is missing, left over or differs."""
    wrong = [
        f"{k} {list(v.shape)}, not {list(own[k].shape)}"
        for k, v in given.items()
        if k in own and v.shape != own[k].shape
    ]
    coded = [k for k, v in given.items() if k in own and own[k].is_floating_point() and not v.is_floating_point()]
    fitting = OrderedDict(
        (k, v) for k, v in given.items() if k not in own or (v.shape == own[k].shape and k not in coded)
    )
    if broken := [k for k, v in fitting.items() if v.is_floating_point() and not v.float().isfinite().all()]:
        value = f"{origin}: {', '.join(broken[:_SHOWN])}"
        raise WeightsError("the weights hold values that are not finite numbers", value, "save or download them again")
    # torchvision's networks read the versions of their layers here; a file without them is taken to be current.
    fitting._metadata = metadata or getattr(own, "_metadata", {})  # type: ignore[attr-defined]
    result = model.load_state_dict(fitting, strict=False)
    missing = [
        k for k in result.missing_keys if k not in fresh and k not in given and not k.endswith("num_batches_tracked")
    ]
    parts = [
        f"{len(found)} {what} ({', '.join([*found[:_SHOWN], *['...'][: len(found) > _SHOWN]])})"
        for what, found in (
            ("missing", missing),
            ("unexpected", result.unexpected_keys),
            ("of another shape", wrong),
            ("in whole numbers", coded),
        )
        if found
    ]
    if parts:
        raise WeightsError(
            f"the weights do not fit {spec.name}",
            origin + ": " + "; ".join(parts),
            "name the network they were saved from with --backbone",
        )


def _resized_positions(given: OrderedDict[str, torch.Tensor], size: int, patch: int) -> OrderedDict[str, torch.Tensor]:
    """Position embeddings of a ViT for another image size, by torchvision's own interpolation."""
    try:
        return OrderedDict(interpolate_embeddings(size, patch, given))
    except ValueError as error:
        do = f"give the size they were trained at with --image-size, and not {size}"
        raise WeightsError("the position embeddings cannot be resized", error, do) from error


def _download(spec: BackboneRow) -> Weights:
    if spec.name in backbones.OWN:
        do = f"make some with `edgetl pretrain DATA --to FILE --backbone {spec.name}`, or use --weights none"
        raise WeightsError("no weights are published for this backbone", spec.name, do)
    entry = models.get_model_weights(spec.name).DEFAULT
    local = published_file(entry)
    if not local.is_file():
        _fetch(entry.url, local)
    try:
        state = read_state(local)  # torch.hub's own reader would run what a pickle says
    except WeightsError as error:
        raise WeightsError(error.what, error.value, "delete it: it is downloaded again when it is asked for") from error
    provenance = {"source": "torchvision", "name": str(entry), "url": entry.url, "sha256": sha256_file(local)}
    return Weights(state, _of_entry(entry, spec), provenance)


def published_file(entry: Any) -> Path:
    """Where torchvision keeps the weights of an entry once they were downloaded."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name


def _fetch(url: str, local: Path) -> None:
    """Download, whole and with the published hash or not at all; a line that says nothing for long ends it."""
    hashed = re.search(r"-([0-9a-f]{8,})\.", local.name)
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        with _patience(SILENCE_S):
            torch.hub.download_url_to_file(url, str(local), hashed[1] if hashed else None, progress=False)
    except (URLError, HTTPException, OSError, RuntimeError) as error:
        # RuntimeError: the downloaded bytes do not have the published hash.
        raise WeightsError(
            "torchvision's weights could not be downloaded",
            f"{url} ({error})",
            "check the connection, or use --weights FILE, embedded or none",
        ) from error


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # torch.hub has no option for it, and would wait for ever
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _embedded() -> Weights:
    path = embedded.weights_path()
    provenance = {"source": "embedded", "name": path.name, "sha256": sha256_file(path)}
    return Weights(read_state(path), embedded.preprocess(), provenance)


def published(spec: BackboneRow, digest: str) -> Any:
    """torchvision's entry for a file with this sha256 (their URLs carry its first 8 digits), or None."""
    if spec.name in backbones.OWN:
        return None
    entries = list(models.get_model_weights(spec.name))
    return next((e for e in entries if f"-{digest[:8]}." in e.url), None)


def _default_preprocess(spec: BackboneRow) -> Preprocess:
    if spec.name in backbones.OWN:
        return Preprocess(size=spec.size, resize=spec.size, mean=spec.mean, std=spec.std)
    return _of_entry(models.get_model_weights(spec.name).DEFAULT, spec)


def _of_entry(entry: Any, spec: BackboneRow) -> Preprocess:
    """The Preprocess of a torchvision weights entry (their V1 resizes to 256, V2 to 232: it decides)."""
    transforms = entry.transforms()
    # The row's normalisation is ImageNet's, or (0.5, 0.5) where we took the conversion out of the network.
    converts = "transform_input" in dict(spec.kwargs)
    mean, std = (spec.mean, spec.std) if converts else (tuple(transforms.mean), tuple(transforms.std))
    return Preprocess(
        size=int(transforms.crop_size[0]),
        resize=int(transforms.resize_size[0]),
        interpolation=str(transforms.interpolation.value),
        mean=mean,
        std=std,
    )


def load_exactly(model: nn.Module, state: State) -> None:
    """Load a state dict that `model` itself wrote. Raises WeightsError."""
    complete = OrderedDict(state)
    # safetensors keeps no layer versions, and mnasnet refuses to load without them.
    complete._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    try:
        model.load_state_dict(complete)
    except RuntimeError as error:
        do = "was another torchvision installed since? make the bundle anew with `edgetl finetune`"
        raise WeightsError("the checkpoint does not fit its own backbone", str(error)[:200], do) from error
