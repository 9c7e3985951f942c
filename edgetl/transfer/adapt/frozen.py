"""Adaptation with a frozen backbone: cached features of both domains in, a linear head for the target out.

All of it folds into the head: what is deployed takes the target's features as they come, so the exported network is
a plain graph and knows the target's statistics as constants of its last layer. Minutes on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.extmath import randomized_svd
from torch import nn
from torch.nn import functional

from edgetl.errors import StageError
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer.adapt.losses import Codes, loss_of
from edgetl.transfer.adapt.methods import METHODS, NONE
from edgetl.transfer.augment import stream_seed
from edgetl.transfer.probe import Linear, fit_at

BOTTLENECK = 256
STEPS = 300
BATCH = 64  # of each domain; more where there are many classes: class confusion wants several images of each
PER_CLASS = 4
LARGEST_BATCH = 512
LEARNING_RATE = 12.8  # over the feature width (0.01 at 1280): the curvature grows with the features' squared norm
MOMENTUM = 0.9
CLIP = 10.0
HIDDEN = 256  # of a discriminator: a linear bottleneck gives it less to tell apart than a backbone would
PRIOR_IMAGES = 4  # what the source's moments count for among the target's (docs/log.md: few images have poor moments)
RECOLOUR_RIDGE = 1.0  # added to both covariances of standardised features

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Map = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Domains:
    """Features float32 (N, D) with their classes int64 (N,), and the target's features (M, D) without."""

    source: Floats
    targets: npt.NDArray[np.int64]
    target: Floats
    classes: int


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and standard deviation (D,) of a domain's features; 1 where a feature does not vary."""

    mean: Wide
    scale: Wide

    @classmethod
    def of(cls, features: Floats) -> Moments:
        """Those of features (N, D)."""
        scale = features.std(0, dtype=np.float64)
        return cls(features.mean(0, dtype=np.float64), np.where(scale > 1e-12, scale, 1.0))

    def beside(self, source: Moments, count: int, prior: int = PRIOR_IMAGES) -> Moments:
        """These, of `count` images of the target, with the source's weighing as much as `prior` images.

        Means and variances are mixed with n/(N + n) and N/(N + n): Schneider et al. 2020, "Improving robustness
        against common corruptions by covariate shift adaptation". A feature that happens to be all but constant on a
        few images would otherwise be blown up without bound in every image that comes later.
        """
        own = count / (count + prior)
        variance = own * self.scale**2 + (1 - own) * source.scale**2
        return Moments(own * self.mean + (1 - own) * source.mean, np.sqrt(variance))

    def standardised(self, features: Floats) -> Floats:
        """(features - mean) / scale."""
        return np.asarray((features - self.mean) / self.scale, np.float32)

    def unfolded(self, head: Linear) -> tuple[Wide, Wide]:
        """`head` as weight (C, D) and bias (C,) on standardised features."""
        weight = head.weight.astype(np.float64)
        return weight * self.scale, head.bias + weight @ self.mean

    def folded(self, weight: Wide, bias: Wide) -> Linear:
        """weight (C, D) and bias (C,) on standardised features as a head on features as they come."""
        raw = weight / self.scale
        return Linear(raw.astype(np.float32), (bias - raw @ self.mean).astype(np.float32))


@dataclass(frozen=True)
class Adapted:
    """A classifier of the target's features as they come (`head`), and where it classifies.

    `source` and `target` map a domain's features float32 (N, D) to the space (N, K) that both domains share there;
    `weight` (C, K) and `bias` (C,) are the classifier on it.
    """

    head: Linear
    source: Map
    target: Map
    weight: Wide
    bias: Wide

    def of_source(self, features: Floats) -> Floats:
        """Logits (N, C) of the source's features (N, D), by the source's side of the alignment."""
        return np.asarray(self.source(features) @ self.weight.T + self.bias, np.float32)


def adapted(method: str, domains: Domains, head: Linear, c: float, seed: int, monitor: Monitor = SILENT) -> Linear:
    """The head of `fitted`."""
    return fitted(method, domains, head, c, seed, monitor).head


def fitted(method: str, domains: Domains, head: Linear, c: float, seed: int, monitor: Monitor = SILENT) -> Adapted:
    """`head` (fitted on the source) adapted to the target; of "none" the head itself.

    `c`: the inverse strength of the L2 penalty that `head` was fitted with (LogisticRegression's C). Raises StageError
    where the training diverges.
    """
    source = Moments.of(domains.source)
    target = Moments.of(domains.target).beside(source, len(domains.target))
    weight, bias = source.unfolded(head)
    if method == NONE:
        return Adapted(head, source.standardised, source.standardised, weight, bias)
    if method == "standardise":
        return Adapted(target.folded(weight, bias), source.standardised, target.standardised, weight, bias)
    aligned = replace(domains, source=source.standardised(domains.source), target=target.standardised(domains.target))
    if method == "coral":
        # What Deep CORAL's loss would bring a linear map to, in closed form; the classifier is fitted anew behind it.
        recolour = recolouring(aligned)
        anew = fit_at(recolour(aligned.source), domains.targets, domains.classes, c)
        weight, bias = anew.weight.astype(np.float64), anew.bias.astype(np.float64)
        folded = target.folded(weight, bias)
        return Adapted(folded, lambda rows: recolour(source.standardised(rows)), target.standardised, weight, bias)
    narrow, last = trained(method, aligned, weight, bias, c, seed, monitor)
    (inner, shift), (weight, bias) = ((_wide(layer.weight), _wide(layer.bias)) for layer in (narrow, last))

    def seen(domain: Moments) -> Map:
        return lambda rows: np.asarray(domain.standardised(rows) @ inner.T + shift, np.float32)

    return Adapted(target.folded(weight @ inner, weight @ shift + bias), seen(source), seen(target), weight, bias)


