"""The pictures that `edgetl classify --explain DIR` leaves: one for each photo, under a name of its own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from edgetl.errors import InputError

if TYPE_CHECKING:
    from edgetl.bundle import Bundle
    from edgetl.monitor import Monitor

FEW_PLACES = 4
NAME_BYTES = 100  # of a photo's own name in that of its picture


class Explanations:
    """Draws and saves class-activation maps into one folder; it is made with the first of them.

    Raises InputError where a file has the folder's name, BundleError for a bundle without a PyTorch network.
    """

    def __init__(self, bundle: Bundle, folder: Path, monitor: Monitor) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError("--explain wants a folder, and this is a file", folder, "give another name")
        from edgetl.transfer.explain import Explainer

        self._bundle = bundle
        self._folder = folder
        self._explainer = Explainer(bundle)
        self._monitor = monitor
        self._told = False

    def save(self, photo: Path, encoded: bytes, label: str) -> Path:
        """The map of what speaks for `label` in this photo, laid over it; returns the PNG's path."""
        import numpy as np
        from PIL import Image

        from edgetl.bundle import atomic_write
        from edgetl.errors import disk_errors
        from edgetl.images import decode, to_input
        from edgetl.transfer.explain import overlay

        spec = self._bundle.preprocess
        found = self._explainer.map(to_input(encoded, spec, photo), self._bundle.labels.index(label))
        places = self._explainer.places
        if places < FEW_PLACES and not self._told:
            self._told = True
            self._monitor.warn(f"the maps are coarse: {places} x {places} places on {spec.size} px")
        if not found.any():
            why = f"nothing in it speaks for {label}, which is named for want of the others"
            self._monitor.warn(f"the picture of {photo} has no colours: {why}")
        drawn = overlay(np.asarray(decode(encoded, photo)), found, spec)
        stream = io.BytesIO()
        Image.fromarray(drawn).save(stream, "PNG")
        path = self._folder / picture_name(photo, encoded)
        with disk_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
        atomic_write(path, stream.getvalue())
        return path


def picture_name(photo: Path, encoded: bytes) -> str:
    """`<name>-<sha12>-cam.png`: the photo's content is in it, so no two photos share one, and no photo is met by it."""
    from edgetl.bundle import sha256_bytes

    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in photo.stem).lstrip(".") or "image"
    short = safe.encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{short}-{sha256_bytes(encoded)[:12]}-cam.png"
