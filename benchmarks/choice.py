"""Does `edgetl rank` find the pretrained network that fine-tunes best? And what does ranking cost?

    python -m benchmarks choice
    EDGETL_BENCH_ONLY=usps python -m benchmarks choice      the cases whose name holds this text
    EDGETL_BENCH_SEEDS=0,1,2 python -m benchmarks choice    fine-tuned with each of these seeds; the table has means

For each set of images and each network: its scores (train images only), and the test accuracy after `edgetl finetune`
from it with the same images. The table has a row a set: the weighted Kendall's tau (Vigna 2015) of each score with the
fine-tuned accuracy over the networks, and what the first choice loses to the best. Which network is really the best is
known no better than the test images allow: their number is in the table.

    python -m benchmarks choice_time

is about time: `rank` on 1,000 images, its cache empty, beside the bare forward passes of the same networks over the
same images, already decoded, in one process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import weightedtau  # type: ignore[import-untyped]  # it ships none

from benchmarks.child import cores, run_module
from benchmarks.data import SAMPLES
from benchmarks.networks import cache
from benchmarks.rows import Case, Row, row
from edgetl.embedded.digits import write_digits
from edgetl.images import SPLITS, ReadOptions, draw_balanced, read_data
from edgetl.transfer.rank.front import best_first

SIZE = 64  # px: the suite is to fit into an hour of two cores
IMAGES = {"train": 800, "val": 200, "test": 1000}  # at most
SCORES = ("stage_accuracy", "probe_accuracy", "logme", "h_score", "knn_accuracy")
TIMED = "time: ranking 3 weight files on 1,000 images"


@dataclass(frozen=True)
class Network:
    """Where to start from; `weights` is what `--weights` takes."""

    name: str
    backbone: str
    weights: str

    @property
    def words(self) -> list[str]:
        return ["--backbone", self.backbone, "--weights", self.weights]


def networks() -> list[Network]:
    """The weight files at hand, and mobilenet_v2 with random weights."""
    found = sorted((SAMPLES / "weights").glob("*/*.pth"))
    files = [Network(path.stem, path.parent.name, str(path)) for path in found]
    return [*files, Network("random weights", "mobilenet_v2" if files else "smallnet", "none")]


def sets(scratch: Path) -> dict[str, list[Path]]:
    """Folders of class folders by the name of their set; several are pooled. The demo's digits where there are none."""
    data = SAMPLES / "data"
    named = {name: [data / name] for name in ("flowers5_small", "cifar10_mini")}
    named |= {f"digits {d}": [data / "digits" / d] for d in ("mnist", "usps", "sklearn_digits")}
    named["pacs_mini, domains pooled"] = sorted(p for p in (data / "pacs_mini").glob("*") if p.is_dir())
    there = {name: folders for name, folders in named.items() if folders and all(f.is_dir() for f in folders)}
    return there or {"demo digits": [write_digits(scratch / "digits")]}


def run(quick: bool) -> Iterator[Row]:
    """A row for each set and network as soon as it is there."""
    only = os.environ.get("EDGETL_BENCH_ONLY", "")
    seeds = [int(seed) for seed in os.environ.get("EDGETL_BENCH_SEEDS", "0").split(",")]
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        scratch = Path(folder)
        for number, (name, folders) in enumerate(sets(scratch).items()):
            wanted = [n for n in networks() if only in f"{name}: {n.name}"]
            if not wanted or (quick and number):
                continue
            place = scratch / str(number)
            counts = laid_out(folders, place / "data", quick)
            for network, seed in itertools.product(wanted[:2] if quick else wanted, seeds):
                values: dict[str, Any] = {"data": name, "network": network.name, "seed": seed, "size": SIZE, **counts}
                case = Case("choice", f"{name}: {network.name}" + (f", seed {seed}" if seed else ""), quick)
                yield row(case, cores(), {**values, **scored_and_tuned(network, place, quick, seed)})


def run_time(quick: bool) -> Iterator[Row]:
    """The row about time."""
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        yield row(Case("choice_time", TIMED, quick), cores(), timed(Path(folder), quick))


def laid_out(folders: Sequence[Path], to: Path, quick: bool) -> dict[str, int]:
    """Links in `to`/{train,val,test}/<class>/, at most IMAGES of each; the number of each.

    Where a set has no splits of its own, test gets all that train and val leave: it is to tell networks apart.
    """
    counts = {f"n_{split}": 0 for split in SPLITS}
    for folder in folders:
        data = read_data(str(folder), ReadOptions())
        share = {split: most / len(folders) / len(data.all()) for split, most in IMAGES.items()}
        if (left := 1 - share["train"] - share["val"]) > 0:
            data = read_data(str(folder), ReadOptions(0, share["val"], min(share["test"], left)))
        for split, most in IMAGES.items():
            count = 10 * len(data.labels) if quick else most // len(folders)
            for sample in draw_balanced(data.split(split), count, 0):
                link = to / split / data.labels[sample.target] / f"{folder.name}-{Path(sample.path).name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(data.root / sample.path)
                counts[f"n_{split}"] += 1
    return counts


