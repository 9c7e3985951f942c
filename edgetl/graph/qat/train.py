"""The training loop: the graph with fake quantisers learns to answer as the fp32 graph does. No labels.

Straight-through gradients with clipping (Jacob et al. 2018), activation scales that learn (Esser et al. 2020),
distillation by KL divergence at a temperature (Hinton et al. 2015, section 2), Adam, cosine learning rate. Nothing is
written but scratch files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch.nn import functional

from edgetl.errors import GraphError, InputError
from edgetl.graph import surgery
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.graph.qat.network import GraphNetwork
from edgetl.graph.qat.options import QatOptions
from edgetl.images import to_batch
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.ort import OrtBackend

_HELD_OUT = 10  # one image in so many judges and is not trained on
_JUDGES = 256  # at most: judging should cost a fraction of the training
_LOOKS = 8  # how often it is judged, evenly spread over the steps
_TIMED = 4  # steps that tell how long the others will take
_WARM_UP = 0.1  # of the steps: Adam's first ones know nothing of the gradients' size
_PART = 8  # images judged at a time
_STEP_BYTES = 512 << 20  # of activations kept for the backward pass; a larger batch is fed in parts
_SMALLEST_SPREAD = 1e-3  # of logits: below it a network is constant and rounding is all there is
_SAME = 1e-3  # of the spread of the logits: PyTorch and onnxruntime differ by rounding only


@dataclass(frozen=True)
class Trained:
    """`source`: the source graph with other weights (None: training did not help), and the `record` of the run.

    `ranges` of the activations belong to it: they were trained too.
    """

    source: onnx.ModelProto | None
    ranges: Mapping[str, float]
    record: dict[str, Any] = field(default_factory=dict)


def trained(
    source: onnx.ModelProto,
    placement: Placement,
    amax: Mapping[str, float],
    teacher: onnx.ModelProto,
    pixels: Pixels,
    options: QatOptions | None = None,
    monitor: Monitor = SILENT,
) -> Trained:
    """Train the float weights of `source` so that with `placement` and `amax` it answers as `teacher` does in fp32.

    `source`: a float graph, the teacher itself or one whose weights were equalised or corrected. `pixels`:
    images of the target, labels unused; a tenth is held out to choose the best step by. The same
    arguments and thread count give the same bits, unless `options.minutes` cut the steps short (then the
    record says so). Raises InputError for too few images, GraphError for an operator it does not know.
    """
    options = options or QatOptions()
    if pixels.n < 2 * _HELD_OUT:
        raise InputError("too few images for quantisation-aware training", pixels.n, f"give at least {2 * _HELD_OUT}")
    started = time.monotonic()
    with _threads(options.threads):
        network = GraphNetwork(source, placement, amax)
        wise = GraphNetwork(teacher, Placement({}, {}, ()), {})
        _check(network, source, pixels)
        _check(wise, teacher, pixels)
        run = _Run(network, wise, pixels, options, monitor)
        out = network.written(source) if run.train() else None
    record = {**run.record, "seconds": round(time.monotonic() - started, 3)}
    return Trained(out, dict(amax) if out is None else {**amax, **network.ranges()}, record)


def _check(network: GraphNetwork, graph: onnx.ModelProto, pixels: Pixels) -> None:
    """Raise GraphError unless `network` says in fp32 what onnxruntime says of its graph."""
    batch = to_batch(pixels.first(2), "float32")
    path = surgery.save(graph, pixels.path.with_name("float.onnx"))
    backend = OrtBackend(path, threads=torch.get_num_threads())
    try:
        expected = backend.run(batch)
    finally:
        backend.close()
        path.unlink()
    with torch.no_grad():
        given = network(torch.from_numpy(batch), quantised=False).numpy()
    away, spread = float(np.abs(given - expected).max()), float(np.ptp(expected))
    if not away <= _SAME * max(spread, _SMALLEST_SPREAD):
        raise GraphError(
            "the graph computes otherwise in PyTorch, so it cannot be trained",
            f"logits are {away:.2g} apart, their spread is {spread:.2g}",
            "use --rescue exclude",
        )


def held_out(n: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of `n` images judge: drawn, since a balanced set has its classes in turn and every tenth may be of one."""
    return np.sort(np.random.default_rng(seed).permutation(n)[: min(n // _HELD_OUT, _JUDGES)])


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """One training run of `network`, which is to answer as `teacher` does."""

    def __init__(
        self, network: GraphNetwork, teacher: GraphNetwork, pixels: Pixels, options: QatOptions, monitor: Monitor
    ) -> None:
        self.options, self.monitor = options, monitor
        self._network, self._teacher = network, teacher
        self._pixels, self._shape = pixels, pixels.first(1).shape[1:]
        apart = held_out(pixels.n, options.seed)
        self._judges = np.array_split(apart, -(-len(apart) // _PART))
        self._learned = np.setdiff1d(np.arange(pixels.n), apart)
        network.widths.requires_grad_(options.scale_lr > 0)
        self._trained = [p for p in network.parameters() if p.requires_grad]
        rates = [(list(network.changes), options.lr), ([network.widths], options.scale_lr)]
        self._optimizer = torch.optim.Adam([{"params": p, "lr": lr, "base": lr} for p, lr in rates if lr])
        self._random = np.random.default_rng(options.seed)
        self._part = self._parts()
        with torch.no_grad():
            self._expected = [teacher(self._batch(part), quantised=False) for part in self._judges]
        self.record: dict[str, Any] = {}

    def _parts(self) -> int:
        """How many images go through at once, from the memory of two beyond that of one: the graph alone decides."""
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        sizes = []
        for n in (1, 2):
            kept = 0
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                self._network(self._batch(self._learned[:n]))
            sizes.append(kept)
        return int(np.clip(_STEP_BYTES // max(sizes[1] - sizes[0], 1), 1, self.options.batch))

    def train(self) -> bool:
        """Whether the network is now better than it was, by the divergence on the images held out.

        The best state is put back, also after a learning rate that ruined everything.
        """
        options = self.options
        looks = [self._judged()]
        kept = self._state()
        planned = steps = max(1, options.epochs * len(self._learned) // options.batch)
        order = self._batches()
        done, loss = 0, math.nan
        started = time.monotonic()
        while done < steps:
            loss = self._step(next(order), (done + 0.5) / steps)
            done += 1
            if done == _TIMED:
                steps = _affordable(planned, (time.monotonic() - started) / done, options.minutes * 60)
            if not math.isfinite(loss):
                break
            self.monitor.progress("qat", done, steps)
            if done % max(1, steps // _LOOKS) == 0 or done == steps:
                looks.append(self._judged())
                if looks[-1] < min(looks[:-1]):
                    kept = self._state()
        self._restore(kept)
        self._remember(planned, done, loss, looks)
        return min(looks) < looks[0]

    def _remember(self, planned: int, done: int, loss: float, looks: list[float]) -> None:
        self.record = {
            "options": asdict(self.options),
            "images": len(self._learned),
            "held_out": sum(len(part) for part in self._judges),
            "steps": done,
            "cut_short": done < planned,
            "loss": loss if math.isfinite(loss) else None,
            "kl_before": looks[0],
            "kl_after": min(looks),
            "kl": [look if math.isfinite(look) else None for look in looks],
            "versions": {"torch": version("torch")},
        }

    def _state(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self._trained]

    def _restore(self, state: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._trained, state, strict=True):
                parameter.copy_(value)

    def _batches(self) -> Iterator[npt.NDArray[np.int64]]:
        """Indices of images: every one once, in another order, before any comes again."""
        waiting = np.empty(0, dtype=np.int64)
        while True:
            while len(waiting) < self.options.batch:
                waiting = np.concatenate([waiting, self._random.permutation(self._learned)])
            yield waiting[: self.options.batch]
            waiting = waiting[self.options.batch :]

    def _batch(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 (B, 3, S, S), channels_last in memory as the pixels are."""
        images = np.empty((len(indices), *self._shape), dtype=np.uint8)
        with self._pixels.path.open("rb") as source:
            for row, index in zip(images, indices, strict=True):
                source.seek(int(index) * row.nbytes)
                source.readinto(row.data)
        return torch.from_numpy(images).permute(0, 3, 1, 2).float()

    def _step(self, indices: npt.NDArray[np.int64], share: float) -> float:
        """One step at `share` (0 to 1) of the way; its loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * min(1.0, share / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * share))
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, len(indices), self._part):
            part = indices[start : start + self._part]
            images = self._views(part)
            with torch.no_grad():
                wanted = self._teacher(images, quantised=False)
            loss = _divergence(self._network(images), wanted, self.options.temperature) / len(indices)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        self._optimizer.step()
        return total

    def _views(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """The images, half of them mirrored.

        Also where a mirrored image is of another class or of none: the teacher is asked about this very view,
        so a function is matched and no class is claimed (Beyer et al. 2022).
        """
        images = self._batch(indices)
        mirrored = torch.from_numpy(self._random.random(len(indices)) < 0.5)
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)

    def _judged(self) -> float:
        """Mean KL(fp32 || int8), at temperature 1, over the images held out."""
        with torch.no_grad():
            parts = zip(self._judges, self._expected, strict=True)
            total = sum(float(_divergence(self._network(self._batch(part)), wanted)) for part, wanted in parts)
        return total / sum(len(part) for part in self._judges)


def _divergence(given: torch.Tensor, wanted: torch.Tensor, heat: float = 1.0) -> torch.Tensor:
    """Sum over images of KL(wanted || given) at a temperature, times its square to keep gradients alike."""
    expected = functional.log_softmax(wanted / heat, dim=1)
    found = functional.log_softmax(given / heat, dim=1)
    return functional.kl_div(found, expected, reduction="sum", log_target=True) * heat**2


def _affordable(planned: int, seconds: float, budget: float) -> int:
    """`planned` steps of `seconds` each, halved until they fit: halving, so that runs on one machine mostly agree."""
    steps = planned
    while steps > _TIMED and steps * seconds > budget:
        steps //= 2
    return steps
