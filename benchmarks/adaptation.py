"""Adaptation without target labels: every method beside source-only, what is chosen, and what labels would have chosen.

pacs_mini: frozen features of mobilenet_v2 at 224 px, all 420 images of a domain, heads at C = 0.1. Digits: LeNet
trained end to end from 2,000 labelled images, all steps, weights averaged as `--adapt` averages them. The target's
images are those that are adapted to, its labels only count the answers. `chosen` follows edgetl.transfer.adapt.select;
`oracle` is the best by target labels. What other label-free scores would have chosen among the same: deep embedded
validation (`by_dev`, where the source has 100 images to hold out), the lowest entropy, the smallest MMD of what the
classifier sees, the densest neighbourhoods.

    python -m benchmarks adaptation
    EDGETL_BENCH_ONLY="mnist > usps" python -m benchmarks adaptation      the pairs whose name holds this text
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks import deep_validation, lenet
from benchmarks.data import SAMPLES
from benchmarks.networks import cache, weights_of
from benchmarks.rows import Case, Row, row
from edgetl.images import ReadOptions, read_data, stream
from edgetl.transfer import backbones, features, recipe, weights
from edgetl.transfer.adapt import adversarial, confusion, discrepancy, frozen, losses, methods, select
from edgetl.transfer.adapt.frozen import Adapted, Domains, Moments
from edgetl.transfer.adapt.methods import METHODS, NONE
from edgetl.transfer.adapt.phase import END_TO_END, STANDARDISED
from edgetl.transfer.network import Deployed
from edgetl.transfer.probe import Linear, fit_at

SEEDS = (0, 1, 2)
THREADS = 1  # on a busy machine two that wait for each other took five times the processor time
STRENGTH = 0.1  # of the heads on frozen features: LogisticRegression's C
PHOTOS = (("photo", "art_painting"), ("photo", "cartoon"), ("photo", "sketch"), ("art_painting", "photo"))
DIGITS = (("mnist", "usps"), ("usps", "mnist"))
TRAP = "coral_raw"  # CORAL on features that are not centred by domain, as it is often used: a case of negative transfer
LABELLED = 2000
HELD_OUT, FEWEST_HELD_OUT = 1000, 100  # further digits of the source, for deep embedded validation
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def run(quick: bool) -> Iterator[Row]:
    """A row for each pair of domains. Raises FileNotFoundError where the sample images are absent."""
    torch.set_num_threads(THREADS)
    for source, target in _wanted(PHOTOS[:1] if quick else PHOTOS):
        domains, targets = _photos(source, target, quick)
        found = [_frozen(domains, seed) for seed in SEEDS[: 1 if quick else None]]
        values = {"network": "mobilenet_v2, 224 px, frozen", "n_source": len(domains.source), **summary(found, targets)}
        yield row(Case("adaptation", f"{source} > {target}", quick), THREADS, values)
    for source, target in _wanted(DIGITS):
        count, steps = (200, 20) if quick else (LABELLED, lenet.STEPS)
        drawn = lenet.digits(SAMPLES / "data/digits" / source, count + HELD_OUT)
        ours, held = (lenet.Digits(drawn.pixels[rows], drawn.targets[rows]) for rows in _cut(count))
        theirs = lenet.digits(SAMPLES / "data/digits" / target, count)
        found = [_digits(ours, held, theirs, seed, steps) for seed in SEEDS[: 1 if quick else None]]
        values = {"network": "LeNet, end to end", "n_source": count, **summary(found, theirs.targets)}
        yield row(Case("adaptation", f"{source} > {target}", quick), THREADS, values)


def _wanted(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    only = os.environ.get("EDGETL_BENCH_ONLY", "")
    return [(source, target) for source, target in pairs if only in f"{source} > {target}"]


def _cut(at: int) -> tuple[slice, slice]:
    return slice(at), slice(at, None)


@dataclass(frozen=True)
class Trial:
    """A candidate: its logits on the target, those of its two half fits, and what other scores want to know of it.

    mmd2: of what the classifier sees of the domains. risk: deep embedded validation's, None where nothing is held out.
    """

    logits: Floats
    halves: tuple[Floats, Floats]
    mmd2: float
    risk: float | None


Trials = Mapping[str, Trial]


def summary(found: Sequence[Trials], targets: Ints) -> dict[str, Any]:
    """The row's values: accuracy of each candidate (mean and standard deviation over seeds), chosen and oracle."""
    accuracies = [{name: float((t.logits.argmax(1) == targets).mean()) for name, t in s.items()} for s in found]
    values: dict[str, Any] = {"n_target": len(targets), "seeds": len(found)}
    for name in accuracies[0]:
        values |= _over_seeds(name, [a[name] for a in accuracies])
    rivals = [{name: trial for name, trial in trials.items() if name != TRAP} for trials in found]
    scores = [[select.score(name, trial.logits, trial.halves) for name, trial in r.items()] for r in rivals]
    picked = {"chosen": [select.decide(told)[0] for told in scores]}
    picked["by_entropy"] = [min(told, key=lambda s: s.entropy).name for told in scores]
    picked["by_density"] = [max(told, key=lambda s: s.density).name for told in scores]
    picked["by_mmd"] = [_least({name: trial.mmd2 for name, trial in r.items()}) for r in rivals]
    risks = [{name: trial.risk for name, trial in r.items() if trial.risk is not None} for r in rivals]
    if all(risks):
        picked["by_dev"] = [_least(risk) for risk in risks]
    for how, names in picked.items():
        values |= _over_seeds(how, [a[name] for a, name in zip(accuracies, names, strict=True)])
    values |= _over_seeds("oracle", [max(a.values()) for a in accuracies])
    values["kept"] = ", ".join(sorted(set(picked["chosen"])))
    if TRAP in found[0]:
        pairs = [[select.score(name, s[name].logits, s[name].halves) for name in (NONE, TRAP)] for s in found]
        values["trap_refused"] = sum(trap.agreement <= base.agreement for base, trap in pairs)
    return values


