"""Which images an export uses for what: calibration, the search for a method, the guard. Never the same twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgetl.bundle import Bundle
from edgetl.errors import DataError, InputError
from edgetl.graph.options import ExportOptions
from edgetl.images import Sample, draw_balanced
from edgetl.images.of_bundle import UNLABELLED, open_data, read_unlabelled, without

TRAINING_IMAGES = 4096  # for --rescue qat; decoded into a scratch file of 0.6 GB at 224 px
TEST_IMAGES = 256  # what the shipped graph's drop is shown on beside val; the bench takes all of them
SEARCH_IMAGES = 256  # enough to rank methods and groups of layers by KL; each costs one simulated pass
_NAMED = 5  # missing classes that a remark names


@dataclass(frozen=True)
class ImageSet:
    """`samples` under `root`; `name` of the split they are."""

    root: Path
    samples: Sequence[Sample]
    name: str


@dataclass(frozen=True)
class ImageSets:
    """calibration: for ranges; search: to choose by; guard: for the verdict; test: a second look at what was judged.

    training: for --rescue qat (it may hold the calibration set); remarks: what the user should know.
    """

    calibration: ImageSet | None = None
    search: ImageSet | None = None
    guard: ImageSet | None = None
    test: ImageSet | None = None
    training: ImageSet | None = None
    remarks: tuple[str, ...] = field(default=())


def image_sets(bundle: Bundle, options: ExportOptions) -> ImageSets:
    """Read and draw what `options` need; cheap, so that a wrong folder is told before any work.

    Raises DataError, BundleError.
    """
    if not options.fp16 and not options.int8:
        return ImageSets(calibration=_drawn(bundle, options)[0] if options.calib else None)
    drawn, pool = _drawn(bundle, options)
    if not options.int8:
        return ImageSets(drawn, remarks=_remarks(bundle, drawn))
    guard = _guard(bundle, options, drawn)
    test = _test(bundle, options, [*drawn.samples, *guard.samples])
    judged = [*guard.samples, *(test.samples if test else ())]
    calibration, search = _apart(drawn, without(pool, [*drawn.samples, *judged]), options.seed)
    training = None
    if options.rescue == "qat":
        free = without(pool, [*search.samples, *judged])
        training = ImageSet(drawn.root, draw_balanced(free, TRAINING_IMAGES, options.seed), drawn.name)
    return ImageSets(calibration, search, guard, test, training, _remarks(bundle, calibration))


def _drawn(bundle: Bundle, options: ExportOptions) -> tuple[ImageSet, Sequence[Sample]]:
    """(calibration set, the images it was drawn from): no content twice, classes in turns."""
    limit = options.image_limit
    if options.calib:
        data, pool, name = open_data(bundle, "calibration", options.calib, "--calib")
        found = draw_balanced(pool, limit, options.seed)
    else:
        data, own, name = open_data(bundle, "calibration", option="--calib")
        # An adapted bundle meets the target's images, so these are what its ranges are for.
        pool = list(data.split("unlabelled") or data.split("train"))
        # The bundle's own draw; a prefix of it is balanced too. It holds 512 at most, --calib-size may ask for more.
        found = [*own[:limit], *draw_balanced(without(pool, own), limit - len(own), options.seed)]
    if not found:
        raise DataError("no images to calibrate on", options.calib or bundle.path, "give --calib DIR with some")
    return ImageSet(data.root, found, name), pool


def _remarks(bundle: Bundle, calibration: ImageSet) -> tuple[str, ...]:
    there = {s.target for s in calibration.samples}
    if UNLABELLED in there:
        return (f"calibrated on {len(calibration.samples)} of the unlabelled images that the bundle was adapted to",)
    missing = [label for i, label in enumerate(bundle.labels) if i not in there]
    if not missing:
        return ()
    named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    return (f"the calibration set has no image of {len(missing)} of {len(bundle.labels)} classes: {named}",)


def _apart(drawn: ImageSet, others: Sequence[Sample], seed: int) -> tuple[ImageSet, ImageSet]:
    """(calibration, search): search takes up to SEARCH_IMAGES of `others`, which nothing else uses.

    Where too few are left the calibration set gives its last quarter: a draw's classes take turns, so what
    stays is the smaller draw, and both are as balanced as the whole. Raises DataError.
    """
    rest = draw_balanced(others, SEARCH_IMAGES, seed)
    quarter = len(drawn.samples) // 4
    if rest and len(rest) >= min(SEARCH_IMAGES, quarter):
        return drawn, ImageSet(drawn.root, rest, drawn.name)
    if not quarter:
        raise DataError("too few images to calibrate on", len(drawn.samples), "give more with --calib DATA")
    kept, given = drawn.samples[:-quarter], drawn.samples[-quarter:]
    held = [*draw_balanced(given, SEARCH_IMAGES, seed), *rest][:SEARCH_IMAGES]
    return ImageSet(drawn.root, kept, drawn.name), ImageSet(drawn.root, held, drawn.name)


def _guard(bundle: Bundle, options: ExportOptions, calibration: ImageSet) -> ImageSet:
    if options.guard == "agreement" and options.guard_data and _is_flat(Path(options.guard_data)):
        root, samples = read_unlabelled(options.guard_data)
        name = "all"
    else:
        data, samples, name = open_data(bundle, "val", options.guard_data, "--guard-data")
        root = data.root
    apart = without(samples, calibration.samples)
    if not apart:
        raise InputError(
            "the guard's images are those of the calibration set", options.guard_data, "give others with --guard-data"
        )
    return ImageSet(root, apart, name)


def _test(bundle: Bundle, options: ExportOptions, others: Sequence[Sample]) -> ImageSet | None:
    """Up to TEST_IMAGES of the bundle's own test split, where it has one and the guard is on its own val split."""
    if options.guard_data or not bundle.manifest["splits"].get("test", {}).get("n"):
        return None
    data, samples, name = open_data(bundle, "test", None, "--guard-data")
    found = draw_balanced(without(samples, others), TEST_IMAGES, options.seed)
    return ImageSet(data.root, found, name) if found else None


def _is_flat(folder: Path) -> bool:
    """Whether a folder holds images and no class folders (then nobody told their classes)."""
    return folder.is_dir() and not any(p.is_dir() and not p.name.startswith((".", "__")) for p in folder.iterdir())
