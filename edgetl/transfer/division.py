"""One more division of images that are there already: the same pixels and features, a network of its own."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgetl.images import Dataset, Sample
from edgetl.monitor import Monitor
from edgetl.transfer import blocks
from edgetl.transfer.run import Known, Run


class Within(Monitor):
    """A part of a longer piece of work: its lines and bars say which."""

    def __init__(self, inner: Monitor, part: str) -> None:
        self._inner, self._part = inner, part

    def progress(self, what: str, done: int, total: int) -> None:
        """The inner monitor's, named after the part."""
        self._inner.progress(f"{self._part}: {what}", done, total)

    def say(self, line: str) -> None:
        """The inner monitor's."""
        self._inner.say(f"{self._part}: {line}")

    def warn(self, line: str) -> None:
        """The inner monitor's."""
        self._inner.warn(f"{self._part}: {line}")


def known(run: Run) -> Known:
    """The frozen backbone's features of every image of the run, each of which passes through it once.

    train and val come first and apart, in the batches of a run without divisions: the same bits.
    """
    parts: tuple[Sequence[Sample], ...] = (
        (*run.data.split("train"), *run.data.split("val")),
        run.data.split("test"),
    )
    files = ("features.f32", "features-test.f32")
    began = time.perf_counter()
    values = [run.headless(run.folder / file, part) for file, part in zip(files, parts, strict=True) if part]
    run.images_per_second = sum(map(len, parts)) / (time.perf_counter() - began)
    rows = {sample.digest: row for row, sample in enumerate(sample for part in parts for sample in part)}
    return Known(blocks.stacked(values, run.folder), rows)


def divided(run: Run, data: Dataset, folder: Path, part: str) -> Run:
    """A run on another division, `data`, of the images of `run`, which must have its `known` features."""
    folder.mkdir(parents=True, exist_ok=True)
    start = replace(run.start, network=copy.deepcopy(run.start.network))
    return Run(data, start, run.options, folder, run.store, Within(run.monitor, part), known=run.known, group=run.group)
