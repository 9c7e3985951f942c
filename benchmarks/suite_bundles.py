"""The bundle of a suite's network: made by edgetl's own commands and kept in the benchmarks' cache.

A linear probe is all the training: it needs one pass over the images, and no latency depends on weights. (No epoch
runs on the backbone, so "none" leaves it at its random, seeded weights.)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import edgetl
from benchmarks.child import cores, run_module
from benchmarks.data import split_layout
from benchmarks.networks import cache, data_of, weights_of
from benchmarks.suite import Network
from edgetl.bundle import Bundle
from edgetl.errors import InputError
from edgetl.target import parse_target


def bundle_of(network: Network, target: str) -> Path:
    """The bundle with fp32 and int8 graphs for `target`, made now where the cache has none.

    It is known by what it was made with, the code that makes graphs included: graphs of an older edgetl are not
    measured as today's. Raises InputError (samples that are not here), RuntimeError (a command failed).
    """
    facts = {name: value for name, value in asdict(network).items() if name != "name"}
    words = json.dumps([facts, target, edgetl.__version__, _code()], sort_keys=True)
    digest = hashlib.sha256(words.encode()).hexdigest()[:8]
    to = cache() / "suites" / f"{network.backbone}-{network.image_size}-{digest}"
    if not (to / "manifest.json").is_file():
        options = ["--backbone", network.backbone, "--image-size", str(network.image_size)]
        options += ["--weights", _weights(network), "--strategy", "linear-probe"]
        options += ["--backbone-args", network.backbone_args] if network.backbone_args else []
        command = ("finetune", str(_images(network)), "--to", str(to), *options)
        run_module("edgetl", "-q", *command, "--json", threads=cores())
    profile = str(parse_target(target).profile)
    if not any(g["precision"] == "int8" and g["profile"] == profile for g in Bundle.open(to).artifacts("graph")):
        # No layer is left in float for accuracy's sake: what is measured is the speed of int8 kernels.
        plain = ("--target", target, "--int8", "--rescue", "none", "--allow-unmet")
        run_module("edgetl", "-q", "export", str(to), *plain, "--json", threads=cores())
    return to


def _weights(network: Network) -> str:
    if network.weights != "samples":
        return network.weights
    try:
        return str(weights_of(network.backbone))
    except FileNotFoundError as error:
        raise InputError("the suite's weights are not here", f"{network.name}: {error}") from error


def _images(network: Network) -> Path:
    """At most `images` of each split of the network's data, as links in split folders."""
    try:
        source = data_of(network.data)
    except FileNotFoundError as error:
        raise InputError("the suite's images are not here", f"{network.name}: {error}") from error
    to = cache() / "suites" / "data" / f"{network.data.replace(' ', '-')}-{network.images}"
    if not to.is_dir():
        part = to.with_name(to.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        split_layout(source, part, network.images)
        part.rename(to)
    return to


def _code() -> str:
    """A digest of the code that decides what is in a graph."""
    files = sorted((Path(edgetl.__file__).parent / "graph").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
