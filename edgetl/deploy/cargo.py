"""What travels to a device: the graphs it can use, their golden cases and logits, and a manifest of just these.

No checkpoint, no splits, no local.json, no absolute path: what the device does not need stays here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetl.bundle import Bundle, canonical_json, sha256_bytes
from edgetl.bundle.manifest import seal
from edgetl.errors import ContractUnmet, InputError
from edgetl.monitor import SILENT, Monitor
from edgetl.spec import Precision, Profile

Record = dict[str, Any]
_PIECE = 1 << 20
_GOLDEN = ("golden-image", "golden-pixels", "golden-logits")


@dataclass(frozen=True)
class Piece:
    """One file by content: its bytes, or where they lie."""

    sha256: str
    size: int
    source: Path | bytes

    def wanted(self) -> dict[str, Any]:
        """What the device is asked for."""
        return {"sha256": self.sha256, "bytes": self.size}

    def read(self, offset: int) -> Iterator[bytes]:
        """The bytes from `offset` on, a piece at a time."""
        if isinstance(self.source, bytes):
            yield self.source[offset:]
            return
        with self.source.open("rb") as stream:
            stream.seek(offset)
            while piece := stream.read(_PIECE):
                yield piece


@dataclass(frozen=True)
class Cargo:
    """A release: `manifest` is its piece, `records` what it can serve, `pieces` all that must lie in the store."""

    manifest: Piece
    pieces: tuple[Piece, ...]
    records: tuple[Record, ...] = field(default=())

    @property
    def release(self) -> str:
        """Its name on the device."""
        return self.manifest.sha256[:12]


def piece_of(data: bytes) -> Piece:
    """A piece that is made here."""
    return Piece(sha256_bytes(data), len(data), data)


def pack(bundle: Bundle, profiles: Sequence[Profile], precision: Precision | None, allow_unmet: bool) -> Cargo:
    """The cargo of `bundle` for a device that reads `profiles`; of each precision the newest float32 graph.

    Raises InputError (no such graph), ContractUnmet (the precision asked for missed its contract),
    BundleError (a file is missing or was changed).
    """
    graphs = _graphs(bundle, profiles, precision)
    unmet = [g for g in graphs if g.get("met") is False]
    if precision is not None and unmet and not allow_unmet:
        guard = unmet[-1].get("guard") or {}
        raise ContractUnmet(
            "this graph missed its accuracy contract", f"{unmet[-1]['file']}, drop {guard.get('drop_pp')} points",
            "deploy another --precision, export again, or --allow-unmet", result={"guard": guard},
        )  # fmt: skip
    usable = [g for g in graphs if allow_unmet or g.get("met") is not False]
    travelling = _with_sources(bundle, usable)
    taken = {g["sha256"] for g in travelling}
    records = travelling + [
        record
        for record in bundle.manifest["artifacts"]
        if not record.get("stale")
        and (record["kind"] in _GOLDEN or (record["kind"] == "graph-logits" and record["made_from"] in taken))
    ]
    body = {**bundle.manifest, "artifacts": records, "training": _travelling(bundle.manifest["training"])}
    manifest = piece_of(canonical_json(seal(body)))
    files = [Piece(r["sha256"], int(r["bytes"]), bundle.file(r)) for r in records]
    return Cargo(manifest, (manifest, *files), tuple(usable))


def _travelling(training: Mapping[str, Any]) -> dict[str, Any]:
    """What the device shows of the training; histories and options stay here."""
    return {key: training[key] for key in ("strategy", "chosen", "versions") if key in training}


def _graphs(bundle: Bundle, profiles: Sequence[Profile], precision: Precision | None) -> list[Record]:
    newest = {
        record["precision"]: record
        for record in bundle.artifacts("graph", input="float32")
        if Profile(record["profile"]) in profiles and precision in (None, Precision(record["precision"]))
    }
    if not newest and precision is Precision.FP16 and Profile.TRT8 in profiles:
        # It was exported without --fp16, and that is no hindrance: see _with_sources.
        return [{**record, "precision": str(precision)} for record in _graphs(bundle, profiles, Precision.FP32)]
    if not newest:
        said = " or ".join(str(p) for p in profiles) + (f" {precision}" if precision else "")
        there = ", ".join(f"{r['profile']}/{r['precision']}" for r in bundle.artifacts("graph")) or "none"
        raise InputError("the bundle has no graph for this device", said, f"it has {there}; edgetl export --target ...")
    return list(newest.values())


def _with_sources(bundle: Bundle, variants: Sequence[Record]) -> list[Record]:
    """The graphs that `variants` are built from: TensorRT 8's fp16 is the fp32 graph with a flag, so that travels."""
    sources = [r for r in variants if bundle.artifacts("graph", precision=r["precision"], sha256=r["sha256"])]
    if any((r["profile"], r["precision"]) == (str(Profile.TRT8), str(Precision.FP16)) for r in variants):
        fp32 = bundle.artifact("graph", profile=Profile.TRT8, precision=Precision.FP32, input="float32")
        sources += [fp32] if fp32["sha256"] not in {r["sha256"] for r in sources} else []
    return sources


def frames(pieces: Iterable[Piece], missing: Sequence[Mapping[str, Any]], monitor: Monitor = SILENT) -> Iterator[bytes]:
    """What the device's `receive` reads: a head and the bytes from its offset on, for each missing file."""
    by_hash = {piece.sha256: piece for piece in pieces}
    done, total = 0, volume(missing)
    for entry in missing:
        piece = by_hash[entry["sha256"]]
        head = {"sha256": piece.sha256, "bytes": piece.size, "offset": entry["have"]}
        yield json.dumps(head).encode() + b"\n"
        for data in piece.read(entry["have"]):
            yield data
            done += len(data)
            monitor.progress("push", done, total)
    yield b"\n"


def volume(missing: Sequence[Mapping[str, Any]]) -> int:
    """Bytes that `frames` will move."""
    return sum(int(entry["bytes"]) - int(entry["have"]) for entry in missing)
