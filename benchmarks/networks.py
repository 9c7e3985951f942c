"""The fine-tuned bundles that the INT8 suites quantise, trained once by `edgetl finetune` and kept in a cache.

EDGETL_BENCH_CACHE names the cache (default benchmarks/.cache); a bundle there is known by what it was made
with, so another recipe is another bundle. Nothing of it is measured time: training is not what is compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.child import cores, run_module
from benchmarks.data import SAMPLES
from benchmarks.rows import HERE
from edgetl.embedded.digits import write_digits
from edgetl.images import SPLITS, ReadOptions, draw_balanced, read_data

PER_CLASS = {"train": 300, "val": 200, "test": 200}  # of the 10,000 MNIST images


@dataclass(frozen=True)
class Recipe:
    """`edgetl finetune` on a data set: `name` is shown in tables, `options` are the command's own."""

    name: str
    data: str
    options: tuple[str, ...]


def cache() -> Path:
    """The folder that keeps trained bundles and data laid out for them."""
    return Path(os.environ.get("EDGETL_BENCH_CACHE", HERE / ".cache"))


def bundle_of(recipe: Recipe) -> Path:
    """The bundle of `recipe`, trained now where the cache has none. Raises RuntimeError when training fails."""
    data = data_of(recipe.data)
    words = json.dumps([recipe.data, *_portable(recipe.options)])
    slug = "".join(c if c.isalnum() else "-" for c in recipe.name.lower())
    to = cache() / f"{slug}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    if not (to / "manifest.json").is_file():
        run_module("edgetl", "-q", "finetune", str(data), "--to", str(to), *recipe.options, "--json", threads=cores())
    return to


def _portable(options: tuple[str, ...]) -> list[str]:
    """Options with files by their name alone: another checkout's path is not another recipe."""
    return [Path(word).name if os.sep in word else word for word in options]


def finetuned(backbone: str, data: str) -> Recipe:
    """The pretrained sample weights fine-tuned at 128 px, with splits large enough to tell half a point.

    Raises FileNotFoundError where the weights are absent.
    """
    options: tuple[str, ...] = ("--backbone", backbone, "--weights", str(weights_of(backbone)), "--image-size", "128")
    options += ("--strategy", "lp-ft", "--epochs", "3", "--val-fraction", "0.3", "--test-fraction", "0.3")
    return Recipe(f"{backbone}, {data}", data, options)


def from_scratch(title: str, backbone: str, arguments: str, epochs: int) -> Recipe:
    """A small network trained on digits at 64 px: MNIST's where the samples are, else the embedded ones."""
    data = "mnist" if have_samples() else "digits"
    options: tuple[str, ...] = ("--backbone", backbone, "--backbone-args", arguments, "--image-size", "64")
    options += ("--weights", "none", "--strategy", "scratch", "--epochs", str(epochs))
    return Recipe(f"{title}, {data}", data, options)


def data_of(name: str) -> Path:
    """A folder that edgetl reads: sample data by name, "pacs_mini pooled", "mnist", or "digits" (embedded).

    Raises FileNotFoundError where the sample data is absent.
    """
    if name == "digits":
        return write_digits(cache() / "data/digits", train_per_class=80)
    if name == "mnist":
        return _mnist(_sample("digits/mnist"), cache() / "data/mnist")
    if name == "pacs_mini pooled":
        return _pooled(_sample("pacs_mini"), cache() / "data/pacs_mini-pooled")
    return _sample(name)


def have_samples() -> bool:
    """Whether the sample images are here."""
    return (SAMPLES / "data/flowers5_small").is_dir()


def weights_of(backbone: str) -> Path:
    """The sample weights of `backbone`. Raises FileNotFoundError."""
    found = sorted((SAMPLES / "weights" / backbone).glob(f"{backbone}-imagenet*.pth"))
    if not found:
        raise FileNotFoundError(f"no weights of {backbone} in {SAMPLES / 'weights'} (set EDGETL_SAMPLES)")
    return found[0]


def _sample(name: str) -> Path:
    folder = SAMPLES / "data" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"no sample images at {folder} (set EDGETL_SAMPLES)")
    return folder


def _mnist(source: Path, to: Path) -> Path:
    """A balanced, seeded draw in split folders; validation and test large enough to tell half a point."""
    if to.is_dir():
        return to
    data = read_data(str(source), ReadOptions(val_fraction=0.0, test_fraction=0.0))
    rest = draw_balanced(data.all(), sum(PER_CLASS.values()) * len(data.labels), seed=0)
    with _whole(to) as scratch:
        for split in SPLITS:
            count = PER_CLASS[split] * len(data.labels)
            for sample in rest[:count]:  # a prefix of a balanced draw is balanced
                _link(data.root / sample.path, scratch / split / data.labels[sample.target] / Path(sample.path).name)
            rest = rest[count:]
    return to


def _pooled(source: Path, to: Path) -> Path:
    """<domain>/<class>/ as <class>/<domain>-file."""
    if to.is_dir():
        return to
    with _whole(to) as scratch:
        for path in sorted(p for p in source.glob("*/*/*") if p.is_file()):
            domain, label = path.parts[-3:-1]
            _link(path, scratch / label / f"{domain}-{path.name}")
    return to


class _whole:
    """A folder that is there only when the block came to its end."""

    def __init__(self, to: Path) -> None:
        self._to, self._scratch = to, to.with_name(to.name + ".part")

    def __enter__(self) -> Path:
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        return self._scratch

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._scratch.rename(self._to)


def _link(file: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(file)
