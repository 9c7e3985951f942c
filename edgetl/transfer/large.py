"""Sets too large to be decoded before training starts: what is put off, and what is drawn.

A small set is decoded first, since a corrupt image is best told within seconds. A large one is decoded as its images
are asked for: those of the linear probe as their features are computed, the rest by threads while training goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.images import Dataset, Sample, draw_balanced
from edgetl.transfer import leakage
from edgetl.transfer.augment import epoch_order
from edgetl.transfer.feed import in_batches, part
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.run import Run

EAGER_IMAGES = 5_000  # up to so many are decoded first: some 20 s of photos on two cores
PROBE_IMAGES = 20_000  # training images of a probe that training starts from


def put_off(data: Dataset, options: FinetuneOptions) -> bool:
    """Whether images are decoded as they are needed.

    Not where the splits depend on every image (corrupt ones left out, near-duplicates kept together), or are many.
    """
    splits_depend = options.skip_corrupt or options.near_duplicates == "together"
    return len(data.all()) > EAGER_IMAGES and not (splits_depend or options.folds is not None or options.label_budget)


def probe_images(run: Run) -> Sequence[Sample]:
    """The training images that the linear probe is fitted to: all, or a class-balanced draw of a large set.

    All where the probe may be the result, or the classifiers of `features` are fitted to the same. Where training
    goes on from it, more images would put that off by minutes and change the starting point little.
    """
    train = run.data.split("train")
    if len(train) <= PROBE_IMAGES or not run.plan.trains or run.options.plan.name == "auto" or run.known is not None:
        return train
    run.monitor.say(f"the linear probe is fitted to {PROBE_IMAGES} of {len(train)} training images, drawn by class")
    return draw_balanced(train, PROBE_IMAGES, run.options.seed)


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
