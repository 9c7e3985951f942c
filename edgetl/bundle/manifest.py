"""The manifest: format version, shape, its own digest. Standard library only, Python 3.8.

Bump procedure: raise FORMAT, add a function to UPGRADES that turns the older dict into the newer one,
and keep a bundle of the older format under tests/data/bundles/. A reader refuses formats above its own.
`manifest.schema.json` beside this file is the same shape for other tools (JSON Schema 2020-12).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Dict, Mapping

from edgetl.bundle.files import canonical_json, read_json, sha256_bytes
from edgetl.errors import BundleError, InputError
from edgetl.spec import Preprocess

FORMAT = 1
SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")

# Older format number -> the function that makes the next one of it.
UPGRADES: Dict[int, Callable[[Dict[str, Any]], Dict[str, Any]]] = {}

_REQUIRED = {
    "format": int,
    "task": str,
    "made_by": str,
    "generation": int,
    "labels": list,
    "preprocess": dict,
    "model": dict,
    "splits": dict,
    "tolerances": dict,
    "training": dict,
    "artifacts": list,
    "digest": str,
}
_ARTIFACT_REQUIRED = {"kind": str, "file": str, "sha256": str, "bytes": int, "made_by": str}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAKE_AGAIN = "restore it, or make the bundle again"


def seal(manifest: Mapping[str, Any]) -> Dict[str, Any]:
    """`manifest` with its `digest`: the sha256 of everything else in it as canonical JSON.

    Raises BundleError where a value is nothing JSON can hold.
    """
    body = {k: v for k, v in manifest.items() if k != "digest"}
    try:
        body["digest"] = sha256_bytes(canonical_json(body))
    except (ValueError, TypeError, RecursionError) as error:
        raise BundleError("the manifest holds what JSON cannot say", error, _MAKE_AGAIN) from error
    return body


def read(path: Path) -> Dict[str, Any]:
    """The manifest of the bundle folder `path`, checked and upgraded to FORMAT.

    Raises BundleError: no bundle, newer format, edited by hand, a field missing or of the wrong type.
    """
    if not path.is_dir():
        raise BundleError("no such bundle", path, "make one with `edgetl finetune DATA --to %s`" % path)
    if not (path / "manifest.json").is_file():
        raise BundleError(
            "no bundle in this folder (it has no manifest.json)", path, "give one that finetune or adopt made"
        )
    manifest = read_json(path / "manifest.json", "manifest")
    version = manifest.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError("the manifest has no format version", path / "manifest.json", _MAKE_AGAIN)
    if version > FORMAT:
        raise BundleError(
            "the bundle has a newer format than this edgetl reads",
            "%s has format %d, this is %d" % (path, version, FORMAT),
            "upgrade edgetl",
        )
    if seal(manifest)["digest"] != manifest.get("digest"):
        raise BundleError(
            "the manifest was changed by hand (its digest does not fit)", path / "manifest.json", _MAKE_AGAIN
        )
    while manifest["format"] < FORMAT:
        if manifest["format"] not in UPGRADES:
            raise BundleError("no edgetl wrote this format", "%s has format %d" % (path, version), _MAKE_AGAIN)
        manifest = UPGRADES[manifest["format"]](manifest)
    check(manifest, path)
    return manifest


def check(manifest: Mapping[str, Any], path: Path) -> None:
    """Raise BundleError where `manifest` lacks a field or holds one of another type."""
    _check_fields(manifest, _REQUIRED, path, "")
    if manifest["generation"] < 1:
        raise _wrong("generation", path)
    labels = manifest["labels"]
    if not labels or not all(isinstance(label, str) and label for label in labels) or len(set(labels)) != len(labels):
        raise _wrong("labels", path)
    try:
        Preprocess.from_json(manifest["preprocess"])
    except InputError as error:
        raise BundleError("the manifest's Preprocess is wrong", "%s in %s" % (error, path), _MAKE_AGAIN) from error
    for name, split in manifest["splits"].items():
        if not isinstance(split, dict):
            raise _wrong("splits." + name, path)
        _check_fields(split, {"n": int, "digest": str}, path, "splits.%s." % name)
    for index, artifact in enumerate(manifest["artifacts"]):
        if not isinstance(artifact, dict):
            raise _wrong("artifacts[%d]" % index, path)
        _check_artifact(artifact, path, "artifacts[%d]." % index)
    files = [artifact["file"] for artifact in manifest["artifacts"]]
    twice = sorted({file for file in files if files.count(file) > 1}) if len(set(files)) < len(files) else []
    if twice:
        raise BundleError("two artifacts of the manifest are one file", "%s in %s" % (twice[0], path), _MAKE_AGAIN)


def _check_artifact(artifact: Mapping[str, Any], path: Path, prefix: str) -> None:
    _check_fields(artifact, _ARTIFACT_REQUIRED, path, prefix)
    if not _SHA256.fullmatch(artifact["sha256"]):
        raise _wrong(prefix + "sha256", path)
    if artifact["bytes"] < 0:
        raise _wrong(prefix + "bytes", path)
    if not isinstance(artifact.get("stale", False), bool):
        raise _wrong(prefix + "stale", path)
    check_place(artifact["file"])


def check_place(name: str) -> None:
    """Raise BundleError unless `name` is a path inside a bundle, in any operating system's reading."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(c in name for c in "\\:\0"):
        raise BundleError("an artifact lies outside the bundle", name, _MAKE_AGAIN)
    if name in ("manifest.json", "local.json"):
        raise BundleError("an artifact has the name of a file that is not one", name, _MAKE_AGAIN)


def _check_fields(data: Mapping[str, Any], required: Mapping[str, type], path: Path, prefix: str) -> None:
    for key, kind in required.items():
        if key not in data:
            raise BundleError("the manifest lacks a field", "%s%s in %s" % (prefix, key, path), _MAKE_AGAIN)
        if not isinstance(data[key], kind) or (kind is int and isinstance(data[key], bool)):
            raise _wrong(prefix + key, path)


def _wrong(field: str, path: Path) -> BundleError:
    return BundleError("a field of the manifest has a wrong value", "%s in %s" % (field, path), _MAKE_AGAIN)
