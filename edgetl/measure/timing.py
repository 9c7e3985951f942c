"""Latency of backends that are open: from the array, and from the encoded bytes, all in one rotation. Python 3.8."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edgetl.images import Sample, read_sample, to_batch, to_input
from edgetl.measure.latency import Clock, Effort, Timed, Timing, measure
from edgetl.runtime import Backend
from edgetl.runtime.classify import softmax
from edgetl.spec import Preprocess
from edgetl.stats import Summary, percentiles

if TYPE_CHECKING:
    import numpy.typing as npt

POOL = 32  # encoded images that the timed calls cycle through


@dataclass(frozen=True)
class Times:
    """Of one backend at one batch size, milliseconds a batch; `steady`: its warm-up came to rest.

    `device_ms`: the GPU's own time by events, None on a CPU.
    """

    latency_ms: Summary
    end_to_end_ms: Summary
    device_ms: Optional[Summary]
    throughput_ips: float
    steady: bool


def encoded_pool(root: Path, samples: Sequence[Sample]) -> List[bytes]:
    """The bytes of at most POOL images, spread evenly over the samples (which are in class order)."""
    count = min(POOL, len(samples))
    picks = [samples[i * len(samples) // count] for i in range(count)]
    return [read_sample(root, sample) for sample in picks]


def time_backends(
    backends: Mapping[str, Backend], pool: Sequence[bytes], spec: Preprocess, batch: int, effort: Effort, clock: Clock
) -> Tuple[Dict[str, Times], Dict[str, Exception]]:
    """Times by name, and the error of each backend that failed, on batches of `batch` images."""
    calls: Dict[str, Timed] = {}
    for name, backend in backends.items():
        calls["array " + name] = Timed(_from_array(backend, pool, spec, batch), backend.device_ms)
        calls["bytes " + name] = Timed(_from_bytes(backend, pool, spec, batch))
    seen = measure(calls, effort, clock)
    times: Dict[str, Times] = {}
    failed: Dict[str, Exception] = {}
    for name in backends:
        array, end_to_end = seen["array " + name], seen["bytes " + name]
        error = array.error or end_to_end.error
        if error is not None:
            failed[name] = error
        else:
            times[name] = _times(array, end_to_end, batch)
    return times, failed


def _times(array: Timing, end_to_end: Timing, batch: int) -> Times:
    return Times(
        latency_ms=percentiles(array.wall_ms),
        end_to_end_ms=percentiles(end_to_end.wall_ms),
        device_ms=percentiles(array.device_ms) if array.device_ms else None,
        throughput_ips=batch * len(array.wall_ms) / (sum(array.wall_ms) / 1000.0),
        steady=array.steady and end_to_end.steady,
    )


def _from_array(backend: Backend, pool: Sequence[bytes], spec: Preprocess, batch: int) -> Callable[[], object]:
    pixels = np.stack([to_input(data, spec) for data in itertools.islice(itertools.cycle(pool), batch)])
    given = to_batch(pixels, backend.input.dtype)
    return lambda: backend.run(given)


def _from_bytes(backend: Backend, pool: Sequence[bytes], spec: Preprocess, batch: int) -> Callable[[], object]:
    """What an application does for a batch: decode, resize, arrange, run, softmax."""
    images: Iterator[bytes] = itertools.cycle(pool)

    def run() -> npt.NDArray[np.float64]:
        pixels = np.stack([to_input(next(images), spec) for _ in range(batch)])
        return softmax(backend.run(to_batch(pixels, backend.input.dtype)))

    return run
