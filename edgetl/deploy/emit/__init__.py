"""What people run an engine with, written from a bundle: a service, a container, examples, DeepStream and Triton.

Each kind is a function from `Served` to texts by file name; this module checks the asked kinds and writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgetl.bundle import atomic_write
from edgetl.deploy.emit import cpp, deepstream, docker, python, systemd, triton
from edgetl.deploy.emit.served import Served, served
from edgetl.errors import InputError, disk_errors

Texts = Mapping[str, str]
KINDS: Mapping[str, Callable[[Served], Texts]] = {
    "deepstream": deepstream.texts,
    "triton": triton.texts,
    "cpp": cpp.texts,
    "python": python.texts,
    "systemd": systemd.texts,
    "docker": docker.texts,
}

__all__ = ["KINDS", "Served", "emit", "parse_kinds", "served", "texts_of"]


def parse_kinds(text: str) -> tuple[str, ...]:
    """`"deepstream,triton"` as kinds, in that order and once each. Raises InputError naming the known ones."""
    asked = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [kind for kind in asked if kind not in KINDS]
    if unknown or not asked:
        raise InputError("--emit does not know this", ", ".join(unknown) or repr(text), "use " + ", ".join(KINDS))
    return asked


def texts_of(kinds: Sequence[str], model: Served) -> dict[Path, str]:
    """The files of `kinds` by their place. Raises InputError as `emit`."""
    return {Path(kind) / name: text for kind in kinds for name, text in KINDS[kind](model).items()}


def emit(kinds: Sequence[str], model: Served, to: Path) -> list[Path]:
    """Write the files of `kinds` below `to`/<kind>; returns them.

    Every text is made before the first is written, so a kind that cannot serve this bundle leaves nothing.
    Raises InputError (the target cannot express the bundle's Preprocess, labels or output), DiskError.
    """
    made = texts_of(kinds, model)
    for name, text in made.items():
        with disk_errors(to / name):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(to / name, text.encode("utf-8"))
    return [to / name for name in made]