def _wide(parameter: torch.Tensor) -> Wide:
    return np.asarray(parameter.detach().double().numpy())


def recolouring(domains: Domains, ridge: float = RECOLOUR_RIDGE) -> Map:
    """What gives the source's features the target's covariance: x C_s^-1/2 C_t^1/2 with C = covariance + ridge I.

    Sun, Feng & Saenko 2016, "Return of Frustratingly Easy Domain Adaptation", algorithm 1; both domains have mean 0.
    """
    source, target = (_covariance(rows, ridge) for rows in (domains.source, domains.target))
    whiten, colour = _power(source, -0.5), _power(target, 0.5)
    return lambda rows: np.asarray(rows @ whiten @ colour, np.float32)


def _covariance(rows: Floats, ridge: float) -> Wide:
    return np.asarray(np.atleast_2d(np.cov(rows.T.astype(np.float64))) + ridge * np.eye(rows.shape[1]))


def _power(matrix: Wide, exponent: float) -> Wide:
    """Of a symmetric positive matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * values**exponent) @ vectors.T)


def trained(
    method: str, domains: Domains, weight: Wide, bias: Wide, c: float, seed: int, monitor: Monitor = SILENT
) -> tuple[nn.Linear, nn.Linear]:
    """Bottleneck and head trained on standardised features with the method's loss.

    The bottleneck is linear, so that it folds. It starts as an orthonormal basis that holds the head's rows and the
    directions in which both domains vary most: the first step's network is the standardised head exactly, and it is
    held there by the head's own penalty, |W|^2 / (2 c N) on the product W.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, "adapt", method))
        basis = torch.from_numpy(_basis(domains, weight, seed))
        bottleneck, head = _layers(basis, torch.from_numpy(weight), torch.from_numpy(bias))
        loss = loss_of(method, len(basis), domains.classes, HIDDEN)
        _descend(method, domains, bottleneck, head, loss, c, seed, monitor)
    if not all(parameter.isfinite().all() for layer in (bottleneck, head) for parameter in layer.parameters()):
        raise StageError("the adaptation diverged: its weights are not numbers", f"--adapt {method}", "use another")
    return bottleneck, head


def _basis(domains: Domains, weight: Wide, seed: int) -> Wide:
    """Orthonormal rows (K, D): the span of the head's rows, then the principal directions of both domains."""
    both = np.concatenate([domains.source, domains.target])
    width = min(BOTTLENECK, *both.shape)
    _, _, directions = randomized_svd(both, width, random_state=seed)
    rows = np.concatenate([weight, directions.astype(np.float64)])
    basis, upper = np.linalg.qr(rows.T)
    # Directions that were in the head's span already leave a row of rounding errors.
    sound = np.abs(np.diag(upper)) > 1e-6 * np.abs(np.diag(upper)).max()
    return np.ascontiguousarray(basis.T[sound[: basis.shape[1]]][: max(width, len(weight))])


def _layers(basis: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[nn.Linear, nn.Linear]:
    """Bottleneck D -> K and head K -> C whose product is weight (C, D) and bias (C,)."""
    bottleneck = nn.Linear(basis.shape[1], len(basis))
    head = nn.Linear(len(basis), len(weight))
    with torch.no_grad():
        bottleneck.weight.copy_(basis)
        bottleneck.bias.zero_()
        head.weight.copy_(weight @ basis.T)
        head.bias.copy_(bias)
    return bottleneck, head


def _descend(
    method: str,
    domains: Domains,
    bottleneck: nn.Linear,
    head: nn.Linear,
    loss: nn.Module,
    c: float,
    seed: int,
    monitor: Monitor,
) -> None:
    source, target = torch.from_numpy(domains.source), torch.from_numpy(domains.target)
    targets = torch.from_numpy(domains.targets)
    parameters = [p for module in (bottleneck, head, loss) for p in module.parameters()]
    peak = LEARNING_RATE / max(256, source.shape[1])
    optimizer = torch.optim.SGD(parameters, lr=peak, momentum=MOMENTUM, nesterov=True)
    generator = torch.Generator().manual_seed(stream_seed(seed, "adapt batches", method))
    batch = min(LARGEST_BATCH, max(BATCH, PER_CLASS * domains.classes))
    penalty = 1 / (2 * c * len(source))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = peak * 0.5 * (1 + cos(pi * step / STEPS))
        drawn, others = (torch.randint(len(rows), (batch,), generator=generator) for rows in (source, target))
        codes = []
        for rows in (source[drawn], target[others]):
            features = bottleneck(rows)
            codes.append(Codes(features, head(features)))
        total = functional.cross_entropy(codes[0].logits, targets[drawn])
        total = total + penalty * (head.weight @ bottleneck.weight).square().sum()
        total = total + METHODS[method].frozen_weight * loss(*codes, step / STEPS)
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        monitor.progress(f"adapt: {method}", step + 1, STEPS)


def methods_for(asked: str) -> tuple[str, ...]:
    """What is tried: source-only, and the method asked for or all of them."""
    return (NONE, *METHODS) if asked == "auto" else (NONE, asked)
