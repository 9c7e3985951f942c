"""Each image is decoded and resized once, and read back from one file ever after.

Images are kept after the resize and before the crop, so that augmentation still has all of them. They lie in
a file that is read with pread: memory stays flat however many there are. Past a size limit images are
decoded again when they are needed.

A small set is decoded before training starts, so that a corrupt image shows within seconds. A large one is decoded as
its images are first asked for, and by threads that run ahead of the training.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Lock, Thread
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetl.errors import CorruptImage, EdgetlError, disk_errors
from edgetl.images import Sample, decode, fitted, prefetched, read_sample, resized
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Preprocess

LIMIT_BYTES = 8 << 30
_CHUNK = 64
_NOT_KEPT = -1  # the offset of an image that was decoded once but found no room
Pixels = npt.NDArray[np.uint8]
OnImage = Callable[[Sample, Pixels], None]


class _Place(NamedTuple):
    """Where an image's pixels are: an open file, the offset there (or _NOT_KEPT), and their size."""

    file: int
    offset: int
    height: int
    width: int


class PixelStore:
    """The resized pixels of every image by content digest; what a killed run stored is taken over.

    The index is one JSON line an image and is written after the pixels it speaks of, so a torn last line or
    a tail of unindexed pixels is dropped when the store is opened again. Each of several processes (`process` of
    `processes`) writes files of its own and reads everyone's. Threads may use one store at once.
    """

    def __init__(
        self,
        folder: Path,
        root: Path,
        spec: Preprocess,
        limit_bytes: int = LIMIT_BYTES,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self._folder, self._root, self._spec = folder, root, spec
        self._places: dict[str, _Place] = {}
        self._others: dict[Path, _Reader] = {}
        self._lock = Lock()
        self._own = folder / (f"pixels-{process}.jsonl" if process else "pixels.jsonl")
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._data = os.open(self._own.with_suffix(".bin"), os.O_RDWR | os.O_CREAT, 0o644)
            self._index = os.open(self._own, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._limit = min(limit_bytes, shutil.disk_usage(folder).free // 2) // processes
        self._end = 0
        self._take_over()
        self.refresh()
        self._behind: Thread | None = None
        self._stop = Event()
        self._wrong: EdgetlError | None = None  # what was found behind the training's back

    def _take_over(self) -> None:
        own = _Reader(self._own, self._data)
        for digest, place in own.news():
            self._places[digest] = place
            self._end = max(self._end, place.offset + place.height * place.width * 3)
        os.ftruncate(self._index, own.read)  # what follows the last newline was torn
        os.ftruncate(self._data, self._end)

    def refresh(self) -> None:
        """Take note of what other processes have stored since."""
        for path in sorted(self._folder.glob("pixels*.jsonl")):
            if path != self._own:
                if path not in self._others:
                    self._others[path] = _Reader(path, os.open(path.with_suffix(".bin"), os.O_RDONLY))
                for digest, place in self._others[path].news():
                    self._places.setdefault(digest, place)

    def fill(
        self,
        samples: Sequence[Sample],
        skip_corrupt: bool,
        monitor: Monitor = SILENT,
        on_image: OnImage = lambda sample, pixels: None,
    ) -> dict[str, CorruptImage]:
        """Decode all `samples` that are not there yet; returns the corrupt ones by digest.

        `on_image` is shown each image as it is decoded, by several threads.
        Raises CorruptImage at the first one unless `skip_corrupt`, DataError for a missing or changed file.
        """
        corrupt: dict[str, CorruptImage] = {}
        missing = self._missing(samples)
        done = len(samples) - len(missing)

        def load(sample: Sample) -> None:
            try:
                pixels = self._decode(sample)
            except CorruptImage as error:
                if not skip_corrupt:
                    raise
                corrupt[sample.digest] = error
                return
            self._keep(sample.digest, pixels)
            on_image(sample, pixels)

        for chunk, _ in prefetched(missing, _CHUNK, load):
            done += len(chunk)
            monitor.progress("decode", done, len(samples))
        return corrupt

    def fill_behind(self, samples: Sequence[Sample], on_image: OnImage = lambda sample, pixels: None) -> None:
        """Decode `samples` in their order while the caller goes on; `on_image` is shown each, by several threads.

        What is wrong with one of them is raised by the next call of `image`, whatever that asks for.
        """
        assert self._behind is None

        def load(sample: Sample) -> None:
            if not self._stop.is_set():
                on_image(sample, self.image(sample))

        def work() -> None:
            try:
                for _ in prefetched(list({s.digest: s for s in samples}.values()), _CHUNK, load):
                    if self._stop.is_set():
                        return
            except EdgetlError as error:
                self._wrong = error

        self._behind = Thread(target=work, name="edgetl-decode-behind")
        self._behind.start()

    def settle(self) -> None:
        """Wait for what is decoded behind; raises what was wrong with it."""
        if self._behind is not None:
            self._behind.join()
        if self._wrong is not None:
            raise self._wrong

    def _missing(self, samples: Sequence[Sample]) -> list[Sample]:
        return list({s.digest: s for s in samples if s.digest not in self._places}.values())

    def _keep(self, digest: str, image: Pixels) -> None:
        with self._lock, disk_errors(self._own):
            if digest in self._places:
                return
            place = _Place(self._data, _NOT_KEPT, 0, 0)
            if self._end + image.nbytes <= self._limit:
                place = _Place(self._data, self._end, *image.shape[:2])
                if os.pwrite(self._data, image.tobytes(), self._end) != image.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._own))
                self._end += image.nbytes
            line = json.dumps({"digest": digest, "place": place[1:]}).encode() + b"\n"
            written = os.write(self._index, line)
            if written != len(line):  # a torn line would spoil the next one, which another thread may be about to write
                os.ftruncate(self._index, os.fstat(self._index).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._own))
            self._places[digest] = place

    def _decode(self, sample: Sample) -> Pixels:
        path = self._root / sample.path
        return np.asarray(resized(decode(read_sample(self._root, sample), path), self._spec), dtype=np.uint8)

    def image(self, sample: Sample) -> Pixels:
        """uint8 (H, W, 3): the image after the resize, before its crop.

        Raises CorruptImage, or DataError for a missing or changed file.
        """
        if self._wrong is not None:
            raise self._wrong
        place = self._places.get(sample.digest)
        if place is None or place.offset == _NOT_KEPT:
            decoded = np.array(self._decode(sample))
            self._keep(sample.digest, decoded)
            return decoded
        pixels = np.empty((place.height, place.width, 3), np.uint8)
        os.preadv(place.file, [pixels], place.offset)  # type: ignore[list-item]  # an array is a Buffer
        return pixels

    def inputs(self, samples: Sequence[Sample]) -> Pixels:
        """uint8 (B, S, S, 3): exactly what `images.to_input` gives for these samples."""
        return np.stack([np.asarray(fitted(Image.fromarray(self.image(s)), self._spec)) for s in samples])

    def close(self) -> None:
        """End the threads and close the files; the folder stays."""
        self._stop.set()
        if self._behind is not None:
            self._behind.join()
        for file in (self._data, self._index, *(reader.data for reader in self._others.values())):
            os.close(file)


class _Reader:
    """The lines of an index that are whole, each once. `data` is the open file that they speak of."""

    def __init__(self, path: Path, data: int) -> None:
        self._path, self.data = path, data
        self.read = 0  # bytes

    def news(self) -> Iterator[tuple[str, _Place]]:
        """(digest, place) of the lines that were not there at the last call."""
        with self._path.open("rb") as stream:
            stream.seek(self.read)
            for line in stream:
                if line.endswith(b"\n"):
                    self.read += len(line)
                    entry = json.loads(line)
                    yield entry["digest"], _Place(self.data, *entry["place"])
