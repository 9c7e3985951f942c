"""A bundle folder: open, create, add, verify. Standard library only, Python 3.8.

Stage contract: a stage reads named artifacts, writes new files, and records each with the sha256 of
what it was made from. Files are named by content and never edited; `manifest.json` is the only file
that is replaced, atomically, and last. So a stage that is killed leaves the bundle as it was.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from edgetl.bundle import files, manifest as manifests
from edgetl.errors import BundleError, disk_errors
from edgetl.spec import Preprocess

Record = Dict[str, Any]


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
        """`local.json`: command line, absolute paths, host. Empty on a bundle that travelled."""
        try:
            return files.read_json(self.path / "local.json", "local.json")
        except BundleError:
            return {}

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
        if path.stat().st_size != record["bytes"] or files.sha256_file(path) != record["sha256"]:
            raise BundleError("the bytes of a file in the bundle changed", path, "restore it or run its stage again")
        return path

    def add(self, new: Sequence[NewArtifact], update: Optional[Mapping[str, Any]] = None) -> List[Record]:
        """Record finished files and manifest fields in one step; call it inside `writing`.

        Nothing older is removed: where two records answer to the same description, `artifact` gives the
        newest, so a second export adds and switches.
        """
        current = manifests.read(self.path)
        records = [_place(self.path, artifact) for artifact in new]
        kept = [r for r in current["artifacts"] if not any(_same(r, n) for n in records)]
        current["artifacts"] = kept + records
        current.update(update or {})
        self.manifest = _write_manifest(self.path, current)
        return records

    def append_rows(self, name: str, lines: Sequence[str]) -> Path:
        """Append JSON lines to `runs/<name>.jsonl` (one write, so that lines never interleave)."""
        path = self.path / "runs" / (name + ".jsonl")
        with disk_errors(path):
            path.parent.mkdir(exist_ok=True)
            handle = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(handle, "".join(line + "\n" for line in lines).encode("utf-8"))
            finally:
                os.close(handle)
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
    """
    Bundle.open(path)  # a wrong path fails before a lock folder is made beside it
    with files.locked(path) as work:
        scratch = work / purpose
        files.sweep(scratch)
        scratch.mkdir()
        try:
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
    the older files stay and are marked stale. Raises BundleError when a bundle is there and not `overwrite`.
    """
    folder = Path(os.path.abspath(str(path)))
    if folder.exists() and not overwrite:
        raise BundleError("there is something at this place already", folder, "use --overwrite, or another --to")
    if folder.exists():
        older = manifests.read(folder)
        target = folder
        stale = [dict(r, stale=True) for r in older["artifacts"]]
        generation = int(older["generation"]) + 1
    else:
        target = files.work_dir(folder) / "new"
        files.sweep(target)
        with disk_errors(target):
            target.mkdir(parents=True)
        stale, generation = [], 1
    records = [_place(target, artifact) for artifact in new]
    # A file that the new generation makes again, byte for byte, is current and not stale.
    stale = [r for r in stale if not any(n["file"] == r["file"] for n in records)]
    files.atomic_json(target / "local.json", dict(local))
    body = dict(manifest, format=manifests.FORMAT, generation=generation, artifacts=stale + records)
    sealed = _write_manifest(target, body)
    if target != folder:
        with disk_errors(folder):
            os.rename(str(target), str(folder))
    return Bundle(folder, sealed)


def _place(folder: Path, artifact: NewArtifact) -> Record:
    digest = files.sha256_file(artifact.source)
    name = artifact.name.format(sha12=digest[:12])
    target = folder / name
    size = artifact.source.stat().st_size
    if not (target.is_file() and target.stat().st_size == size and files.sha256_file(target) == digest):
        files.copy_in(artifact.source, target)
    return dict({k: _plain(v) for k, v in artifact.record.items()}, file=name, sha256=digest, bytes=size)


def _write_manifest(folder: Path, body: Mapping[str, Any]) -> Dict[str, Any]:
    sealed = manifests.seal(body)
    manifests.check(sealed, folder)
    files.atomic_json(folder / "manifest.json", sealed)
    return sealed


def _sweep_orphans(bundle: Bundle) -> None:
    """Remove files that a killed writer placed but never recorded."""
    known = {str(r["file"]) for r in bundle.manifest["artifacts"]}
    for room in ("graphs", "engines", "golden"):
        for path in (bundle.path / room).rglob("*"):
            if path.is_file() and path.relative_to(bundle.path).as_posix() not in known:
                path.unlink()
    for path in bundle.path.glob("checkpoint-*"):
        if path.name not in known:
            path.unlink()


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(old["file"] == new["file"])


def _plain(value: object) -> object:
    return value.value if hasattr(value, "value") else value


def _describe(record: Mapping[str, Any]) -> str:
    parts = [str(record[k]) for k in ("profile", "precision", "input") if record.get(k)]
    return "/".join(parts) or str(record["file"])