def _least(by_name: Mapping[str, float]) -> str:
    return min(by_name, key=lambda name: by_name[name])


def _over_seeds(name: str, accuracies: list[float]) -> dict[str, float]:
    return {name: round(float(np.mean(accuracies)), 4), name + "_sd": round(float(np.std(accuracies)), 4)}


def _frozen(domains: Domains, seed: int) -> Trials:
    """Every method on cached features, with the half fits that `select` wants; each is validated on the other half."""
    trials = {}
    halves = select.halves_of(domains.targets, seed)
    for method in (*frozen.methods_for("auto"), TRAP):
        whole = _adapted(method, domains, seed)
        logits, risks = [], []
        for rows, others in (halves, halves[::-1]):
            part = _part(domains, rows)
            made = _adapted(method, part, seed)
            logits.append(made.head.logits(domains.target))
            risks.append(_risk(made, part, _part(domains, others), np.random.default_rng(seed)))
        told = (whole.head.logits(domains.target), (logits[0], logits[1]), _mmd2(whole, domains))
        trials[method] = Trial(*told, float(np.mean(risks)))
    return trials


def _part(domains: Domains, rows: Ints) -> Domains:
    return Domains(domains.source[rows], domains.targets[rows], domains.target, domains.classes)


def _mmd2(made: Adapted, domains: Domains) -> float:
    both = (torch.from_numpy(made.source(domains.source)), torch.from_numpy(made.target(domains.target)))
    return float(discrepancy.mk_mmd(*both))