def scored_and_tuned(network: Network, place: Path, quick: bool, seed: int = 0) -> dict[str, Any]:
    """The scores of `edgetl rank`, and the test accuracy of `edgetl finetune`, each in a process of its own."""
    size = ["--image-size", str(SIZE), "--json"]
    said = run_module("edgetl", "-q", "rank", str(place / "data"), *network.words, *size, threads=cores())["rows"][0]
    scores = {score: said[score] for score in (*SCORES, "leep", "imagenet_accuracy")}
    stages = {f"stage_{number}": accuracy for number, accuracy in enumerate(said["stage_accuracies"], 1)}
    return {**scores, **stages, **tuned(network, place, quick, seed)}


def tuned(network: Network, place: Path, quick: bool, seed: int = 0) -> dict[str, Any]:
    """What `edgetl finetune` makes of it: a training of a case is kept in the cache, for scores change and it does not.

    The key is what was trained on (each image's place and content) and with which words.
    """
    words = [*network.words, "--strategy", "lp-ft", "--image-size", str(SIZE), *(["--epochs", "1"] if quick else [])]
    words += ["--seed", str(seed)] if seed else []
    data = read_data(str(place / "data"), ReadOptions())
    trained_on = [(split, s.target, s.digest) for split in SPLITS for s in data.split(split)]
    key = hashlib.sha256(json.dumps([network.name, words[4:], trained_on]).encode()).hexdigest()[:16]
    kept = cache() / "choice" / f"{key}.json"
    if not kept.is_file():
        to = str(place / network.name)
        said = run_module(
            "edgetl", "-q", "finetune", str(place / "data"), "--to", to, *words, "--json", threads=cores()
        )
        found = {
            "test_accuracy": round(said["test"]["accuracy"], 4),
            "probe_val_accuracy": round(said["linear_probe"]["accuracy"], 4),
            "chosen": said["chosen"],
            "seconds": round(said["seconds"], 1),
        }
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found), encoding="utf-8")
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def timed(scratch: Path, quick: bool) -> dict[str, Any]:
    """What benchmarks.choice_child measured on the first set."""
    name, folders = next(iter(sets(scratch / "timed").items()))
    files = [n for n in networks() if n.weights != "none"][:3] or networks()
    words = [f"{n.backbone}={n.weights}" for n in files]
    most = "50" if quick else "1000"
    found = run_module("benchmarks.choice_child", str(folders[0]), most, *words, threads=cores())
    return {"data": name, "networks": len(files), **found}


def by_set(rows: list[Row]) -> list[Row]:
    """One row for each set, over its networks: tau of each score, what was chosen, and what that loses.

    Rows from before stages were probed had a third of the test images and are left out.
    """
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for found in rows:
        if "stage_accuracy" not in found["values"]:
            continue
        of_set = groups.setdefault(found["values"]["data"], {})
        of_set.setdefault(found["values"]["network"], []).append(found["values"])
    return [{"values": agreed(name, [over_seeds(v) for v in of_set.values()])} for name, of_set in groups.items()]


def over_seeds(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One network's values, its fine-tuned accuracy being the mean over seeds; scores know no seed."""
    mean = float(np.mean([v["test_accuracy"] for v in values]))
    return {**values[0], "test_accuracy": mean, "seeds": len(values)}


def agreed(name: str, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The table's row of one set. tau is None with fewer than three networks."""
    tuned = np.array([v["test_accuracy"] for v in values])
    taus = {s: tau([v[s] for v in values], tuned) for s in SCORES}
    regrets = {s: 100 * float(tuned.max() - tuned[int(np.argmax([v[s] for v in values]))]) for s in SCORES}
    ordered = best_first([{**v, "macs": 0, "weights": v["network"]} for v in values], values[0]["n_train"])
    first, places = ordered[0], [v["network"] for v in ordered]
    taus["rank"] = tau([-places.index(v["network"]) for v in values], tuned)
    return {
        "data": name,
        "networks": len(values),
        "seeds": sorted({v.get("seeds", 1) for v in (first, values[int(tuned.argmax())])}),
        "n_test": values[0]["n_test"],
        "tau": taus,
        "regret_pp": {**regrets, "rank": 100 * float(tuned.max() - first["test_accuracy"])},
        "half_width_pp": 100 * _half_width(float(tuned.max()), float(first["test_accuracy"]), values[0]["n_test"]),
        "first": first["network"],
        "best": values[int(tuned.argmax())]["network"],
        "best_accuracy": float(tuned.max()),
    }


def _half_width(one: float, other: float, n: int) -> float:
    """Of the 95 % interval of the difference of two accuracies on `n` images, which one it is being chance (Wald).

    As if on different images, so on the wide side; the noise of training comes on top.
    """
    return 1.96 * math.sqrt((one * (1 - one) + other * (1 - other)) / n)


def tau(score: Sequence[float], tuned: Sequence[float] | np.ndarray[Any, Any]) -> float | None:
    """Weighted Kendall's tau, hyperbolic weights: an exchange among the best counts most."""
    return float(weightedtau(score, tuned).statistic) if len(score) > 2 else None
