"""Features on disk by content: a frozen backbone sees an image once, whatever command or process asks for it again.

    <cache>/features/<key>/
      meta.json       what the features are of: format, the whole model key, their number D
      features.f32    float32 rows of D
      index.bin       a row each: sha256 of the image, crc32 of its features

A row is indexed after it was written, under a lock. So what a killed process leaves is a tail without an index, which
the next writer cuts off; and what a power cut made of a row is known by its checksum, and computed again.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgetl.bundle import atomic_json, canonical_json, locked, read_json
from edgetl.errors import BundleError, DiskError, disk_errors
from edgetl.images import Sample
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Preprocess
from edgetl.transfer.features import BATCH, Floats, Inputs, Pixels, to_device

FORMAT = 1
LIMIT_BYTES = 20 << 30  # of the whole cache; beyond it the features that were longest not asked for go
_INDEX = np.dtype([("digest", "V32"), ("crc", "<u4")])


def cache_folder() -> Path:
    """$EDGETL_CACHE, or ~/.cache/edgetl."""
    return Path(os.environ.get("EDGETL_CACHE") or "~/.cache/edgetl").expanduser()


def model_key(
    model: nn.Module,
    backbone: str,
    preprocess: Preprocess,
    arguments: Mapping[str, Any] | None = None,
    layer: str = "input of the head",
) -> str:
    """What features depend on, as one line of JSON: backbone and arguments, weights, preprocessing, layer, torch.

    `model` without its head (backbones.headless): the sha256 is over the weights that take part and nothing else, so
    a classifier that came with a file makes no difference.
    """
    digest = sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    facts = {
        "backbone": backbone,
        "arguments": dict(arguments or {}),
        "weights": digest.hexdigest(),
        "preprocess": preprocess.to_json(),
        "layer": layer,
        "torch": torch.__version__,
    }
    return canonical_json(facts).decode()


class FeatureStore:
    """Features of images by (model key, device, image digest). Several processes may use one folder at a time."""

    def __init__(self, folder: Path | None = None, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = (folder or cache_folder()) / "features"
        self._limit = limit_bytes

    def features(
        self,
        model: nn.Module,
        model_key: str,
        samples: Sequence[Sample],
        inputs: Inputs,
        device: torch.device,
        what: str = "features",
        monitor: Monitor = SILENT,
    ) -> Floats:
        """float32 (N, D) in the order of `samples`; what was not there is computed, and kept as it comes.

        `model` gives features, float32 (B, D), on `device`, and is left in eval mode; `inputs` decodes. Two processes
        that want the same image at once both compute it and one row is kept. Raises DiskError, and what `inputs`
        raises.
        """
        if not samples:
            return np.zeros((0, 0), np.float32)
        entry = _Entry(self._folder, f"{model_key} {device.type}")
        with _cache_errors(self._folder):
            self._prune(keep=entry.folder)
            out, missing = _known(entry, samples)
        done = len(samples) - sum(len(places) for places in missing.values())
        model.eval()
        first = {place[0]: samples[place[0]] for place in missing.values()}
        for chunk, pixels in _ahead(list(first.values()), inputs):
            with torch.inference_mode():
                found = model(to_device(pixels, device)).float().cpu().numpy()
            out = np.empty((len(samples), found.shape[1]), np.float32) if out is None else out
            for sample, row in zip(chunk, found, strict=True):
                out[missing[sample.digest]] = row
                done += len(missing[sample.digest])
            with _cache_errors(self._folder):
                entry.append([s.digest for s in chunk], found)
            monitor.progress(what, done, len(samples))
        assert out is not None
        return out

    def _prune(self, keep: Path) -> None:
        """Remove the entries that were longest not asked for until the cache is within its limit."""
        entries = [e for e in self._folder.glob("*") if (e / "meta.json").is_file()] if self._folder.is_dir() else []
        sizes = {e: sum(f.stat().st_size for f in e.iterdir()) for e in entries}
        total = sum(sizes.values())
        for entry in sorted(entries, key=lambda e: (e / "meta.json").stat().st_mtime):
            if total <= self._limit:
                return
            if entry != keep:
                try:
                    with locked(entry):
                        shutil.rmtree(entry, ignore_errors=True)
                except BundleError:
                    continue  # someone is writing to it: then it is not old
                total -= sizes[entry]


class _Entry:
    """The three files of one model key."""

    def __init__(self, root: Path, key: str) -> None:
        self.key = key
        self.folder = root / sha256(key.encode()).hexdigest()[:32]
        self._meta, self._index, self._rows = (
            self.folder / name for name in ("meta.json", "index.bin", "features.f32")
        )
        self._seen = 0  # rows of the index that this process knows

    def width(self) -> int | None:
        """Features of an image, D; None where there are none yet or the folder is not to be trusted."""
        try:
            meta = read_json(self._meta, "feature cache")
        except BundleError:
            return None
        good = meta.get("format") == FORMAT and meta.get("model") == self.key and isinstance(meta.get("width"), int)
        return int(meta["width"]) if good else None

    def read(self, wanted: Mapping[str, Sequence[int]], out: Floats) -> set[str]:
        """Write the rows of `wanted` (digest -> places in `out`) into `out`; returns the digests that were there."""
        try:
            index = _rows_of(self._index)
            with suppress(OSError):  # a cache that may be read only serves all the same
                os.utime(self._meta)  # asked for: not to be pruned
            rows = os.open(self._rows, os.O_RDONLY)
        except FileNotFoundError:
            return set()
        self._seen = len(index)
        found = set()
        size = out.shape[1] * 4
        try:
            for number, (digest, crc) in enumerate(index):
                name = bytes(digest).hex()
                if name in wanted:
                    row = os.pread(rows, size, number * size)
                    if zlib.crc32(row) == int(crc) and len(row) == size:
                        out[list(wanted[name])] = np.frombuffer(row, np.float32)
                        found.add(name)
        finally:
            os.close(rows)
        return found

    def append(self, digests: Sequence[str], found: Floats) -> None:
        """Add a row for each digest that another process has not added meanwhile."""
        try:
            with locked(self.folder, wait=True):
                self._append(digests, np.ascontiguousarray(found, np.float32))
        except BundleError as error:  # the lock's: it speaks of bundles, this is a cache
            do = "set EDGETL_CACHE to a local disk"
            raise DiskError("the feature cache cannot be locked", error.value, do) from error

    def _append(self, digests: Sequence[str], found: Floats) -> None:
        size = found.shape[1] * 4
        if self.width() != found.shape[1]:  # new, damaged, or of another format
            shutil.rmtree(self.folder, ignore_errors=True)
            atomic_json(self._meta, {"format": FORMAT, "width": found.shape[1], "model": self.key})
        with self._index.open("ab") as index, self._rows.open("ab") as rows:
            whole = min(self._index.stat().st_size // _INDEX.itemsize, self._rows.stat().st_size // size)
            index.truncate(whole * _INDEX.itemsize)
            rows.truncate(whole * size)
            others = _rows_of(self._index, min(self._seen, whole))["digest"]
            there = {bytes(digest).hex() for digest in others}
            new = [(d, row.tobytes()) for d, row in zip(digests, found, strict=True) if d not in there]
            rows.write(b"".join(row for _, row in new))
            rows.flush()
            index.write(b"".join(bytes.fromhex(d) + zlib.crc32(row).to_bytes(4, "little") for d, row in new))
            self._seen = whole + len(new)


@contextmanager
def _cache_errors(folder: Path) -> Iterator[None]:
    try:
        with disk_errors(folder):
            yield
    except DiskError as error:
        raise DiskError(
            error.what, error.value, "set EDGETL_CACHE to a folder with room that may be written"
        ) from error


def _known(entry: _Entry, samples: Sequence[Sample]) -> tuple[Floats | None, dict[str, list[int]]]:
    """(N, D) with the rows that are there (None where none is), and digest -> places of the others."""
    places: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample.digest, []).append(place)
    width = entry.width()
    if width is None:
        return None, places
    out = np.empty((len(samples), width), np.float32)
    there = entry.read(places, out)
    return out if there else None, {digest: found for digest, found in places.items() if digest not in there}


def _ahead(samples: Sequence[Sample], inputs: Inputs) -> Iterator[tuple[Sequence[Sample], Pixels]]:
    """(chunk, its pixels), the next chunk being decoded while the caller is busy with this one."""
    chunks = [samples[i : i + BATCH] for i in range(0, len(samples), BATCH)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(inputs, chunk) for chunk in chunks[:1]]
        for number, chunk in enumerate(chunks):
            pixels = waiting.pop().result()
            if number + 1 < len(chunks):
                waiting.append(pool.submit(inputs, chunks[number + 1]))
            yield chunk, pixels


def _rows_of(index: Path, start: int = 0) -> npt.NDArray[np.void]:
    """The whole rows of an index from row `start` on."""
    with index.open("rb") as stream:
        stream.seek(start * _INDEX.itemsize)
        data = stream.read()
    return np.frombuffer(data[: len(data) // _INDEX.itemsize * _INDEX.itemsize], _INDEX)
