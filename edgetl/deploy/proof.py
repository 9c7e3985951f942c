"""The images a device proves its variants with: drawn here, pushed by content, removed there when it is done."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from edgetl.bundle import Bundle, canonical_json
from edgetl.deploy.cargo import Piece, piece_of
from edgetl.graph.reference import reference_backend
from edgetl.images import Sample, draw_balanced, stream
from edgetl.images.of_bundle import open_data
from edgetl.measure import predict
from edgetl.monitor import SILENT, Monitor

LIMIT = 512


@dataclass(frozen=True)
class Proof:
    """`listing` names the images and their labels, `reference` holds PyTorch's logits of them; `split` they are of."""

    listing: Piece
    reference: Piece
    images: tuple[Piece, ...]
    split: str

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All that must lie in the device's store."""
        return (self.listing, self.reference, *self.images)


def proof(bundle: Bundle, split: str, data: str | None, seed: int = 0, monitor: Monitor = SILENT) -> Proof:
    """Up to LIMIT images of `split`, class-balanced, with the reference's logits.

    Their names do not travel: they may tell more than the device needs. Raises DataError, BundleError.
    """
    dataset, samples, name = open_data(bundle, split, data)
    drawn = draw_balanced(samples, LIMIT, seed)
    images, rows = [], []
    for index, sample in enumerate(drawn):
        path = dataset.root / sample.path
        images.append(Piece(sample.digest, path.stat().st_size, path))
        plain = f"{index:04}{PurePosixPath(sample.path).suffix.lower()}"
        rows.append({"sha256": sample.digest, "name": plain, "label": bundle.labels[sample.target]})
    reference = _reference(bundle, dataset.root, drawn, monitor)
    return Proof(piece_of(canonical_json(rows)), piece_of(reference), tuple(images), name)


def _reference(bundle: Bundle, root: Path, samples: Sequence[Sample], monitor: Monitor) -> bytes:
    """An .npz with "digests" (N,) and "logits" float32 (N, C)."""
    backend = reference_backend(bundle)
    seen = [0]

    def count(images: int) -> None:
        seen[0] += images
        monitor.progress("reference", seen[0], len(samples))

    try:
        logits, _ = predict(backend, stream(root, samples, bundle.preprocess, 32, on_batch=count))
    finally:
        backend.close()
    out = io.BytesIO()
    np.savez(out, digests=np.array([s.digest for s in samples]), logits=logits.astype(np.float32))
    return out.getvalue()