def _risk(made: Adapted, fitted: Domains, held: Domains, rng: np.random.Generator) -> float:
    """Deep embedded validation of a classifier on source images that it was not fitted to."""
    seen = made.source(held.source)
    probabilities = select.probabilities(seen @ made.weight.T + made.bias)[np.arange(len(seen)), held.targets]
    rows = rng.permutation(len(fitted.source))[:HELD_OUT]
    others = rng.permutation(len(fitted.target))[:HELD_OUT]
    apart = (made.source(fitted.source[rows]), seen, made.target(fitted.target[others]))
    return deep_validation.risk(deep_validation.density_ratio(*apart), -np.log(np.maximum(probabilities, 1e-15)))


def _adapted(method: str, domains: Domains, seed: int) -> Adapted:
    if method != TRAP:
        head = fit_at(domains.source, domains.targets, domains.classes, STRENGTH)
        return frozen.fitted(method, domains, head, STRENGTH, seed)
    moments = Moments.of(domains.source)
    scaled = Domains(
        moments.standardised(domains.source), domains.targets, moments.standardised(domains.target), domains.classes
    )
    recolour = frozen.recolouring(scaled)
    head = fit_at(recolour(scaled.source), domains.targets, domains.classes, STRENGTH)
    weight, bias = head.weight.astype(np.float64), head.bias.astype(np.float64)
    seen = (lambda rows: recolour(moments.standardised(rows)), moments.standardised)
    return Adapted(moments.folded(weight, bias), *seen, weight, bias)


def _digits(source: lenet.Digits, held: lenet.Digits, target: lenet.Digits, seed: int, steps: int) -> Trials:
    """Source-only and its closed forms on one network, and a network for each method that trains."""
    trials: dict[str, Trial] = {}
    for method in (NONE, *(name for name, found in METHODS.items() if found.trains)):
        network = _kept(source, target, method, seed, steps)
        there, logits = lenet.codes_of(network, target)
        domains = Domains(lenet.codes_of(network, source)[0], source.targets, there, logits.shape[1])
        own = Linear(network.head.weight.detach().numpy(), network.head.bias.detach().numpy())
        enough = len(held.targets) >= FEWEST_HELD_OUT
        apart = Domains(lenet.codes_of(network, held)[0], held.targets, there, domains.classes) if enough else None
        # What was trained is standardised on its own features too, as `--adapt` does it.
        closed = "standardise" if method == NONE else method + END_TO_END + STANDARDISED
        for name in (method, closed):
            whole = _closed(name, domains, own, seed)
            halves = []
            for rows in select.halves_of(domains.targets, seed):
                part = _part(domains, rows)
                head = fit_at(part.source, part.targets, part.classes, STRENGTH)
                halves.append(_closed(name, part, head, seed).head.logits(there))
            risk = None if apart is None else _risk(whole, domains, apart, np.random.default_rng(seed))
            trials[name] = Trial(whole.head.logits(there), (halves[0], halves[1]), _mmd2(whole, domains), risk)
    return trials


def _closed(method: str, domains: Domains, head: Linear, seed: int) -> Adapted:
    """`head`, standardised where the method ends in that; what was trained end to end is in its features already."""
    name = "standardise" if method.endswith(STANDARDISED) else method
    name = NONE if METHODS.get(name, METHODS["mmd"]).trains else name
    return frozen.fitted(name, domains, head, STRENGTH, seed)


def _kept(source: lenet.Digits, target: lenet.Digits, method: str, seed: int, steps: int) -> lenet.LeNet:
    """`lenet.trained`, kept in the cache under all that it depends on: another question costs no other training."""
    key = hashlib.sha256(f"{method} {seed} {steps} {torch.__version__}".encode())
    for side in (source, target):
        key.update(side.pixels.numpy().tobytes() + side.targets.tobytes())
    for module in (lenet, losses, discrepancy, confusion, adversarial, methods, recipe):
        key.update(Path(str(module.__file__)).read_bytes())
    path = cache() / "adaptation" / f"lenet-{key.hexdigest()[:16]}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        torch.save(lenet.trained(source, target, method, seed, steps).state_dict(), part)
        part.replace(path)
    network = lenet.LeNet(int(source.targets.max()) + 1)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


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
