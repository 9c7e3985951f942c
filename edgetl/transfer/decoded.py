"""Images decoded once for several networks that want the same pixels; they wait in a file that has no name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetl.errors import CorruptImage, DataError, disk_errors
from edgetl.images import Sample, prefetched, read_sample, to_input
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Preprocess

_CHUNK = 64
Pixels = npt.NDArray[np.uint8]


class Decoded:
    """Pixels of images below `root`, each decoded when it is first asked for. Memory stays flat.

    The file is deleted by the system when the process ends, however it ends.
    """

    def __init__(self, root: Path, preprocess: Preprocess) -> None:
        self._root = root
        self._preprocess = preprocess
        self._shape = (preprocess.size, preprocess.size, 3)
        with disk_errors(tempfile.gettempdir()):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  # open for as long as this object lives
        self._places: dict[str, int] = {}

    def inputs(self, samples: Sequence[Sample]) -> Pixels:
        """uint8 (B, S, S, 3): what `images.to_input` gives. Raises CorruptImage, DataError, DiskError."""
        new = list({s.digest: s for s in samples if s.digest not in self._places}.values())
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for sample, pixels in zip(new, pool.map(self._decode, new), strict=True):
                self._keep(sample, pixels)
        out = np.empty((len(samples), *self._shape), np.uint8)
        for row, sample in zip(out, samples, strict=True):
            place = self._places[sample.digest] * row.nbytes
            os.preadv(self._file.fileno(), [row], place)  # type: ignore[list-item]  # an array is a Buffer
        return out

    def sound(self, samples: Sequence[Sample], monitor: Monitor = SILENT) -> list[Sample]:
        """`samples` without those that cannot be decoded, which are named. Raises DataError where none is left."""
        broken: dict[str, CorruptImage] = {}

        def load(sample: Sample) -> Pixels | None:
            try:
                return self._decode(sample)
            except CorruptImage as error:
                broken[sample.digest] = error
                return None

        missing = [s for s in {s.digest: s for s in samples}.values() if s.digest not in self._places]
        done = 0
        for chunk, found in prefetched(missing, _CHUNK, load):
            for sample, pixels in zip(chunk, found, strict=True):
                if pixels is not None:
                    self._keep(sample, pixels)
            done += len(chunk)
            monitor.progress("decode", done, len(missing))
        for error in broken.values():
            monitor.warn(f"left out: {error}")
        out = [s for s in samples if s.digest not in broken]
        if not out:
            raise DataError("none of the images can be decoded", self._root, "look at the first of them")
        return out

    def _decode(self, sample: Sample) -> Pixels:
        return to_input(read_sample(self._root, sample), self._preprocess, self._root / sample.path)

    def _keep(self, sample: Sample, pixels: Pixels) -> None:
        place = len(self._places)
        with disk_errors(tempfile.gettempdir()):
            os.pwrite(self._file.fileno(), np.ascontiguousarray(pixels).data, place * pixels.nbytes)
        self._places[sample.digest] = place
