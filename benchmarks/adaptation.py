"""Adaptation without target labels: every method beside source-only, what is chosen, and what labels would have chosen.

pacs_mini: frozen features of mobilenet_v2 at 224 px, all 420 images of a domain, heads at C = 0.1. Digits: LeNet
trained end to end from 2,000 labelled images, last step. The target's images are those that are adapted to, its
labels only count the answers. `chosen` follows edgetl.transfer.adapt.select; `oracle` is the best by target labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import lenet
from benchmarks.child import cores
from benchmarks.data import SAMPLES
from benchmarks.networks import cache, weights_of
from benchmarks.rows import Case, Row, row
from edgetl.images import ReadOptions, read_data, stream
from edgetl.transfer import backbones, features, weights
from edgetl.transfer.adapt import frozen, select
from edgetl.transfer.adapt.frozen import Domains, Moments
from edgetl.transfer.adapt.methods import METHODS, NONE
from edgetl.transfer.adapt.phase import END_TO_END, STANDARDISED
from edgetl.transfer.network import Deployed
from edgetl.transfer.probe import Linear, fit_at

SEEDS = (0, 1, 2)
STRENGTH = 0.1  # of the heads on frozen features: LogisticRegression's C
PHOTOS = (("photo", "art_painting"), ("photo", "cartoon"), ("photo", "sketch"), ("art_painting", "photo"))
DIGITS = (("mnist", "usps"), ("usps", "mnist"))
TRAP = "coral_raw"  # CORAL on features that are not centred by domain, as it is often used: a case of negative transfer
LABELLED = 2000
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def run(quick: bool) -> Iterator[Row]:
    """A row for each pair of domains. Raises FileNotFoundError where the sample images are absent."""
    torch.set_num_threads(cores())
    for source, target in PHOTOS[:1] if quick else PHOTOS:
        domains, targets = _photos(source, target, quick)
        found = [_frozen(domains, targets, seed) for seed in SEEDS[: 1 if quick else None]]
        values = {"network": "mobilenet_v2, 224 px, frozen", "n_source": len(domains.source), **summary(found, targets)}
        yield row(Case("adaptation", f"{source} > {target}", quick), cores(), values)
    for source, target in DIGITS:
        count, steps = (200, 20) if quick else (LABELLED, lenet.STEPS)
        ours, theirs = (lenet.digits(SAMPLES / "data/digits" / name, count) for name in (source, target))
        found = [_digits(ours, theirs, seed, steps) for seed in SEEDS[: 1 if quick else None]]
        values = {"network": "LeNet, end to end", "n_source": count, **summary(found, theirs.targets)}
        yield row(Case("adaptation", f"{source} > {target}", quick), cores(), values)


Trials = Mapping[str, tuple[Floats, tuple[Floats, Floats]]]  # name: logits on the target, and those of the half fits


def summary(found: list[Trials], targets: Ints) -> dict[str, Any]:
    """The row's values: accuracy of each candidate (mean and standard deviation over seeds), chosen and oracle."""
    accuracies = [{name: float((logits.argmax(1) == targets).mean()) for name, (logits, _) in t.items()} for t in found]
    values: dict[str, Any] = {"n_target": len(targets), "seeds": len(found)}
    for name in accuracies[0]:
        values |= _over_seeds(name, [a[name] for a in accuracies])
    kept = []
    for trials in found:
        rivals = {name: trial for name, trial in trials.items() if name != TRAP}
        kept.append(select.decide([select.score(name, *trial) for name, trial in rivals.items()])[0])
    values |= _over_seeds("chosen", [a[name] for a, name in zip(accuracies, kept, strict=True)])
    values |= _over_seeds("oracle", [max(a.values()) for a in accuracies])
    values["kept"] = ", ".join(sorted(set(kept)))
    if TRAP in found[0]:
        pairs = [[select.score(name, *trials[name]) for name in (NONE, TRAP)] for trials in found]
        values["trap_refused"] = sum(trap.agreement <= base.agreement for base, trap in pairs)
    return values


def _over_seeds(name: str, accuracies: list[float]) -> dict[str, float]:
    return {name: round(float(np.mean(accuracies)), 4), name + "_sd": round(float(np.std(accuracies)), 4)}


