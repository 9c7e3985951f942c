"""A bundle folder: open, create, add, verify. Standard library only, Python 3.8.

Stage contract: a stage reads named artifacts, writes new files, and records each with the sha256 of
what it was made from. Files are named by content and never edited; `manifest.json` is replaced,
atomically, and last. So a stage that is killed leaves the bundle as it was; what it had placed and not
recorded is swept by the next writer.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from edgetl.bundle import files
from edgetl.bundle import manifest as manifests
from edgetl.errors import BundleError, disk_errors
from edgetl.spec import Preprocess

Record = Dict[str, Any]

# What a bundle's own files are called: by content, or by an engine's key. Other files are the user's.
_CONTENT_NAMED = re.compile(r"(^|-)[0-9a-f]{12}\.[^/]+$")


@dataclass(frozen=True)
class NewArtifact:
    """A finished file waiting to enter a bundle.

    `source` is where it lies now; `name` is its place in the bundle with `{sha12}` where the first 12
    hex digits of its sha256 go ("graphs/trt10/int8-{sha12}.onnx"); `record` is what the manifest says
    of it beside file, sha256 and bytes: kind, made_by, made_from and whatever the stage knows.
    """

    source: Path
    name: str
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One line of `edgetl verify`."""

    name: str
    ok: bool
    value: object = None
    tolerance: object = None

    def as_json(self) -> Dict[str, Any]:
        """The object of cli.md."""
        return {"name": self.name, "ok": self.ok, "value": self.value, "tolerance": self.tolerance}


class Bundle:
    """A bundle as it was when it was opened; `add` returns to disk and refreshes it."""

    def __init__(self, path: Path, manifest: Dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: files.PathLike) -> Bundle:
        """Read the manifest at `path`. Raises BundleError (see manifest.read)."""
        folder = Path(os.path.abspath(str(path)))
        return cls(folder, manifests.read(folder))

    @property
    def labels(self) -> List[str]:
        """Class names; the position is the class index everywhere."""
        return [str(label) for label in self.manifest["labels"]]

    @property
    def preprocess(self) -> Preprocess:
        """From encoded image to pixels."""
        return Preprocess.from_json(self.manifest["preprocess"])

    @property
    def local(self) -> Dict[str, Any]:
        """`local.json` of this generation: command line, absolute paths, host. Empty on a bundle that travelled."""
        try:
            notes = files.read_json(self.path / "local.json", "local.json")
        except BundleError:
            return {}
        # A kill between the two files of a new generation leaves notes that are ahead of the manifest.
        generation, before = notes.get("generation"), notes.get("before")
        if isinstance(generation, int) and generation > self.manifest["generation"]:
            notes = before if isinstance(before, dict) else {}
        return {k: v for k, v in notes.items() if k not in ("generation", "before")}

    def artifacts(self, kind: Optional[str] = None, **want: object) -> List[Record]:
        """The records that are not stale and match, oldest first."""
        out = []
        for record in self.manifest["artifacts"]:
            if record.get("stale") or (kind is not None and record["kind"] != kind):
                continue
            if all(record.get(key) == _plain(value) for key, value in want.items()):
                out.append(record)
        return out

    def artifact(self, kind: str, **want: object) -> Record:
        """The newest matching record. Raises BundleError that names what is there instead."""
        found = self.artifacts(kind, **want)
        if found:
            return dict(found[-1])
        wanted = " ".join([kind] + ["%s=%s" % (k, _plain(v)) for k, v in want.items()])
        there = ", ".join(_describe(r) for r in self.artifacts(kind)) or "none"
        raise BundleError("the bundle has no " + wanted, self.path, "it has: " + there)

    def file(self, record: Mapping[str, Any]) -> Path:
        """The path of a recorded file, its bytes checked against the record. Raises BundleError."""
        path = self.path / str(record["file"])
        if not path.is_file():
            raise BundleError("a file of the bundle is missing", path, "restore it or run its stage again")
        try:
            same = path.stat().st_size == record["bytes"] and files.sha256_file(path) == record["sha256"]
        except OSError as error:
            raise BundleError("a file of the bundle cannot be read", "%s (%s)" % (path, error.strerror)) from error
        if not same:
            raise BundleError("the bytes of a file in the bundle changed", path, "restore it or run its stage again")
        return path

    def add(self, new: Sequence[NewArtifact], update: Optional[Mapping[str, Any]] = None) -> List[Record]:
        """Record finished files and manifest fields in one step; call it inside `writing`.

        Nothing older is removed: where two records answer to the same description, `artifact` gives the
        newest, so a second export adds and switches.
        """
        current = manifests.read(self.path)
        with _placed(self.path, new) as records:
            made = {r["file"] for r in records}
            current["artifacts"] = [r for r in current["artifacts"] if r["file"] not in made] + records
            current.update(update or {})
            self.manifest = _write_manifest(self.path, current)
        return records

    def append_rows(self, name: str, lines: Sequence[str]) -> Path:
        """Append JSON lines to `runs/<name>.jsonl`: all of them or, where the disk is full, none."""
        path = self.path / "runs" / (name + ".jsonl")
        with disk_errors(path):
            files.make_folder(path.parent)
            files.append(path, "".join(line + "\n" for line in lines).encode("utf-8"))
        return path

    def check_files(self) -> List[Check]:
        """One Check for each file that the manifest names, stale ones too."""
        out = []
        for record in self.manifest["artifacts"]:
            try:
                self.file(record)
                out.append(Check("sha256 " + record["file"], True, record["sha256"][:12], "equal"))
            except BundleError as error:
                out.append(Check("sha256 " + record["file"], False, error.what, "equal"))
        return out


