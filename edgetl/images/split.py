"""Which image goes to which split: seeded, stratified, and without the same image on both sides."""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

from edgetl.images.dataset import Sample, rank_of

Splits = Dict[str, Tuple[Sample, ...]]


def units(samples: Sequence[Sample]) -> List[List[Sample]]:
    """Samples joined by equal content or equal (non-empty) group; a unit never spans two splits."""
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
    out: Dict[int, List[Sample]] = {}
    for index, sample in enumerate(samples):
        out.setdefault(find(index), []).append(sample)
    return list(out.values())


def stratified(samples: Sequence[Sample], fractions: Dict[str, float], seed: int) -> Splits:
    """Give each unit to "train" or one of `fractions` (name -> share), class by class.

    The order within a class is a hash of (seed, content), so it depends neither on file names nor on the
    order of the listing. Each class keeps at least one unit in train, and gives each wanted split one
    when it has enough units.
    """
    by_class: Dict[int, List[List[Sample]]] = {}
    for unit in units(samples):
        by_class.setdefault(min(s.target for s in unit), []).append(unit)
    chosen: Dict[str, List[Sample]] = {"train": []}
    chosen.update({name: [] for name in fractions})
    for target in sorted(by_class):
        queue = sorted(by_class[target], key=lambda unit: min(rank_of(seed, s.digest) for s in unit))
        total = sum(len(unit) for unit in queue)
        for name, fraction in fractions.items():
            wanted = max(1, int(round(total * fraction))) if fraction > 0 else 0
            taken = 0
            while taken < wanted and len(queue) > 1:
                unit = queue.pop(0)
                chosen[name].extend(unit)
                taken += len(unit)
        for unit in queue:
            chosen["train"].extend(unit)
    return {name: _ordered(found) for name, found in chosen.items() if found or name == "train"}


def drop_train_copies(splits: Dict[str, List[Sample]]) -> Tuple[Splits, int]:
    """Given splits without the training copies of images that val or test hold too, and how many went."""
    held = {s.digest for name in ("val", "test") for s in splits.get(name, [])}
    out = {name: list(found) for name, found in splits.items()}
    out["train"] = [s for s in splits.get("train", []) if s.digest not in held]
    dropped = len(splits.get("train", [])) - len(out["train"])
    return {name: _ordered(found) for name, found in out.items()}, dropped


def _ordered(samples: Sequence[Sample]) -> Tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda s: (s.target, s.path)))
