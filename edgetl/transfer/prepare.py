"""From options to a network that is ready to be fitted: every mistake in the options shows here, before any work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgetl.errors import DataError, InputError
from edgetl.images import Dataset, Sample, split_digest
from edgetl.images.of_bundle import read_unlabelled
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Preprocess
from edgetl.transfer import backbones, weights
from edgetl.transfer.adapt import methods, target
from edgetl.transfer.augment import stream_seed
from edgetl.transfer.backbones import BackboneRow
from edgetl.transfer.distil import Teacher, open_teacher
from edgetl.transfer.network import Deployed
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pretrained import device_of


@dataclass(frozen=True)
class Start:
    """Where a run begins. `identity` is equal for two runs exactly when they must give the same result."""

    spec: BackboneRow
    arguments: dict[str, Any]
    network: Deployed
    preprocess: Preprocess
    provenance: dict[str, Any]
    device: torch.device
    identity: dict[str, Any]
    teacher: Teacher | None = None
    unlabelled: tuple[Sample, ...] = ()  # their paths are absolute: they lie in a folder of their own


def prepare(data: Dataset, options: FinetuneOptions, monitor: Monitor = SILENT) -> Start:
    """Build the network and load its weights. Raises BackboneError, WeightsError, InputError, DataError."""
    spec, arguments = weights.network_of(options.source, options.backbone, options.backbone_args)
    device = _device(options)
    check_splits(data)
    teacher = open_teacher(options.teacher, data, monitor) if options.teacher else None
    unlabelled = _unlabelled(options.unlabelled, data, options, monitor) if options.unlabelled else ()
    # Sizes are checked before weights are looked for: they may have to be downloaded.
    spec.check_size(options.image_size or spec.size)
    found = weights.load(options.source, spec)
    preprocess = weights.preprocess_for(found.preprocess, options.image_size, options.fit)
    torch.default_generator.manual_seed(stream_seed(options.seed, "init"))
    auxiliary = options.plan.auxiliary
    if auxiliary and spec.auxiliary and not spec.auxiliary_at(preprocess.size):
        least = f"{spec.auxiliary_min_size} px, not {preprocess.size}"
        monitor.say(f"trained without the auxiliary heads of {spec.name}: they want images of at least {least}")
    backbone = backbones.build(
        spec.name, len(data.labels), preprocess.size, arguments, init=found.state is None, auxiliary=auxiliary
    )
    if found.state is not None:
        origin = str(found.provenance["name"])
        weights.apply(backbone, spec, found.state, preprocess.size, origin, monitor)
    # A file's name and hash, not its path: the identity goes into the manifest, and that travels.
    named = found.provenance["name"] if found.provenance["source"] == "file" else options.source
    identity = {
        "options": dict(options.identity(), backbone=spec.name, weights=named),
        "weights": found.provenance.get("sha256", ""),
        "splits": {name: split_digest(samples) for name, samples in data.splits.items()},
        "labels": list(data.labels),
        "teacher_sha256": teacher.sha256 if teacher else "",
        "unlabelled_digest": split_digest(unlabelled) if unlabelled else "",
    }
    network = Deployed(backbone, preprocess)
    return Start(spec, arguments, network, preprocess, dict(found.provenance), device, identity, teacher, unlabelled)


def _unlabelled(folder: Path, data: Dataset, options: FinetuneOptions, monitor: Monitor) -> tuple[Sample, ...]:
    """Every different image below `folder`. Raises DataError where there is none, or where --adapt cannot use it."""
    root, found = read_unlabelled(str(folder), monitor)
    if options.adapt != methods.NONE:
        found = target.of_source_classes(folder, found, data.labels, options.adapt_classes, monitor)
        target.apart_from(found, data)  # too few are told now, the rest when they are decoded
    elif any("/" in sample.path for sample in found):
        monitor.say(f"{folder} has subfolders: their names are not taken for labels")
    return tuple({s.digest: replace(s, path=str(root / s.path)) for s in found}.values())


def check_splits(data: Dataset) -> None:
    """Raise DataError where a class has no training image or there is nothing to validate on."""
    empty = [label for label, n in data.counts("train").items() if not n]
    if empty:
        raise DataError("classes without a training image", ", ".join(empty[:5]), "add images, or remove the class")
    if not data.split("val"):
        raise DataError(
            "there are no validation images", data.root, "the best epoch is chosen on them: --val-fraction .15"
        )


def _device(options: FinetuneOptions) -> torch.device:
    device = device_of(options.device)
    if options.amp == "fp16" and device.type == "cpu":
        raise InputError("fp16 training wants a CUDA device", "--amp fp16", "use --amp auto")
    return device
