"""Which images an export uses for what: calibration, the search for a method, the guard. Never the same twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgetl.bundle import Bundle
from edgetl.errors import DataError, InputError
from edgetl.graph.options import ExportOptions
from edgetl.images import Sample, draw_balanced
from edgetl.images.of_bundle import open_data, read_unlabelled, without

SEARCH_IMAGES = 128  # enough to rank methods by KL; each costs one simulated pass a method


@dataclass(frozen=True)
class ImageSet:
    """`samples` under `root`; `name` of the split they are."""

    root: Path
    samples: Sequence[Sample]
    name: str


@dataclass(frozen=True)
class ImageSets:
    """calibration: for ranges; search: to choose by; guard: for the verdict; remarks: what the user should know."""

    calibration: ImageSet | None = None
    search: ImageSet | None = None
    guard: ImageSet | None = None
    remarks: tuple[str, ...] = field(default=())


def image_sets(bundle: Bundle, options: ExportOptions) -> ImageSets:
    """Read and draw what `options` need; cheap, so that a wrong folder is told before any work.

    Raises DataError, BundleError.
    """
    if not options.fp16 and not options.int8:
        return ImageSets(calibration=_calibration(bundle, options) if options.calib else None)
    calibration = _calibration(bundle, options)
    remarks = _remarks(bundle, calibration)
    if not options.int8:
        return ImageSets(calibration, remarks=remarks)
    guard = _guard(bundle, options, calibration)
    calibration, search = _search(bundle, options, calibration)
    return ImageSets(calibration, search, guard, remarks)


def _calibration(bundle: Bundle, options: ExportOptions) -> ImageSet:
    data, pool, name = open_data(bundle, "calibration", options.calib, "--calib")
    if options.calib:
        pool = draw_balanced(pool, options.image_limit, options.seed)
    if not pool:
        raise DataError("no images to calibrate on", options.calib or bundle.path)
    return ImageSet(data.root, pool[: options.image_limit], name)  # the bundle's draw: a prefix of it is balanced too


def _remarks(bundle: Bundle, calibration: ImageSet) -> tuple[str, ...]:
    there = {s.target for s in calibration.samples}
    missing = [label for i, label in enumerate(bundle.labels) if i not in there]
    if not missing:
        return ()
    return (f"the calibration set has no image of {len(missing)} of {len(bundle.labels)} classes: {missing[0]}, ...",)


def _search(bundle: Bundle, options: ExportOptions, calibration: ImageSet) -> tuple[ImageSet, ImageSet]:
    """(calibration, search): training images that were not drawn; where none are left, every fourth drawn one."""
    data, pool, name = open_data(bundle, "calibration" if options.calib else "train", options.calib, "--calib")
    rest = draw_balanced(without(pool, calibration.samples), SEARCH_IMAGES, options.seed)
    if len(rest) >= min(SEARCH_IMAGES, len(calibration.samples) // 4):
        return calibration, ImageSet(data.root, rest, name)
    if len(calibration.samples) < 4:
        raise DataError("too few images to calibrate on", len(calibration.samples), "give more with --calib DATA")
    kept = [s for i, s in enumerate(calibration.samples) if i % 4 != 3]
    held = [*rest, *(s for i, s in enumerate(calibration.samples) if i % 4 == 3)]
    return (
        ImageSet(calibration.root, kept, calibration.name),
        ImageSet(data.root, held[:SEARCH_IMAGES], name),
    )


def _guard(bundle: Bundle, options: ExportOptions, calibration: ImageSet) -> ImageSet:
    if options.guard == "agreement" and options.guard_data and _is_flat(Path(options.guard_data)):
        root, found = read_unlabelled(options.guard_data)
        return ImageSet(root, without(found, calibration.samples) or found, "all")
    data, samples, name = open_data(bundle, "val", options.guard_data, "--guard-data")
    apart = without(samples, calibration.samples)
    if not apart:
        raise InputError(
            "the guard's images are those of the calibration set", options.guard_data, "give others with --guard-data"
        )
    return ImageSet(data.root, apart, name)


def _is_flat(folder: Path) -> bool:
    """Whether a folder holds images and no class folders (then nobody told their classes)."""
    return folder.is_dir() and not any(p.is_dir() and not p.name.startswith((".", "__")) for p in folder.iterdir())
