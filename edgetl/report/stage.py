"""The stage behind `edgetl report`: a bundle in; a page, a model card and TensorBoard runs out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.bundle import Bundle, atomic_write
from edgetl.errors import InputError
from edgetl.monitor import SILENT, Monitor
from edgetl.report import photos
from edgetl.report.facts import Facts, gather
from edgetl.report.photos import Pictures


@dataclass(frozen=True)
class ReportOptions:
    """Where to write what; None leaves it out. `maps`: class-activation maps, which load PyTorch."""

    html: Path | None = None
    card: Path | None = None
    tensorboard: Path | None = None
    maps: bool = True

    def __post_init__(self) -> None:
        if self.html is None and self.card is None and self.tensorboard is None:
            raise InputError("nothing is asked for", "", "say --html FILE, --card FILE.md or --tensorboard DIR")


def report(bundle: Bundle, options: ReportOptions, monitor: Monitor = SILENT) -> dict[str, Any]:
    """Write what `options` ask for, each file whole or not at all; returns the command's JSON object.

    Raises InputError (a folder that is not there, a file of the bundle itself), BundleError (damage that leaves
    nothing to say), DiskError.
    """
    started = time.perf_counter()
    check_places(bundle, options)
    facts = gather(bundle)
    for note in facts.notes:
        monitor.warn(note)
    written: dict[str, Any] = {"bundle": str(bundle.path), "html": None, "card": None, "tensorboard": None}
    if options.html is not None:
        from edgetl.report.page import page

        written["html"] = _write(options.html, page(facts, pictures(bundle, facts, options.maps, monitor)))
    if options.card is not None:
        from edgetl.report.card import card

        written["card"] = _write(options.card, card(facts))
    if options.tensorboard is not None:
        from edgetl.report.events import write_events

        written["tensorboard"] = {"folder": str(options.tensorboard), "runs": write_events(facts, options.tensorboard)}
    ship = facts.main.ship if facts.main else None
    advised = None if ship is None else {"profile": ship.profile, "precision": ship.precision, "sha256": ship.sha256}
    return {**written, "ship": advised, "notes": list(facts.notes), "seconds": round(time.perf_counter() - started, 3)}


def check_places(bundle: Bundle, options: ReportOptions) -> None:
    """Raise InputError for a place that cannot be written; for a caller that has much to do before its report."""
    for option, path in (("--html", options.html), ("--card", options.card)):
        _check(bundle, option, path)
    if options.tensorboard is not None and options.tensorboard.exists() and not options.tensorboard.is_dir():
        raise InputError("--tensorboard wants a folder, and this is a file", options.tensorboard, "give another name")


def pictures(bundle: Bundle, facts: Facts, maps: bool, monitor: Monitor = SILENT) -> Pictures:
    """All photos of the page, small. Raises BundleError for a damaged golden photo."""
    root = photos.root_of(bundle)
    shown = facts.flips.shown if facts.flips else ()
    wanted = [(one.path, one.digest, f"photo of {one.true}, before {one.before}, now {one.after}") for one in shown]
    found, gone = photos.flipped(root, wanted)
    none: tuple[tuple[photos.Explained, ...], str] = ((), "they were not asked for")
    told = photos.explained(bundle, root, (*facts.hits, *facts.misses), monitor) if maps else none
    return Pictures(found, told[0], photos.examples(bundle), told[1], gone)


def _check(bundle: Bundle, option: str, path: Path | None) -> None:
    if path is None:
        return
    if not path.parent.is_dir():
        raise InputError(f"{option} names a folder that is not there", path.parent, "make it, or give another place")
    if path.is_dir():
        raise InputError(f"{option} wants a file, and this is a folder", path, "give it a name inside")
    inside = _inside(bundle, path)
    recorded = {record["file"] for record in bundle.manifest["artifacts"]}
    if inside in {"manifest.json", "local.json", *recorded} or (inside.startswith("runs/") and path.exists()):
        raise InputError(f"{option} would overwrite a file of the bundle", path, "give another name")


def _inside(bundle: Bundle, path: Path) -> str:
    """The place of `path` within the bundle, whatever links lead to either; "" outside."""
    try:
        return path.resolve().relative_to(bundle.path.resolve()).as_posix()
    except ValueError:
        return ""


def _write(path: Path, text: str) -> dict[str, Any]:
    data = text.encode("utf-8", "replace")  # a broken surrogate in a label is shown as "?"
    atomic_write(path, data)
    return {"file": str(path), "bytes": len(data)}
