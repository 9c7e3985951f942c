"""Whether val and test hold pictures that train holds too: the near-duplicates are found, told, or kept together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgetl.bundle import Bundle
from edgetl.errors import InputError
from edgetl.images import SPLITS, Dataset, Sample
from edgetl.images.split import stratified
from edgetl.monitor import SILENT, Monitor
from edgetl.transfer.fingerprint import Fingerprint, Fingerprints, Pixels, fingerprint, stacked
from edgetl.transfer.near_duplicates import limits_of, matches

SHOWN = 3  # pairs in the warning
LISTED = 100  # pairs in the JSON; all of them are in the bundle's runs/near-duplicates.jsonl
ROUNDS = 25  # of joining and splitting again

Row = dict[str, Any]


@dataclass
class Prints:
    """Fingerprints by content digest, gathered while images are decoded; several threads may call `note`."""

    image: Callable[[Sample], Pixels]  # for the images that were decoded by an earlier, killed run
    found: dict[str, Fingerprint] = field(default_factory=dict)

    def note(self, sample: Sample, pixels: Pixels) -> None:
        """Remember an image, uint8 (H, W, 3), that is in memory now."""
        if sample.digest not in self.found:
            self.found[sample.digest] = fingerprint(pixels)

    def of(self, samples: Sequence[Sample]) -> Fingerprints:
        """One row for each sample."""
        for sample in samples:
            if sample.digest not in self.found:
                self.note(sample, self.image(sample))
        return stacked([self.found[s.digest] for s in samples])


def near_duplicates(data: Dataset, prints: Prints) -> list[Row]:
    """Images of val that look like one of train, and of test that look like one of train or val; one row an image.

    Row: {"image", "split", "like", "like_split", "correlation", "how"}; `how` is plain, mirrored, turned or cut.
    """
    # By content: what chance allows is drawn from rows, and must not depend on how the splits were drawn.
    pairs = sorted(((s, name) for name in SPLITS for s in data.split(name)), key=lambda pair: pair[0].digest)
    samples, splits = [s for s, _ in pairs], [name for _, name in pairs]
    place = np.array([SPLITS.index(name) for name in splits])
    found = prints.of(samples)
    limits = limits_of(found, np.array([s.target for s in samples]), seed=0)
    rows = []
    for held in (1, 2):
        queries, among = np.flatnonzero(place == held), np.flatnonzero(place < held)
        for match in matches(found, queries, among, limits):
            image, like = samples[match.image], samples[match.like]
            if image.digest != like.digest:  # identical images in given splits are told apart from these
                rows.append(
                    {
                        "image": image.path,
                        "split": splits[match.image],
                        "like": like.path,
                        "like_split": splits[match.like],
                        "correlation": match.correlation,
                        "how": match.how,
                    }
                )
    return rows


def settled(data: Dataset, prints: Prints, wish: str, monitor: Monitor = SILENT) -> tuple[Dataset, list[Row]]:
    """`data` as `--near-duplicates` wants it, and what still lies across its splits (told, with the remedy).

    "together" joins what looks alike and draws the splits again, until nothing lies across. Raises InputError
    where the splits were given, as they cannot be drawn then.
    """
    if wish == "together":
        data = _joined(data, prints, monitor)
    rows = near_duplicates(data, prints)
    if rows:
        monitor.warn(_told(data, rows))
    return data, rows


def check_wish(data: Dataset, wish: str) -> None:
    """Raise InputError where "together" is asked for and the splits are not ours to draw."""
    if wish == "together" and data.draw is None:
        raise InputError(
            "near-duplicates can be kept together only where edgetl draws the splits; here they are given",
            "--near-duplicates together",
            "use --near-duplicates warn, and move or remove the images that it names",
        )


def _joined(data: Dataset, prints: Prints, monitor: Monitor) -> Dataset:
    assert data.draw is not None  # check_wish
    links: list[tuple[str, str]] = []
    joined: set[str] = set()
    for _ in range(ROUNDS):
        rows = near_duplicates(data, prints)
        if not rows:
            break
        digest = {s.path: s.digest for s in data.all()}
        links += [(digest[row["image"]], digest[row["like"]]) for row in rows]
        joined |= {row["image"] for row in rows}
        data = replace(data, splits=stratified(data.all(), data.draw.fractions, data.draw.seed, links))
    if joined:
        monitor.say(f"{len(joined)} near-duplicates were put into the split of the image that they look like")
    return data


def _told(data: Dataset, rows: Sequence[Row]) -> str:
    held = len(data.split("val")) + len(data.split("test"))
    named = "; ".join(f"{r['image']} ({r['split']}) is like {r['like']} ({r['like_split']})" for r in rows[:SHOWN])
    remedy = "--near-duplicates together keeps such in one split, --group-by bursts and videos"
    return (
        f"{len(rows)} of {held} val and test images are near-duplicates of images in another split, so the figures "
        f"on them are too good: {named}; " + (remedy if data.draw else "move or remove them")
    )


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What finetune's JSON says: how many, and the first of them."""
    return {"n": len(rows), "pairs": list(rows[:LISTED])}


def keep(bundle: Bundle, rows: Sequence[Row] | None) -> None:
    """All of them under the bundle's runs/, a JSON object a line."""
    if rows:
        generation = int(bundle.manifest["generation"])
        found = [json.dumps(dict(row, generation=generation), ensure_ascii=False) for row in rows]
        bundle.append_rows("near-duplicates", found)
