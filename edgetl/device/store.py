"""What a device holds of a deployment, and what of a wanted set of files is missing there. Python 3.8.

<root>/releases/<name>/    one bundle folder each, with only the files that travelled
<root>/store/<sha256>      files by content, from which releases are hard-linked; may be partial: <sha256>.part
<root>/current             a symbolic link to the release that serves
<root>/engines/            engines by key, shared by all releases (edgetl.engine.cache)
<root>/jobs/               work that outlives a connection (edgetl.device.jobs)
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from edgetl.bundle import sha256_file
from edgetl.errors import InputError

SERVE = "serve.json"  # in a release: the variant that serves, and what was measured of it
SHA256 = re.compile(r"[0-9a-f]{64}")


def state(root: Path) -> Dict[str, Any]:
    """{"releases": [names, in the order in which they last began to serve], "current": name|None, "serve": {}|None,
    "engines": [keys], "jobs": [names]}.

    "serve" is what the current release says of the variant that serves.
    """
    return {
        "releases": sorted(releases(root), key=lambda name: (turn(root, name), name)),
        "current": _current(root),
        "serve": _serve(root / "current" / SERVE),
        "engines": sorted(name[: -len(".plan")] for name in _names(root / "engines") if name.endswith(".plan")),
        "jobs": _names(root / "jobs"),
    }


def missing(root: Path, wanted: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    """Which of `wanted` ({"sha256", "bytes"}) the store lacks: [{"sha256", "bytes", "have"}].

    "have": bytes of an unfinished copy, from which the transfer may go on. A file whose size or bytes are wrong
    counts as missing; nothing is changed here, `receive` puts the right one in its place.
    """
    out = []
    for file in wanted:
        path = root / "store" / file["sha256"]
        if path.is_file() and path.stat().st_size == file["bytes"] and sha256_file(path) == file["sha256"]:
            continue
        part = path.with_name(path.name + ".part")
        have = part.stat().st_size if part.is_file() else 0
        out.append({"sha256": file["sha256"], "bytes": file["bytes"], "have": min(have, file["bytes"])})
    return out


def read_wanted(source: str) -> List[Dict[str, Any]]:
    """A JSON list of {"sha256", "bytes"} from a file, or from stdin for "-". Raises InputError."""
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(
            "the list of wanted files cannot be read", "%s (%s)" % (source, error), "run `edgetl deploy` again"
        ) from error
    good = isinstance(found, list) and all(is_wanted(entry) for entry in found)
    if not good:
        raise InputError("the list of wanted files is not one", source, 'it wants [{"sha256": "<hex>", "bytes": N}]')
    return list(found)


def is_wanted(entry: object) -> bool:
    """Whether `entry` is {"sha256", "bytes"} with values that may name a file."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and SHA256.fullmatch(entry["sha256"]) is not None  # it becomes a file name
        and isinstance(entry.get("bytes"), int)
        and entry["bytes"] >= 0
    )


def releases(root: Path) -> List[str]:
    """The names of the releases, without the work folders beside them."""
    return [name for name in _names(root / "releases") if "." not in name]


def turn(root: Path, name: str) -> int:
    """When a release last began to serve, counted and not timed: a board without a battery has any clock. 0: never."""
    serve = _serve(root / "releases" / name / SERVE)
    return int(serve.get("turn", 0)) if isinstance(serve, dict) else 0


def _serve(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _current(root: Path) -> Any:
    try:
        return os.path.basename(os.readlink(str(root / "current")))
    except OSError:
        return None


def _names(folder: Path) -> List[str]:
    try:
        return sorted(name for name in os.listdir(str(folder)) if not name.startswith("."))
    except OSError:
        return []
