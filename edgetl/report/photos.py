"""Photos as small pictures inside the page: bounded in px and bytes, encoded anew so that nothing else is in it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edgetl.bundle import Bundle
from edgetl.errors import BackboneError, DataError
from edgetl.images import Sample, decode, read_sample, to_input
from edgetl.report.accuracy import Shown

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgetl.monitor import Monitor

SIDE, BYTES = 96, 6_000  # of a thumbnail, at most
MAP_SIDE, MAP_BYTES = 176, 16_000  # of a photo with a map laid over it
EXAMPLES = 24
_QUALITIES = (78, 60, 42, 25)


@dataclass(frozen=True)
class Picture:
    """A small JPEG as a data URI, its px, and what it shows in words."""

    uri: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Explained:
    """A photo, the map of what spoke for its answer laid over it, and the answer."""

    photo: Picture
    overlay: Picture
    shown: Shown

    @property
    def right(self) -> bool:
        """Whether the answer was the truth."""
        return self.shown.answer == self.shown.true


@dataclass(frozen=True)
class Pictures:
    """All photos of a page. flipped: by the image's digest. why_not: why there are no maps, "" where there are."""

    flipped: dict[str, Picture]
    explained: tuple[Explained, ...]
    examples: tuple[tuple[str, Picture], ...]
    why_not: str
    gone: int


def small(image: Image.Image, alt: str, side: int = SIDE, most: int = BYTES) -> Picture:
    """At most `side` px each way and `most` bytes: quality falls, then size, until both hold. Never enlarged."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    while True:
        for quality in _QUALITIES:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=quality, optimize=True)
            data = stream.getvalue()
            if len(data) <= most or max(image.size) <= 16:
                uri = "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
                return Picture(uri, image.width, image.height, alt)
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.LANCZOS)


def root_of(bundle: Bundle) -> Path | None:
    """The folder of the bundle's images, where local.json names one that is still there."""
    found = bundle.local.get("data")
    if not found:
        return None
    folder = Path(str(found))
    folder = folder.parent if folder.is_file() else folder
    return folder if folder.is_dir() else None


def _bytes(root: Path | None, path: str, digest: str) -> bytes | None:
    """An image as it was when it was answered; None where it is gone or another."""
    if root is None:
        return None
    try:
        return read_sample(root, Sample(path, 0, digest))
    except (DataError, OSError):
        return None


def flipped(root: Path | None, images: Iterable[tuple[str, str, str]]) -> tuple[dict[str, Picture], int]:
    """({digest: thumbnail}, how many were gone) for (path, digest, alt)."""
    out: dict[str, Picture] = {}
    gone = 0
    for path, digest, alt in images:
        encoded = _bytes(root, path, digest)
        if encoded is None:
            gone += 1
            continue
        try:
            out[digest] = small(decode(encoded, path), alt)
        except DataError:
            gone += 1
    return out, gone


def examples(bundle: Bundle) -> tuple[tuple[str, Picture], ...]:
    """(class, thumbnail) of golden photos, which the bundle holds: classes take turns. Raises BundleError."""
    found = sorted(bundle.artifacts("golden-image"), key=lambda record: int(record["index"]))
    out = []
    for record in found[:EXAMPLES]:
        label = bundle.labels[int(record["label"])]
        path = bundle.file(record)
        out.append((label, small(decode(path.read_bytes(), path.name), f"a training photo of {label}")))
    return tuple(sorted(out, key=lambda pair: bundle.labels.index(pair[0])))


def explained(
    bundle: Bundle, root: Path | None, shown: Sequence[Shown], monitor: Monitor
) -> tuple[tuple[Explained, ...], str]:
    """(photos with their class-activation maps, why there are none). The maps are of the answer that was given."""
    if not shown:
        return (), "no bench has kept its answers yet"
    if not bundle.artifacts("checkpoint"):
        return (), "they want the network in PyTorch, and an adopted bundle has none"
    there = [(one, encoded) for one in shown for encoded in [_bytes(root, one.path, one.digest)] if encoded is not None]
    if not there:
        return (), "the photos are not where the bundle was made from them any more (or are not on this machine)"
    from edgetl.transfer.explain import Explainer  # loads PyTorch, so only where there is something to explain

    out = []
    try:
        explainer = Explainer(bundle)
        for index, (one, encoded) in enumerate(there, start=1):
            out.append(_explained(bundle, explainer, one, encoded))
            monitor.progress("maps", index, len(there))
    except BackboneError as error:
        return (), error.what
    return tuple(out), ""


def _explained(bundle: Bundle, explainer: Any, one: Shown, encoded: bytes) -> Explained:
    from edgetl.transfer.explain import overlay

    spec = bundle.preprocess
    image = decode(encoded, one.path)
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    found = explainer.map(to_input(encoded, spec, one.path), bundle.labels.index(one.answer))
    laid = Image.fromarray(overlay(pixels, found, spec))
    said = f"{one.true}, named {one.answer} ({100 * one.probability:.0f} %)"
    return Explained(
        small(image, f"photo of {said}", MAP_SIDE, MAP_BYTES),
        small(laid, f"the same photo, {said}: warm colours mark what spoke for the answer", MAP_SIDE, MAP_BYTES),
        one,
    )
