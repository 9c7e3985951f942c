"""The manifest: format version, shape, its own digest. Standard library only, Python 3.8.

Bump procedure: raise FORMAT, add a function to UPGRADES that turns the older dict into the newer one,
and keep a bundle of the older format under tests/data/bundles/. A reader refuses formats above its own.
`manifest.schema.json` beside this file is the same shape for other tools (JSON Schema 2020-12).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Mapping

from edgetl.bundle.files import canonical_json, read_json, sha256_bytes
from edgetl.errors import BundleError

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


def seal(manifest: Mapping[str, Any]) -> Dict[str, Any]:
    """`manifest` with its `digest`: the sha256 of everything else in it as canonical JSON."""
    body = {k: v for k, v in manifest.items() if k != "digest"}
    body["digest"] = sha256_bytes(canonical_json(body))
    return body


def read(path: Path) -> Dict[str, Any]:
    """The manifest of the bundle folder `path`, checked and upgraded to FORMAT.

    Raises BundleError: no bundle, newer format, edited by hand, a field missing or of the wrong type.
    """
    if not path.is_dir():
        raise BundleError("no such bundle", path, "make one with `edgetl finetune DATA --to %s`" % path)
    if not (path / "manifest.json").is_file():
        raise BundleError("no bundle in this folder (it has no manifest.json)", path)
    manifest = read_json(path / "manifest.json", "manifest")
    version = manifest.get("format")
    if not isinstance(version, int):
        raise BundleError("the manifest has no format version", path / "manifest.json")
    if version > FORMAT:
        raise BundleError(
            "the bundle has a newer format than this edgetl reads",
            "%s has format %d, this is %d" % (path, version, FORMAT),
            "upgrade edgetl",
        )
    if seal(manifest)["digest"] != manifest.get("digest"):
        raise BundleError(
            "the manifest was changed by hand (its digest does not fit)",
            path / "manifest.json",
            "restore it, or make the bundle again",
        )
    while manifest["format"] < FORMAT:
        manifest = UPGRADES[manifest["format"]](manifest)
    check(manifest, path)
    return manifest


def check(manifest: Mapping[str, Any], path: Path) -> None:
    """Raise BundleError where `manifest` lacks a field or holds one of another type."""
    _check_fields(manifest, _REQUIRED, path, "")
    for index, artifact in enumerate(manifest["artifacts"]):
        if not isinstance(artifact, dict):
            raise BundleError("the manifest's artifact %d is not an object" % index, path)
        _check_fields(artifact, _ARTIFACT_REQUIRED, path, "artifacts[%d]." % index)
        parts = Path(artifact["file"]).parts
        if Path(artifact["file"]).is_absolute() or ".." in parts:
            raise BundleError("an artifact lies outside the bundle", artifact["file"])


def _check_fields(data: Mapping[str, Any], required: Mapping[str, type], path: Path, prefix: str) -> None:
    for key, kind in required.items():
        if key not in data:
            raise BundleError("the manifest lacks a field", "%s%s in %s" % (prefix, key, path))
        if not isinstance(data[key], kind) or (kind is int and isinstance(data[key], bool)):
            raise BundleError("a field of the manifest has the wrong type", "%s%s in %s" % (prefix, key, path))
