"""Suites as TOML: which networks, runtimes, precisions, batches, and for how long. Read here, run by `measures`.

title = "ResNet18 and its like on a CPU"
measures = "bench"              # "bench": `edgetl bench` of each bundle; "peers": beside other runtimes, one process
threads = 1                     # the same for every runtime
seconds = 5.0                   # timed for each runtime, at least
batches = [1, 8]
precisions = ["fp32", "int8"]
target = "cpu"                  # as `edgetl export --target`
backends = ["torch", "onnxruntime"]     # bench alone, as `edgetl bench --backends`; default: all that run here
providers = ["cpu", "openvino"]         # bench alone, as `edgetl bench --providers`
methods = ["torch", "ort-fp32"]         # peers alone (benchmarks/peers_latency.py); default: all

[[networks]]
name = "resnet18 at 224 px, random weights"     # as tables show it; the same name is the same case
backbone = "resnet18"
weights = "none"                # "none": random, from the seed; "embedded"; "samples": those of EDGETL_SAMPLES
image_size = 224
data = "digits"                 # "digits" ships with edgetl; else a folder in the samples
images = 32                     # of a split, at most
backbone_args = "width_mult=0.5"
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rows import HERE
from edgetl.cli.candidates import BACKENDS, PRECISIONS, PROVIDERS
from edgetl.errors import EdgetlError, InputError
from edgetl.target import parse_target

FOLDER = HERE / "suites"
MEASURES = ("bench", "peers")
WEIGHTS = ("none", "embedded", "samples")
METHODS = {  # of "peers": what a row calls it
    "torch": "PyTorch eager",
    "torch-compile": "torch.compile",
    "ort-fp32": "edgetl: ONNX Runtime FP32",
    "ort-int8": "edgetl: ONNX Runtime INT8",
    "ort-openvino-fp32": "edgetl: ONNX Runtime's OpenVINO plug-in, FP32",
    "ort-openvino-int8": "edgetl: ONNX Runtime's OpenVINO plug-in, INT8",
    "openvino-fp32": "OpenVINO FP32",
    "openvino-default": "OpenVINO, FP32 graph in the precision that it chooses",
    "openvino-int8": "OpenVINO INT8 (the same graph)",
}


@dataclass(frozen=True)
class Network:
    """One bundle to be made and measured."""

    name: str
    backbone: str
    image_size: int
    weights: str = "none"
    data: str = "digits"
    images: int = 32
    backbone_args: str = ""


@dataclass(frozen=True)
class Suite:
    """A suite as its file says; `name` is the file's. Empty `backends`, `providers`: all that run here."""

    name: str
    title: str
    measures: str
    networks: tuple[Network, ...]
    threads: int = 1
    seconds: float = 5.0
    batches: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = ("fp32", "int8")
    target: str = "cpu"
    backends: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    methods: tuple[str, ...] = tuple(METHODS)


def find(name: str) -> Path:
    """The file of a suite by its name or its path. Raises InputError that lists the names."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise InputError("no such suite", name, f"give a .toml file or one of: {known}")
    return path


def load(path: Path) -> Suite:
    """The suite in `path`. Raises InputError that names the file, the key and what is allowed there."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("not TOML", f"{path}: {error}") from error
    except OSError as error:
        raise InputError("the suite cannot be read", f"{path}: {error.strerror}") from error
    networks = table.pop("networks", None)
    if not isinstance(networks, list) or not networks:
        raise InputError("a suite without networks", path, "give at least one [[networks]] table")
    found = _checked(path, "the suite", table, _SUITE, ("title", "measures"))
    for key, kind in (("methods", "peers"), ("backends", "bench"), ("providers", "bench")):
        if key in found and found["measures"] != kind:
            raise InputError(f"{key} is for suites that measure {kind}", f"{path}: measures = {found['measures']!r}")
    read = tuple(_network(path, index, entry) for index, entry in enumerate(networks, 1))
    names = [network.name for network in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError("two networks of a suite have one name", f"{path}: {twice!r}")
    return Suite(name=path.stem, networks=read, **found)


def _network(path: Path, index: int, entry: Any) -> Network:
    where = f"network {index}"
    if not isinstance(entry, dict):
        raise InputError("a network is a [[networks]] table", f"{path}: {where} is {entry!r}")
    return Network(**_checked(path, where, entry, _NETWORK, ("name", "backbone", "image_size")))


Check = Callable[[Any], Any]


def _checked(
    path: Path, where: str, table: dict[str, Any], known: dict[str, Check], required: tuple[str, ...]
) -> dict[str, Any]:
    """The values of a table, each checked. Raises InputError for an unknown, a missing or a wrong one."""
    for key in table:
        if key not in known:
            raise InputError("unknown key in a suite", f"{path}: {key} in {where}", "known: " + ", ".join(known))
    for key in required:
        if key not in table:
            raise InputError("a key is missing in a suite", f"{path}: {key} of {where}")
    out = {}
    for key, value in table.items():
        try:
            out[key] = known[key](value)
        except ValueError as error:
            raise InputError("wrong value in a suite", f"{path}: {key} = {value!r} in {where}", str(error)) from None
    return out


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise ValueError("one line of text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a whole number from 1 on")
    return value


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 3600:
        raise ValueError("seconds, above 0 and below 3600")
    return float(value)


def _one_of(names: tuple[str, ...]) -> Check:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return str(value)

    return check


def _list_of(check: Check) -> Check:
    def every(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, list) or not values:
            raise ValueError("a list that is not empty")
        return tuple(dict.fromkeys(check(value) for value in values))

    return every


def _target(value: Any) -> str:
    try:
        parse_target(_text(value))
    except EdgetlError as error:
        raise ValueError(error.do or str(error)) from None
    return str(value)


_SUITE: dict[str, Check] = {
    "title": _text,
    "measures": _one_of(MEASURES),
    "threads": _whole,
    "seconds": _seconds,
    "batches": _list_of(_whole),
    "precisions": _list_of(_one_of(PRECISIONS)),
    "target": _target,
    "backends": _list_of(_one_of(BACKENDS)),
    "providers": _list_of(_one_of(tuple(PROVIDERS))),
    "methods": _list_of(_one_of(tuple(METHODS))),
}
_NETWORK: dict[str, Check] = {
    "name": _text,
    "backbone": _text,
    "image_size": _whole,
    "weights": _one_of(WEIGHTS),
    "data": _text,
    "images": _whole,
    "backbone_args": _text,
}
