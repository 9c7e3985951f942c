"""Networks that plain post-training quantisation loses accuracy on, and what the rescue ladder makes of them.

Unequal channel ranges (benchmarks/unequal.py), squeeze-excite with hard swish or swish, attention. For each: the
plain graph by max and by entropy, then what `edgetl export --int8` finds, then with training (--rescue qat).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import cores
from benchmarks.networks import Recipe, bundle_of, finetuned, from_scratch, have_samples
from benchmarks.rows import Case, Row, row
from benchmarks.subject import Subject, Values, adopted, coverage, exported, fresh, searched
from benchmarks.unequal import unequal

VARIANTS = {
    "plain, max": ("--rescue", "none", "--method", "max"),
    "plain, entropy": ("--rescue", "none", "--method", "entropy"),
    "ladder": ("--rescue", "exclude"),
    "ladder with training": ("--rescue", "qat"),
}
VIT = "num_layers=4,num_heads=4,hidden_dim=128,mlp_dim=256"


@dataclass(frozen=True)
class Network:
    """`bundle` makes or finds its bundle, given a folder that is not there yet."""

    name: str
    bundle: Callable[[Path], Path]
    trains: bool = True  # an adopted graph has no checkpoint to train


def networks(quick: bool) -> list[Network]:
    """The easy one first, then the hard ones; those that need sample images only where there are some."""
    small = [
        from_scratch("mobilenet_v3_small x0.5", "mobilenet_v3_small", "width_mult=0.5", 1 if quick else 12),
        from_scratch("efficientnet_b0 x0.5", "efficientnet_b0", "width_mult=0.5,depth_mult=0.5", 10),
        from_scratch("vit, 4 layers of 128", "vit_b_16", VIT, 40),
    ]
    if quick:
        return [_plain(small[0])]
    easy = [finetuned("mobilenet_v2", "flowers5_small")] if have_samples() else []
    return [*map(_plain, [*easy, *small]), *map(_unequal, [*easy, small[0]])]


def run(quick: bool) -> Iterator[Row]:
    """A row for each hard network and variant."""
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        for index, network in enumerate(networks(quick)):
            place = Path(folder) / str(index)
            subject = Subject.of(network.bundle(place / "network"), place / "subject")
            for variant, options in VARIANTS.items():
                if network.trains or "qat" not in options:
                    values = rescued(subject, place / variant.replace(", ", "-").replace(" ", "-"), options)
                    case = Case("hard", f"{network.name}: {variant}", quick)
                    yield row(case, cores(), {"network": network.name, "variant": variant, **values})


def rescued(subject: Subject, to: Path, options: tuple[str, ...]) -> Values:
    """The row's values for one export of a fresh copy of the bundle at `to`."""
    said, graph = exported(fresh(subject.bundle, to), *options)
    share, nvidia = coverage(graph)
    return {
        "reference_accuracy": round(subject.accuracy, 4),
        **subject.judge(graph),
        **searched(said["guard"]),
        "int8_macs_share": share,
        "nvidia": nvidia,
        "seconds": round(said["seconds"], 1),
    }


def _plain(recipe: Recipe) -> Network:
    return Network(recipe.name, lambda _: bundle_of(recipe))


def _unequal(recipe: Recipe) -> Network:
    """The same network with the ranges of its channels far apart, as an adopted graph."""
    return Network(
        f"{recipe.name}, channels made unequal",
        lambda folder: adopted(bundle_of(recipe), folder, unequal),
        trains=False,
    )
