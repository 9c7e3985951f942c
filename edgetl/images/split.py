"""Which image goes to which split: seeded, stratified, and without the same image on both sides."""

from __future__ import annotations

from collections import Counter
from typing import Dict, List, Mapping, Sequence, Tuple

from edgetl.images.dataset import Sample, rank_of

Splits = Dict[str, Tuple[Sample, ...]]


def units(samples: Sequence[Sample], links: Sequence[Tuple[str, str]] = ()) -> List[List[Sample]]:
    """Samples joined by equal content, equal (non-empty) group, or a link between their digests.

    A unit never spans two splits.
    """
    parent = list(range(len(samples)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: Dict[Tuple[str, str], int] = {}
    for index, sample in enumerate(samples):
        for key in (("digest", sample.digest), ("group", sample.group)):
            if key[1]:
                other = first.setdefault(key, index)
                parent[find(index)] = find(other)
    for left, right in links:
        parent[find(first["digest", left])] = find(first["digest", right])
    out: Dict[int, List[Sample]] = {}
    for index, sample in enumerate(samples):
        out.setdefault(find(index), []).append(sample)
    return list(out.values())


def stratified(
    samples: Sequence[Sample], fractions: Mapping[str, float], seed: int, links: Sequence[Tuple[str, str]] = ()
) -> Splits:
    """Give each unit to "train" or one of `fractions` (name -> share), class by class.

    The order within a class is a hash of (seed, content), so it depends neither on file names nor on the
    order of the listing. Each class keeps at least one unit in train, and gives each wanted split one
    when it has enough units. A unit of several classes counts as its most frequent one.
    """
    by_class: Dict[int, List[List[Sample]]] = {}
    for unit in units(samples, links):
        by_class.setdefault(class_of(unit), []).append(unit)
    chosen: Dict[str, List[Sample]] = {"train": []}
    chosen.update({name: [] for name in fractions})
    for target in sorted(by_class):
        queue = sorted(by_class[target], key=lambda unit: min(rank_of(seed, s.digest) for s in unit))
        total = sum(len(unit) for unit in queue)
        for name, fraction in fractions.items():
            taken, queue = _take(queue, max(1, round(total * fraction)) if fraction > 0 else 0)
            chosen[name].extend(sample for unit in taken for sample in unit)
        chosen["train"].extend(sample for unit in queue for sample in unit)
    return {name: _ordered(found) for name, found in chosen.items() if found or name == "train"}


def class_of(unit: Sequence[Sample]) -> int:
    """The class that a unit counts as: its most frequent one, of equal ones the first."""
    if len(unit) == 1:
        return unit[0].target
    counts = Counter(sample.target for sample in unit)
    return min(counts, key=lambda target: (-counts[target], target))


def _take(queue: Sequence[List[Sample]], wanted: int) -> Tuple[List[List[Sample]], List[List[Sample]]]:
    """(taken, left): units from the front of `queue` until `wanted` images are reached, one left at least.

    A unit is taken when that brings the number nearer to `wanted`; where none does, the smallest is.
    """
    taken: List[List[Sample]] = []
    left: List[List[Sample]] = []
    count = 0
    for index, unit in enumerate(queue):
        is_last = not left and index == len(queue) - 1
        if not is_last and 2 * count + len(unit) <= 2 * wanted and count < wanted:
            taken.append(unit)
            count += len(unit)
        else:
            left.append(unit)
    if wanted and not taken and len(left) > 1:
        smallest = min(range(len(left)), key=lambda i: len(left[i]))
        taken.append(left.pop(smallest))
    return taken, left


def drop_train_copies(splits: Dict[str, List[Sample]]) -> Tuple[Splits, int]:
    """Given splits without the training copies of images that val or test hold too, and how many went."""
    held = {s.digest for name in ("val", "test") for s in splits.get(name, [])}
    out = {name: list(found) for name, found in splits.items()}
    out["train"] = [s for s in splits.get("train", []) if s.digest not in held]
    dropped = len(splits.get("train", [])) - len(out["train"])
    return {name: _ordered(found) for name, found in out.items()}, dropped


def _ordered(samples: Sequence[Sample]) -> Tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda s: (s.target, s.path)))
