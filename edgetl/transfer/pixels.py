"""Each image is decoded and resized once, before training starts: corrupt ones are found here, not in epoch 3.

Images are kept after the resize and before the crop, so that augmentation still has all of them. They lie in
one file that is read with pread: memory stays flat however many there are. Past a size limit images are
decoded again when they are needed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgetl.errors import CorruptImage, disk_errors
from edgetl.images import Sample, decode, fitted, prefetched, read_sample, resized
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Preprocess

LIMIT_BYTES = 8 << 30
_CHUNK = 64
Pixels = npt.NDArray[np.uint8]


class PixelStore:
    """The resized pixels of every image by content digest; what a killed run stored is taken over.

    The index is one JSON line an image and is written after the pixels it speaks of, so a torn last line or
    a tail of unindexed pixels is dropped when the store is opened again.
    """

    def __init__(self, folder: Path, root: Path, spec: Preprocess, limit_bytes: int = LIMIT_BYTES) -> None:
        self._root = root
        self._spec = spec
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._index_file = folder / "pixels.jsonl"
            self._data = os.open(folder / "pixels.bin", os.O_RDWR | os.O_CREAT, 0o644)
        self._limit = min(limit_bytes, shutil.disk_usage(folder).free // 2)
        self._index: dict[str, dict[str, Any]] = {}
        self._end = 0
        self._take_over()

    def _take_over(self) -> None:
        lines = self._index_file.read_bytes().split(b"\n") if self._index_file.is_file() else [b""]
        whole = lines[:-1]  # what follows the last newline was torn
        for line in whole:
            entry = json.loads(line)
            self._index[entry["digest"]] = entry
            self._end = max(self._end, entry.get("offset", 0) + entry["height"] * entry["width"] * 3)
        if len(lines) > 1 or lines[-1]:
            with self._index_file.open("wb") as stream:
                stream.writelines(line + b"\n" for line in whole)
        os.ftruncate(self._data, self._end)

    def fill(
        self,
        samples: Sequence[Sample],
        skip_corrupt: bool,
        monitor: Monitor = SILENT,
        on_image: Callable[[Sample, Pixels], None] = lambda sample, pixels: None,
    ) -> dict[str, CorruptImage]:
        """Decode all `samples` that are not there yet; returns the corrupt ones by digest.

        `on_image` is shown each image as it is decoded, by several threads.
        Raises CorruptImage at the first one unless `skip_corrupt`, DataError for a missing or changed file.
        """
        corrupt: dict[str, CorruptImage] = {}
        missing = list({s.digest: s for s in samples if s.digest not in self._index}.values())
        done = len(samples) - len(missing)

        def load(sample: Sample) -> Pixels:
            try:
                pixels = self._decode(sample)
            except CorruptImage as error:
                if not skip_corrupt:
                    raise
                corrupt[sample.digest] = error
                return np.empty((0, 0, 3), np.uint8)
            on_image(sample, pixels)
            return pixels

        with disk_errors(self._index_file), self._index_file.open("ab") as index:
            for chunk, images in prefetched(missing, _CHUNK, load):
                entries = [
                    self._store(s, image) for s, image in zip(chunk, images, strict=True) if s.digest not in corrupt
                ]
                index.write(b"".join(json.dumps(e).encode() + b"\n" for e in entries))
                index.flush()
                done += len(chunk)
                monitor.progress("decode", done, len(samples))
        return corrupt

    def _store(self, sample: Sample, image: Pixels) -> dict[str, Any]:
        entry: dict[str, Any] = {"digest": sample.digest, "height": 0, "width": 0}
        if self._end + image.nbytes <= self._limit:
            if os.pwrite(self._data, image.tobytes(), self._end) != image.nbytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._index_file))
            entry.update(offset=self._end, height=image.shape[0], width=image.shape[1])
            self._end += image.nbytes
        self._index[sample.digest] = entry
        return entry

    def _decode(self, sample: Sample) -> Pixels:
        path = self._root / sample.path
        return np.asarray(resized(decode(read_sample(self._root, sample), path), self._spec), dtype=np.uint8)

    def image(self, sample: Sample) -> Pixels:
        """uint8 (H, W, 3): the image after the resize, before its crop."""
        entry = self._index.get(sample.digest, {})
        if "offset" not in entry:
            return self._decode(sample)
        pixels = np.empty((entry["height"], entry["width"], 3), np.uint8)
        os.preadv(self._data, [pixels], entry["offset"])  # type: ignore[list-item]  # an array is a Buffer
        return pixels

    def inputs(self, samples: Sequence[Sample]) -> Pixels:
        """uint8 (B, S, S, 3): exactly what `images.to_input` gives for these samples."""
        return np.stack([np.asarray(fitted(Image.fromarray(self.image(s)), self._spec)) for s in samples])

    def close(self) -> None:
        """Close the file; the folder stays."""
        os.close(self._data)