@contextmanager
def writing(path: files.PathLike, purpose: str) -> Iterator[Tuple[Bundle, Path]]:
    """Hold the lock of an existing bundle; yields it, freshly read, and an empty scratch folder.

    The scratch folder is `<bundle>.work/<purpose>`; what a killed writer left there is swept first.
    Raises BundleError (no bundle, or another writer has it) and DiskError.
    """
    Bundle.open(path)  # a wrong path fails before a lock folder is made beside it
    with files.locked(path) as work:
        scratch = work / purpose
        files.sweep(scratch)
        try:
            with disk_errors(scratch):
                scratch.mkdir()
            bundle = Bundle.open(path)
            _sweep_orphans(bundle)
            yield bundle, scratch
        finally:
            files.sweep(scratch)


def create(
    path: files.PathLike,
    manifest: Mapping[str, Any],
    new: Sequence[NewArtifact],
    local: Mapping[str, Any],
    overwrite: bool = False,
) -> Bundle:
    """Make a bundle whole, or add a new generation to the one that is there. Call it under `files.locked`.

    `manifest` lacks format, generation, artifacts and digest; they are filled in here. With `overwrite`
    the older files stay and are marked stale. Raises BundleError when something is there and not `overwrite`.
    """
    folder = Path(os.path.realpath(str(path)))
    if not _vacant(folder):
        if not overwrite:
            raise BundleError("there is something at this place already", folder, "use --overwrite, or another --to")
        return _next_generation(folder, manifest, new, local)
    target = files.work_dir(folder) / "new"
    files.sweep(target)
    try:
        with disk_errors(target):
            files.make_folder(target)
        with _placed(target, new) as records:
            files.atomic_json(target / "local.json", dict(local, generation=1))
            sealed = _write_manifest(target, dict(manifest, format=manifests.FORMAT, generation=1, artifacts=records))
        with disk_errors(folder):
            os.replace(str(target), str(folder))
            files.sync_folder(folder.parent)
    finally:
        files.sweep(target)
    return Bundle(folder, sealed)


def _next_generation(
    folder: Path, manifest: Mapping[str, Any], new: Sequence[NewArtifact], local: Mapping[str, Any]
) -> Bundle:
    older = Bundle.open(folder)
    generation = int(older.manifest["generation"]) + 1
    before = dict(older.local, generation=generation - 1)
    with _placed(folder, new) as records:
        # What the new generation makes again, byte for byte, is current and not stale.
        made = {r["file"] for r in records}
        stale = [dict(r, stale=True) for r in older.manifest["artifacts"] if r["file"] not in made]
        files.atomic_json(folder / "local.json", dict(local, generation=generation, before=before))
        body = dict(manifest, format=manifests.FORMAT, generation=generation, artifacts=stale + records)
        sealed = _write_manifest(folder, body)
    _sweep_orphans(Bundle(folder, sealed))
    return Bundle(folder, sealed)


def _vacant(folder: Path) -> bool:
    """Nothing there, or a folder with nothing inside."""
    with disk_errors(folder):
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


@contextmanager
def _placed(folder: Path, new: Sequence[NewArtifact]) -> Iterator[List[Record]]:
    """Copy artifacts into `folder`; yields their records, and takes the new files back if the body fails."""
    records: List[Record] = []
    fresh: List[Path] = []
    try:
        for artifact in new:
            manifests.check_place(artifact.name)
            name, digest, size, is_new = files.copy_in(artifact.source, folder, artifact.name)
            if is_new:
                fresh.append(folder / name)
            record = {k: _plain(v) for k, v in artifact.record.items()}
            records.append(dict(record, file=name, sha256=digest, bytes=size))
        yield records
    except BaseException:
        _take_back(folder, fresh)
        raise


def _take_back(folder: Path, fresh: Sequence[Path]) -> None:
    """Remove `fresh` files, unless Ctrl-C came just after the manifest that records them."""
    try:
        known = {str(r["file"]) for r in manifests.read(folder)["artifacts"]}
    except BundleError:
        return  # a bundle in the making, whose whole folder is swept
    for path in fresh:
        if path.relative_to(folder).as_posix() not in known:
            files.unlink(path)


def _write_manifest(folder: Path, body: Mapping[str, Any]) -> Dict[str, Any]:
    sealed = manifests.seal(body)
    manifests.check(sealed, folder)
    files.atomic_json(folder / "manifest.json", sealed)
    return sealed


def _sweep_orphans(bundle: Bundle) -> None:
    """Remove what a killed writer left: unfinished files, and files it placed but never recorded."""
    known = {str(r["file"]) for r in bundle.manifest["artifacts"]}
    inside = list(bundle.path.iterdir())
    for room in ("graphs", "engines", "golden"):
        inside.extend((bundle.path / room).rglob("*"))
    for path in inside:
        name = path.name
        unfinished = name.startswith(files.TEMPORARY[0]) and name.endswith(files.TEMPORARY[1])
        orphan = _CONTENT_NAMED.search(name) and path.relative_to(bundle.path).as_posix() not in known
        if (unfinished or orphan) and path.is_file():
            files.unlink(path)


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _describe(record: Mapping[str, Any]) -> str:
    parts = [str(record[k]) for k in ("profile", "precision", "input") if record.get(k)]
    return "/".join(parts) or str(record["file"])
