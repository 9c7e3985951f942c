"""Before anything is fitted: every image decoded once, corrupt ones told or left out, near-duplicates found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgetl.errors import CorruptImage
from edgetl.images import Dataset
from edgetl.monitor import Monitor
from edgetl.transfer import leakage
from edgetl.transfer.options import FinetuneOptions
from edgetl.transfer.pixels import PixelStore
from edgetl.transfer.prepare import check_splits
from edgetl.transfer.processes import ALONE, Group


def sound(
    data: Dataset,
    store: PixelStore,
    options: FinetuneOptions,
    monitor: Monitor,
    group: Group = ALONE,
    later: bool = False,
) -> tuple[Dataset, list[leakage.Row] | None]:
    """`data` as it can be used, its images in the store, and the near-duplicates across its splits.

    Corrupt images are missing where --skip-corrupt allows it; None: near-duplicates are ignored. Raises DataError,
    CorruptImage, InputError: the same in every process of `group`, each of which decodes a part. `later`: nothing is
    decoded yet (transfer/large.py).
    """
    for line in data.warnings:
        monitor.warn(line)
    leakage.check_wish(data, options.near_duplicates)
    if later:
        return data, None
    prints = leakage.Prints(store.image)
    looked_at = options.near_duplicates != "ignore"
    mine = data.all()[group.rank :: group.size]
    noted = [prints.note] if looked_at else []
    found = group.each(lambda: store.fill(mine, options.skip_corrupt, monitor, *noted))
    corrupt = {digest: error for part in found for digest, error in part.items()}
    store.refresh()
    data = _without_corrupt(data, corrupt, monitor)
    if not looked_at:
        return data, None
    return group.first(lambda: leakage.settled(data, prints, options.near_duplicates, monitor))


def _without_corrupt(data: Dataset, corrupt: Mapping[str, CorruptImage], monitor: Monitor) -> Dataset:
    if not corrupt:
        return data
    for error in corrupt.values():
        monitor.warn(f"left out: {error}")
    monitor.warn(f"{len(corrupt)} corrupt images are left out")
    splits = {k: tuple(s for s in v if s.digest not in corrupt) for k, v in data.splits.items()}
    left = replace(data, splits=splits, skipped=tuple(sorted(s.path for s in data.all() if s.digest in corrupt)))
    check_splits(left)
    return left
