"""Releases: made of stored files, switched to in one step, rolled back to, and swept. Python 3.8.

A release is a bundle folder, named by the first 12 digits of the sha256 of the manifest it was pushed with.
`serve.json` in it says which variant serves. Whatever ends a step, `current` points to a whole release: the old one
or the new.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from edgetl.bundle import Bundle, atomic_json, sha256_file, sweep
from edgetl.bundle.files import make_folder, read_json, sync_folder, unlink
from edgetl.bundle.manifest import check_place
from edgetl.device import store
from edgetl.device.probe import archive_path
from edgetl.errors import BundleError, InputError, disk_errors

_RELEASE = re.compile(r"[0-9a-f]{12}")
IMAGES = "images"


def install(root: Path, manifest_sha256: str) -> Dict[str, Any]:
    """{"release", "new"}: the release of the stored manifest, its files hard-linked from the store.

    One that is there already keeps what was built in it, and gets files that were damaged meanwhile from the store.
    Raises BundleError where a file is missing or changed.
    """
    name = manifest_sha256[:12]
    if not store.SHA256.fullmatch(manifest_sha256):
        raise InputError("not a sha256", manifest_sha256, "64 hexadecimal digits, as in the release's manifest")
    place = root / "releases" / name
    if place.is_dir():
        _mend(root, place, _stored(root, manifest_sha256))
        return {"release": name, "new": False}
    fresh = root / "releases" / ("." + name)
    with disk_errors(fresh):
        sweep(fresh)
        make_folder(fresh)
        source = _stored(root, manifest_sha256)
        shutil.copyfile(str(source), str(fresh / "manifest.json"))  # a copy: a build on this device adds to it
        manifest = read_json(source, "manifest")
        for record in manifest["artifacts"]:
            check_place(record["file"])
            target = fresh / record["file"]
            make_folder(target.parent)
            os.link(str(_stored(root, record["sha256"])), str(target))
        os.replace(str(fresh), str(place))
        sync_folder(place.parent)
    Bundle.open(place)
    return {"release": name, "new": True}


def _mend(root: Path, place: Path, pushed: Path) -> None:
    """Link each pushed file of a release anew that is no longer the store's own."""
    with disk_errors(place):
        for record in read_json(pushed, "manifest")["artifacts"]:
            check_place(record["file"])
            target, source = place / record["file"], _stored(root, record["sha256"])
            if not target.is_file() or not os.path.samefile(str(source), str(target)):
                fresh = target.with_name("." + target.name)
                unlink(fresh)
                os.link(str(source), str(fresh))
                os.replace(str(fresh), str(target))
    Bundle.open(place)


def place_images(root: Path, listing_sha256: str) -> Path:
    """The CSV of labelled images to prove with, hard-linked from the store under <root>/images.

    The listing is JSON: [{"sha256", "name", "label"}]. Raises BundleError, InputError.
    """
    folder = root / IMAGES
    rows = json.loads(_stored(root, listing_sha256).read_text(encoding="utf-8"))
    with disk_errors(folder):
        sweep(folder)
        make_folder(folder)
        lines = ["path,label"]
        for row in rows:
            check_place(row["name"])
            os.link(str(_stored(root, row["sha256"])), str(folder / row["name"]))
            lines.append('%s,"%s"' % (row["name"], row["label"].replace('"', '""')))
        table = folder / "images.csv"
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def activate(root: Path, name: str, serve: Optional[Mapping[str, Any]], keep: int) -> Dict[str, Any]:
    """Point `current` to a release, keep the last `keep` releases, drop what nothing refers to any more.

    {"current", "previous", "removed"}. Raises BundleError for a release that is not there.
    """
    place = root / "releases" / _checked(name)
    Bundle.open(place)
    told = store.state(root)
    before = told["current"]
    said = dict(serve) if serve is not None else read_json(place / store.SERVE, "release")
    said["turn"] = 1 + max(store.turn(root, other) for other in told["releases"])
    with disk_errors(root):
        atomic_json(place / store.SERVE, said)
        _keep_app(root)
        link = root / ".current"
        unlink(link)
        os.symlink(os.path.join("releases", name), str(link))
        os.replace(str(link), str(root / "current"))
        sync_folder(root)
        removed = _prune(root, max(1, keep))
        sweep(root / IMAGES)
        _sweep_store(root)
    return {"current": name, "previous": before if before != name else None, "removed": removed}


def _keep_app(root: Path) -> None:
    """<root>/app.pyz: the app that switched, for the service that runs what it switched to."""
    archive = archive_path()
    if archive is not None:
        fresh = root / ".app"
        unlink(fresh)
        os.link(str(archive), str(fresh))
        os.replace(str(fresh), str(root / "app.pyz"))
        unlink(fresh)  # replacing a file by itself leaves both names


def rollback(root: Path, keep: int) -> Dict[str, Any]:
    """Back to the release that served before the current one. Raises BundleError where there is none."""
    told = store.state(root)
    current = told["current"]
    older = [
        name for name in told["releases"] if name != current and (root / "releases" / name / store.SERVE).is_file()
    ]
    if current is None or not older:
        raise BundleError(
            "there is no release to go back to", root, "it holds: " + (", ".join(told["releases"]) or "-")
        )
    return activate(root, older[-1], None, keep)


def _prune(root: Path, keep: int) -> List[str]:
    """Remove all but the `keep` newest releases; never the current one, which is the newest."""
    names: List[str] = store.state(root)["releases"]
    gone = names[:-keep]
    for name in gone:
        sweep(root / "releases" / name)
        sweep(root / "releases" / (name + ".work"))
    return gone


def _sweep_store(root: Path) -> None:
    """Drop stored files that no release refers to; unfinished ones stay, a push may go on with them."""
    wanted = set()
    for name in store.state(root)["releases"]:
        wanted.add(name)
        manifest = read_json(root / "releases" / name / "manifest.json", "manifest")
        wanted.update(record["sha256"] for record in manifest["artifacts"])
    for path in (root / "store").iterdir():
        if not path.name.endswith(".part") and path.name not in wanted and path.name[:12] not in wanted:
            path.unlink()


def _stored(root: Path, sha256: str) -> Path:
    path = root / "store" / sha256
    if not store.SHA256.fullmatch(sha256) or not path.is_file() or sha256_file(path) != sha256:
        raise BundleError("a pushed file is not there, or has other bytes", sha256[:12], "run the deploy again")
    return path


def _checked(name: str) -> str:
    if not _RELEASE.fullmatch(name):
        raise InputError("not a release", name, "`edgetl doctor --device HOST` lists what is there")
    return name
