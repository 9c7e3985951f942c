"""Sets too large to be decoded before training starts: what is put off, and what is drawn.

A small set is decoded first, since a corrupt image is best told within seconds. A large one is decoded as its images
are asked for: those of the linear probe as their features are computed, the rest by threads while training goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgetl.images import Dataset, Sample, rank_of
from edgetl.transfer import leakage
from edgetl.transfer.augment import epoch_order
from edgetl.transfer.feed import in_batches, part
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.run import Run

EAGER_IMAGES = 5_000  # up to so many are decoded first: some 20 s of photos on two cores
PROBE_IMAGES = 20_000  # training images of a probe that a training competes with
START_IMAGES, START_VAL = 2_000, 1_000  # images of a probe that a training starts from, and those it is judged on
PER_CLASS = 10  # of them at least


@dataclass(frozen=True)
class Part:
    """Images that a linear probe is fitted to and judged on, and the files of the run's folder that this is kept in.

    The probe that competes is always in probe.npz: the adaptation (adapt/phase.py) reads its strength from there.
    """

    train: Sequence[Sample]
    val: Sequence[Sample]
    features: str = "features.f32"
    probe: str = "probe.npz"


def put_off(data: Dataset, options: FinetuneOptions) -> bool:
    """Whether images are decoded as they are needed.

    Not where the splits depend on every image (corrupt ones left out, near-duplicates kept together), or are many.
    """
    splits_depend = options.skip_corrupt or options.near_duplicates == "together"
    return len(data.all()) > EAGER_IMAGES and not (splits_depend or options.folds is not None or options.label_budget)


def competing(run: Run) -> Part:
    """What the linear probe that competes with a training is fitted to: all, or a draw of a large set.

    All where the probe may be the result, or the classifiers of `features` are fitted to the same.
    """
    train, val, most = run.data.split("train"), run.data.split("val"), _enough(PROBE_IMAGES, run)
    if len(train) <= most or not run.plan.trains or run.options.plan.name == "auto" or run.known is not None:
        return Part(train, val)
    drawn = share_of(train, most, run.options.seed)
    run.monitor.say(f"the linear probe is fitted to {len(drawn)} of {len(train)} training images, drawn by class")
    return Part(drawn, val, "features-drawn.f32")


def starting(run: Run) -> Part | None:
    """What the linear probe that a training starts from is fitted to, where that is not the one it competes with.

    Of a large set a part does for a starting point, and training begins after a minute of photos on two cores rather
    than after an hour; the probe to compete with is fitted when the training has ended.
    """
    train, val, most = run.data.split("train"), run.data.split("val"), _enough(START_IMAGES, run)
    if not put_off(run.data, run.options) or not run.plan.trains or run.known is not None or len(train) <= most:
        return None
    drawn, held = (share_of(part, n, run.options.seed) for part, n in ((train, most), (val, START_VAL)))
    run.monitor.say(f"training starts from a linear probe on {len(drawn)} of {len(train)} images, drawn by class")
    return Part(drawn, held, "features-start.f32", "probe-start.npz")


def share_of(samples: Sequence[Sample], count: int, seed: int) -> Sequence[Sample]:
    """A seeded draw of about `count` images in which the classes have the shares that they have in all of them.

    A class gives PER_CLASS all the same, or all it has; no image comes twice. A draw that evened the classes out would
    give a probe that expects rare ones too often, and that loses on val to one which was fitted to all. With no more
    than `count` images: all.
    """
    if len(samples) <= count:
        return samples
    classes: dict[int, dict[str, Sample]] = {}
    for sample in sorted(samples, key=lambda s: (rank_of(seed, s.digest), s.path)):
        classes.setdefault(sample.target, {}).setdefault(sample.digest, sample)
    share = count / len(samples)
    taken = (list(found.values())[: max(PER_CLASS, round(share * len(found)))] for _, found in sorted(classes.items()))
    return [sample for part in taken for sample in part]


def _enough(images: int, run: Run) -> int:
    return max(images, PER_CLASS * len(run.data.labels))


def decode_behind(run: Run, batch: int) -> None:
    """Decode what is left while the first epoch runs, in its order; this process's part of it."""
    if not put_off(run.data, run.options):
        return
    group, prints = run.group, leakage.Prints(run.store.image)
    batches = in_batches(epoch_order(run.data.split("train"), run.options.seed, 1), batch)
    mine = [b[i] for b in batches for i in part(len(b), group)]
    held = [*run.data.split("val"), *run.data.split("test")]
    run.prints = prints
    looked_at = run.options.near_duplicates != "ignore"
    run.store.fill_behind([*mine, *held[group.rank :: group.size]], *[prints.note] if looked_at else [])


def near_duplicates(run: Run) -> list[leakage.Row] | None:
    """What `sound` finds for a small set, once every image has been seen; None where they are ignored."""
    run.store.settle()
    if run.options.near_duplicates == "ignore":
        return None
    run.store.refresh()
    prints = run.prints or leakage.Prints(run.store.image)
    for others in run.group.gathered(prints.found):
        prints.found.update(others)
    data, wish, monitor = run.data, run.options.near_duplicates, run.monitor
    return run.group.first(lambda: leakage.settled(data, prints, wish, monitor)[1])
