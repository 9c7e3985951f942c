"""Files that come in over a connection that may break: resumed by content, whole or not there. Python 3.8.

What comes on stdin, for each file: a line {"sha256", "bytes", "offset"}, then the bytes from `offset` on; an empty
line ends it. A file lands as store/<sha256>.part and gets its name when its bytes have that hash.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Dict

from edgetl.bundle import sha256_file
from edgetl.bundle.files import make_folder, sync_folder
from edgetl.device.store import is_wanted
from edgetl.errors import BackendError, InputError, disk_errors

_PIECE = 1 << 20


def receive(root: Path, stream: BinaryIO) -> Dict[str, Any]:
    """{"files", "bytes"} that came. Raises BackendError (cut off; what came so far stays), InputError, DiskError."""
    store = root / "store"
    with disk_errors(store):
        make_folder(store)
    files = total = 0
    while True:
        line = stream.readline().strip()
        if not line:
            break
        head = _head(line)
        total += _one(store, head, stream)
        files += 1
    with disk_errors(store):
        sync_folder(store)
    return {"files": files, "bytes": total}


def _head(line: bytes) -> Dict[str, Any]:
    try:
        head = json.loads(line.decode("utf-8"))
    except ValueError:
        head = None
    offset = head.get("offset") if isinstance(head, dict) else None
    if not is_wanted(head) or not isinstance(offset, int) or not 0 <= offset <= head["bytes"]:
        raise InputError("what came is no list of files", line[:80], 'a line {"sha256", "bytes", "offset"} was due')
    return dict(head)


def _one(store: Path, head: Dict[str, Any], stream: BinaryIO) -> int:
    path = store / head["sha256"]
    part = path.with_name(path.name + ".part")
    offset, due = head["offset"], head["bytes"] - head["offset"]
    have = part.stat().st_size if part.is_file() else 0
    if have < offset:
        raise BackendError("a file was to go on where it is not", "%s: %d of %d" % (path.name[:12], have, offset))
    with disk_errors(part), open(str(part), "r+b" if part.is_file() else "wb") as file:
        file.seek(offset)
        file.truncate()
        while due:
            piece = stream.read(min(_PIECE, due))
            if not piece:
                raise BackendError("the connection ended in a file", path.name[:12], "run the same command again")
            file.write(piece)
            due -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    if sha256_file(part) != head["sha256"]:
        part.unlink()
        raise BackendError("a file came with other bytes than its hash says", path.name[:12], "run the command again")
    os.replace(str(part), str(path))
    return int(head["bytes"] - offset)
