"""Latency of backends that are open: from the array, and from the encoded bytes, all in one rotation. Python 3.8."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edgetl.images import Sample, decode, fitted, read_sample, resized, to_batch, to_input
from edgetl.measure.latency import Clock, Effort, Timed, Timing, measure
from edgetl.measure.turns import Intervals, as_json, intervals, split
from edgetl.runtime import Backend
from edgetl.runtime.classify import softmax
from edgetl.spec import Preprocess
from edgetl.stats import Summary, percentiles

if TYPE_CHECKING:
    import numpy.typing as npt

POOL = 32  # encoded images that the timed calls cycle through


@dataclass(frozen=True)
class Times:
    """Of one backend at one batch size, milliseconds a batch, by three clocks; `steady`: its warm-up came to rest.

    `latency_ms`: array to array. `end_to_end_ms`: from the encoded bytes in memory to probabilities; its `parts_ms` are
    the medians of "decode", "resize" and "run". `device_ms`: the GPU's own time by events, None on a CPU.
    `turns`: the array-to-array runs by turn, for turns.ratio. `intervals`: of each summary's percentiles, by its name.
    """

    latency_ms: Summary
    end_to_end_ms: Summary
    device_ms: Optional[Summary]
    throughput_ips: float
    steady: bool
    turns: Sequence[Sequence[float]] = ()
    parts_ms: Optional[Dict[str, float]] = None
    intervals: Mapping[str, Intervals] = field(default_factory=dict)

    def as_row(self) -> Dict[str, Any]:
        """The figures of a bench row."""
        return {
            "latency_ms": self.latency_ms,
            "device_ms": self.device_ms,
            "end_to_end_ms": self.end_to_end_ms,
            "end_to_end_parts_ms": self.parts_ms,
            "throughput_ips": self.throughput_ips,
            **{name.replace("_ms", "_ci_ms"): as_json(found) for name, found in self.intervals.items()},
        }


def encoded_pool(root: Path, samples: Sequence[Sample]) -> List[bytes]:
    """The bytes of at most POOL images, spread evenly over the samples (which are in class order)."""
    count = min(POOL, len(samples))
    picks = [samples[i * len(samples) // count] for i in range(count)]
    return [read_sample(root, sample) for sample in picks]


def time_backends(
    backends: Mapping[str, Backend],
    pool: Sequence[bytes],
    spec: Preprocess,
    batch: int,
    effort: Effort,
    clock: Clock,
    between: Callable[[], object] = lambda: None,
) -> Tuple[Dict[str, Times], Dict[str, Exception]]:
    """Times by name, and the error of each backend that failed, on batches of `batch` images; see latency.measure."""
    calls: Dict[str, Timed] = {}
    whole = {name: FromBytes(backend, pool, spec, batch, clock) for name, backend in backends.items()}
    for name, backend in backends.items():
        calls["array " + name] = Timed(from_array(backend, pool, spec, batch), backend.device_ms)
        calls["bytes " + name] = Timed(whole[name])
    seen = measure(calls, effort, clock, between)
    times: Dict[str, Times] = {}
    failed: Dict[str, Exception] = {}
    for name in backends:
        array, end_to_end = seen["array " + name], seen["bytes " + name]
        error = array.error or end_to_end.error
        if error is not None:
            failed[name] = error
        else:
            times[name] = _times(array, end_to_end, whole[name], batch)
    return times, failed


def _times(array: Timing, end_to_end: Timing, whole: FromBytes, batch: int) -> Times:
    runs = {"latency_ms": (array.wall_ms, array.turns), "end_to_end_ms": (end_to_end.wall_ms, end_to_end.turns)}
    if array.device_ms:
        runs["device_ms"] = (array.device_ms, array.turns)
    by_turn = {name: split(values, lengths) for name, (values, lengths) in runs.items()}
    return Times(
        latency_ms=percentiles(array.wall_ms),
        end_to_end_ms=percentiles(end_to_end.wall_ms),
        device_ms=percentiles(array.device_ms) if array.device_ms else None,
        throughput_ips=batch * len(array.wall_ms) / (sum(array.wall_ms) / 1000.0),
        steady=array.steady and end_to_end.steady,
        turns=by_turn["latency_ms"],
        parts_ms=whole.parts_ms(end_to_end.warmup_runs),
        intervals={name: intervals(turns) for name, turns in by_turn.items()},
    )


def from_array(backend: Backend, pool: Sequence[bytes], spec: Preprocess, batch: int) -> Callable[[], object]:
    """A run of `batch` images that lie ready as the graph's input: host array in, host array out."""
    pixels = np.stack([to_input(data, spec) for data in itertools.islice(itertools.cycle(pool), batch)])
    given = to_batch(pixels, backend.input.dtype)
    return lambda: backend.run(given)


class FromBytes:
    """What an application does for a batch, from bytes in memory: decode, resize and crop, then arrange, run, softmax.

    The pixels are those of images.to_input, whose steps these are.
    """

    def __init__(self, backend: Backend, pool: Sequence[bytes], spec: Preprocess, batch: int, clock: Clock) -> None:
        self._backend, self._spec, self._batch, self._clock = backend, spec, batch, clock
        self._images: Iterator[bytes] = itertools.cycle(pool)
        self._parts: List[Tuple[float, float, float]] = []

    def __call__(self) -> npt.NDArray[np.float64]:
        """Probabilities (batch, C)."""
        start = self._clock()
        images = [decode(next(self._images)) for _ in range(self._batch)]
        decoded = self._clock()
        pixels = np.stack([np.asarray(fitted(resized(image, self._spec), self._spec)) for image in images])
        placed = self._clock()
        out = softmax(self._backend.run(to_batch(pixels, self._backend.input.dtype)))
        self._parts.append((decoded - start, placed - decoded, self._clock() - placed))
        return out

    def parts_ms(self, skip: int) -> Dict[str, float]:
        """Median milliseconds of each part, but for the first `skip` runs."""
        medians = np.median(np.array(self._parts[skip:]), axis=0) * 1000.0
        return dict(zip(("decode", "resize", "run"), (float(value) for value in medians)))
