"""The training loop: the graph with fake quantisers learns to answer as the fp32 graph does. No labels.

Straight-through gradients with clipping (Jacob et al. 2018), distillation by KL divergence at a temperature
(Hinton et al. 2015, section 2), Adam, cosine learning rate. Nothing is written but scratch files.
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
from edgetl.graph.pixels import Pixels, logits_of
from edgetl.graph.placement import Placement
from edgetl.graph.qat.network import GraphNetwork
from edgetl.graph.qat.options import QatOptions
from edgetl.images import to_batch
from edgetl.monitor import SILENT, Monitor
from edgetl.runtime.ort import OrtBackend

_HELD_OUT = 10  # every tenth image judges and is not trained on
_JUDGES = 256  # of them at most: judging should cost a fraction of the training
_LOOKS = 8  # how often it is judged, evenly spread over the steps
_TIMED = 4  # steps that tell how long the others will take
_STEP_BYTES = 512 << 20  # of activations kept for the backward pass; a larger batch is fed in parts
_SMALLEST_SPREAD = 1e-3  # of logits: below it a network is constant and rounding is all there is
_SAME = 1e-3  # of the spread of the logits: PyTorch and onnxruntime differ by rounding only
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """`source`: the source graph with other weights (None: training did not help), and the `record` of the run.

    `ranges` of the activations are those that were trained with.
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
    images of the target, labels unused; every tenth is held out to choose the best step by. The same
    arguments and thread count give the same bits, unless `options.minutes` cut the steps short (then the
    record says so). Raises InputError for too few images, GraphError for an operator it does not know.
    """
    options = options or QatOptions()
    if pixels.n < 2 * _HELD_OUT:
        raise InputError("too few images for quantisation-aware training", pixels.n, f"give at least {2 * _HELD_OUT}")
    started = time.monotonic()
    with _threads(options.threads):
        network = GraphNetwork(source, placement, amax)
        _check(network, _answers(source, pixels.head(2), options.threads, SILENT), pixels)
        answers = _answers(teacher, pixels, options.threads, monitor)
        run = _Run(network, GraphNetwork(teacher, Placement({}, {}, ()), {}), pixels, answers, options, monitor)
        better = run.train()
        out = network.written(source) if better else None
    record = {**run.record, "seconds": round(time.monotonic() - started, 3)}
    return Trained(out, dict(amax), record)


def _answers(graph: onnx.ModelProto, pixels: Pixels, threads: int, monitor: Monitor) -> Floats:
    """Logits of a float graph by onnxruntime, which is faster than PyTorch."""
    path = surgery.save(graph, pixels.path.with_name("teacher.onnx"))
    backend = OrtBackend(path, threads=threads)
    try:
        return logits_of(backend, pixels, monitor, "qat: fp32")
    finally:
        backend.close()
        path.unlink()


def _check(network: GraphNetwork, expected: Floats, pixels: Pixels) -> None:
    """Raise GraphError unless the network says in fp32 what onnxruntime says of its graph."""
    batch = to_batch(pixels.first(len(expected)), "float32")
    with torch.no_grad():
        given = network(torch.from_numpy(batch), quantised=False).numpy()
    away, spread = float(np.abs(given - expected).max()), float(np.ptp(expected))
    if not away <= _SAME * max(spread, _SMALLEST_SPREAD):
        raise GraphError(
            "the graph computes otherwise in PyTorch, so it cannot be trained",
            f"logits are {away:.2g} apart, their spread is {spread:.2g}",
            "use --rescue exclude",
        )


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """One training run of `network`; `logits` float32 (n, C) are the fp32 graph's answers."""

    def __init__(
        self,
        network: GraphNetwork,
        teacher: GraphNetwork,
        pixels: Pixels,
        logits: Floats,
        options: QatOptions,
        monitor: Monitor,
    ) -> None:
        self.network, self.options, self.monitor = network, options, monitor
        self._teacher = teacher
        self._images = np.memmap(pixels.path, np.uint8, "r", shape=(pixels.n, *pixels.first(1).shape[1:]))
        self._logits = torch.from_numpy(logits)
        self._judges = np.arange(0, pixels.n, _HELD_OUT)[:_JUDGES]
        self._learned = np.setdiff1d(np.arange(pixels.n), np.arange(0, pixels.n, _HELD_OUT))
        self._optimizer = torch.optim.Adam(network.parameters(), lr=options.lr)
        self._random = np.random.default_rng(options.seed)
        self._part = 1
        self.record: dict[str, Any] = {}

    def train(self) -> bool:
        """Whether the network is now better than it was, by the divergence on the images held out."""
        options = self.options
        first = best = self._judged()
        kept = self._state()
        planned = steps = max(1, options.epochs * len(self._learned) // options.batch)
        order = self._batches()
        done, loss = 0, math.nan
        self._fit_to_memory()
        started = time.monotonic()
        while done < steps:
            loss = self._step(next(order), done / steps)
            done += 1
            if done == _TIMED:
                steps = _affordable(planned, (time.monotonic() - started) / done, options.minutes * 60)
            if not math.isfinite(loss):
                break  # a learning rate far too high: what was best before is kept
            self.monitor.progress("qat", done, steps)
            if done % max(1, steps // _LOOKS) == 0 or done == steps:
                now = self._judged()
                if now < best:
                    best, kept = now, self._state()
        self._restore(kept)
        self._remember(planned, done, loss, first, best)
        return best < first

    def _remember(self, planned: int, done: int, loss: float, first: float, best: float) -> None:
        self.record = {
            "options": asdict(self.options),
            "images": len(self._learned),
            "held_out": len(self._judges),
            "steps": done,
            "cut_short": done < planned,
            "loss": loss if math.isfinite(loss) else None,
            "kl_before": first,
            "kl_after": best,
            "versions": {"torch": version("torch")},
        }

    def _state(self) -> list[torch.Tensor]:
        return [change.detach().clone() for change in self.network.changes]

    def _restore(self, state: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for change, value in zip(self.network.changes, state, strict=True):
                change.copy_(value)

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
        return torch.from_numpy(self._images[indices]).permute(0, 3, 1, 2).float()

    def _fit_to_memory(self) -> None:
        """How many images go through at once: a number that depends on the graph alone, so that bits do not."""
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            self.network(self._batch(self._learned[:1]))
        self._part = int(np.clip(_STEP_BYTES // max(kept, 1), 1, self.options.batch))

    def _step(self, indices: npt.NDArray[np.int64], share: float) -> float:
        """One step at `share` (0 to 1) of the way; its loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.options.lr * 0.5 * (1 + math.cos(math.pi * share))
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for start in range(0, len(indices), self._part):
            part = indices[start : start + self._part]
            images = self._views(part)
            with torch.no_grad():
                wanted = self._teacher(images, quantised=False)
            loss = self._divergence(self.network(images), wanted) / len(indices)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        self._optimizer.step()
        return total

    def _views(self, indices: npt.NDArray[np.int64]) -> torch.Tensor:
        """The images, each mirrored or not and mixed with another: the teacher is asked about these very views.

        A function is matched and no class is claimed, so a view need not make sense (Beyer et al. 2022).
        """
        images = self._batch(indices)
        mirrored = torch.from_numpy(self._random.random(len(indices)) < 0.5)
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        others = self._batch(self._random.choice(self._learned, len(indices)))
        share = torch.from_numpy(self._random.uniform(0.5, 1.0, len(indices)).astype(np.float32))
        return torch.lerp(others, images, share[:, None, None, None])

    def _divergence(self, given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Sum over images of KL(wanted || given) at the temperature, times its square to keep gradients alike."""
        heat = self.options.temperature
        expected = functional.log_softmax(wanted / heat, dim=1)
        found = functional.log_softmax(given / heat, dim=1)
        return functional.kl_div(found, expected, reduction="sum", log_target=True) * heat**2

    def _judged(self) -> float:
        """Mean KL(fp32 || int8), at temperature 1, over the images held out."""
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(self._judges), 8):
                part = self._judges[start : start + 8]
                found = functional.log_softmax(self.network(self._batch(part)), dim=1)
                wanted = functional.log_softmax(self._logits[part], dim=1)
                total += float(functional.kl_div(found, wanted, reduction="sum", log_target=True))
        return total / len(self._judges)


def _affordable(planned: int, seconds: float, budget: float) -> int:
    """`planned` steps of `seconds` each, halved until they fit: halving, so that runs on one machine mostly agree."""
    steps = planned
    while steps > _TIMED and steps * seconds > budget:
        steps //= 2
    return steps