def _frozen(domains: Domains, targets: Ints, seed: int) -> Trials:
    """Every method on cached features, with the half fits that `select` wants."""
    trials = {}
    for method in (*frozen.methods_for("auto"), TRAP):
        made = [_adapted(method, domains, seed)]
        for rows in select.halves_of(domains.targets, seed):
            part = Domains(domains.source[rows], domains.targets[rows], domains.target, domains.classes)
            made.append(_adapted(method, part, seed))
        logits = [head.logits(domains.target) for head in made]
        trials[method] = (logits[0], (logits[1], logits[2]))
    return trials


def _adapted(method: str, domains: Domains, seed: int) -> Linear:
    if method != TRAP:
        head = fit_at(domains.source, domains.targets, domains.classes, STRENGTH)
        return frozen.adapted(method, domains, head, STRENGTH, seed)
    moments = Moments.of(domains.source)
    scaled = Domains(
        moments.standardised(domains.source), domains.targets, moments.standardised(domains.target), domains.classes
    )
    head = fit_at(frozen.recoloured(scaled), domains.targets, domains.classes, STRENGTH)
    return moments.folded(head.weight.astype(np.float64), head.bias.astype(np.float64))


def _digits(source: lenet.Digits, target: lenet.Digits, seed: int, steps: int) -> Trials:
    """Source-only and its closed forms on one network, and a network for each method that trains."""
    trials: dict[str, tuple[Floats, tuple[Floats, Floats]]] = {}
    for method in (NONE, *(name for name, found in METHODS.items() if found.trains)):
        network = lenet.trained(source, target, method, seed, steps)
        there, logits = lenet.codes_of(network, target)
        domains = Domains(lenet.codes_of(network, source)[0], source.targets, there, logits.shape[1])
        own = Linear(network.head.weight.detach().numpy(), network.head.bias.detach().numpy())
        # What was trained is standardised on its own features too, as `--adapt` does it.
        closed = "standardise" if method == NONE else method + END_TO_END + STANDARDISED
        for name in (method, closed):
            halves = []
            for rows in select.halves_of(domains.targets, seed):
                part = Domains(domains.source[rows], domains.targets[rows], there, domains.classes)
                head = fit_at(part.source, part.targets, part.classes, STRENGTH)
                halves.append(_closed(name, part, head, seed).logits(there))
            trials[name] = (_closed(name, domains, own, seed).logits(there), (halves[0], halves[1]))
    return trials


def _closed(method: str, domains: Domains, head: Linear, seed: int) -> Linear:
    """`head`, standardised where the method ends in that; what was trained end to end is in its features already."""
    name = "standardise" if method.endswith(STANDARDISED) else method
    return head if METHODS.get(name, METHODS["mmd"]).trains else frozen.adapted(name, domains, head, STRENGTH, seed)


def _photos(source: str, target: str, quick: bool) -> tuple[Domains, Ints]:
    """Both domains' features, and the target's classes (for counting)."""
    (ours, classes), (theirs, targets) = (_features(name) for name in (source, target))
    rows = slice(None, None, 6 if quick else 1)
    return Domains(ours[rows], classes[rows], theirs[rows], int(classes.max()) + 1), targets[rows]


def _features(domain: str) -> tuple[Floats, Ints]:
    """(features (420, 1280), classes) of a domain of pacs_mini, kept in the cache."""
    path = cache() / "adaptation" / f"{domain}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        found, targets = _computed(SAMPLES / "data/pacs_mini" / domain)
        part = path.with_suffix(".part.npz")
        np.savez(part, features=found, targets=targets)
        part.replace(path)
    with np.load(path) as saved:
        return saved["features"], saved["targets"]


def _computed(folder: Path) -> tuple[Floats, Ints]:
    spec = backbones.row("mobilenet_v2")
    origin = weights_of("mobilenet_v2")
    loaded = weights.load(str(origin), spec)
    assert loaded.state is not None
    backbone = backbones.build(spec.name, 2, spec.size, init=False)
    weights.apply(backbone, spec, loaded.state, spec.size, origin.name)
    network = Deployed(backbone, loaded.preprocess).eval()
    data = read_data(str(folder), ReadOptions(val_fraction=0.0, test_fraction=0.0))
    parts, targets = [], []
    with backbones.headless(backbone, spec), torch.inference_mode():
        for batch in stream(data.root, data.all(), loaded.preprocess, 32):
            parts.append(network(features.to_device(batch.pixels, torch.device("cpu"))).numpy())
            targets.append(batch.targets)
    return np.concatenate(parts), np.concatenate(targets)
