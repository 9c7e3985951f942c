"""Writing so that nothing is ever half there: atomic files, one writer at a time, sha256.

Python 3.8, standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Dict, Iterator, Tuple, Union

from edgetl.errors import BundleError, disk_errors

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PathLike = Union[str, Path]

TEMPORARY = (".edgetl-", ".tmp")  # how the name of a file that is not finished begins and ends
_BLOCK = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: PathLike) -> str:
    """Hex sha256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(data: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8.

    Raises ValueError for NaN, infinities and broken Unicode: JSON has none of them.
    """
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def atomic_write(path: PathLike, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the new one, through a crash or a power cut.

    A symbolic link is followed; what is no regular file (a pipe, /dev/null) is written to, not replaced.
    """
    target = Path(os.path.realpath(str(path)))
    with disk_errors(target):
        make_folder(target.parent)
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(data)
            return
        with _temporary(target.parent) as (name, stream):
            stream.write(data)
            _settle(stream)
            os.replace(name, str(target))
        sync_folder(target.parent)


def atomic_json(path: PathLike, data: Any) -> None:
    """`atomic_write` of indented JSON. Raises ValueError as `canonical_json` does."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(path, (text + "\n").encode("utf-8"))


def read_json(path: PathLike, what: str) -> Dict[str, Any]:
    """A JSON object from a file. Raises BundleError naming `what` when it is missing or broken."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_not_json)
    except FileNotFoundError:
        raise BundleError("no %s there" % what, path) from None
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError("the %s cannot be read" % what, "%s (%s)" % (path, error), "restore it") from error
    if not isinstance(data, dict):
        raise BundleError("the %s is not a JSON object" % what, path, "restore it")
    return data


def _not_json(constant: str) -> float:
    raise ValueError("%s is not JSON" % constant)


def copy_in(source: PathLike, folder: Path, name: str) -> Tuple[str, str, int, bool]:
    """Copy the file `source` into `folder` under `name`, where `{sha12}` becomes the start of its sha256.

    A name without `{sha12}` that other bytes have taken gets it added. Hashed while it is copied, so that
    the record is of the bytes that arrived, whatever happens to the source meanwhile; a user's photo is
    never moved or linked. Returns (name, sha256, bytes, whether it was not there before).
    """
    with open(str(source), "rb") as reading, disk_errors(folder / name):
        make_folder(folder)
        with _temporary(folder) as (temporary, stream):
            digest, size = hashlib.sha256(), 0
            for block in iter(lambda: reading.read(_BLOCK), b""):
                digest.update(block)
                stream.write(block)
                size += len(block)
            sha256 = digest.hexdigest()
            placed = name.replace("{sha12}", sha256[:12])
            if _is_other(folder / placed, sha256) and placed == name:
                # Named by a key and not by content: the older file may be on record, so it stays as it is.
                path = PurePosixPath(name)
                placed = str(path.with_name("%s-%s%s" % (path.stem, sha256[:12], path.suffix)))
            target = folder / placed
            if target.is_file() and not _is_other(target, sha256):
                return placed, sha256, size, False
            _settle(stream)
            make_folder(target.parent)
            os.replace(temporary, str(target))
        sync_folder(target.parent)
    return placed, sha256, size, True


def _is_other(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) != sha256


def append(path: Path, data: bytes) -> None:
    """Append `data` to a file in one write, so that the lines of two writers never mix.

    What a full disk cut short is taken back; a last line that a power cut left without its end gets one.
    Raises OSError.
    """
    handle = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            data = data if os.read(handle, 1) == b"\n" else b"\n" + data
        written = os.write(handle, data)
        if written < len(data):
            os.ftruncate(handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """mkdir -p that a power cut does not undo."""
    missing = []
    while not folder.is_dir() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


@contextmanager
def _temporary(folder: Path) -> Iterator[Tuple[str, BinaryIO]]:
    """A new file in `folder`, open for writing; gone at the end unless it was renamed."""
    name = str(folder / "{}{}-{}{}".format(TEMPORARY[0], os.getpid(), uuid.uuid4().hex[:12], TEMPORARY[1]))
    # Mode 666 less the umask, as for any file a user makes; tempfile's 600 would shut other users out of a bundle.
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield name, stream
    finally:
        unlink(name)


def _settle(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def work_dir(bundle: PathLike) -> Path:
    """`<bundle>.work`, where unfinished work on that bundle lives."""
    path = Path(os.path.realpath(str(bundle)))  # one lock for a bundle, by whichever link it is reached
    return path.with_name(path.name + ".work")


@contextmanager
def locked(bundle: PathLike, wait: bool = False) -> Iterator[Path]:
    """Hold the writer's lock of `bundle`; yields its work folder.

    The kernel frees the lock when the process dies, however it dies, so a stale one cannot exist. On
    release the lock file goes, and the work folder with it when nothing is left inside.
    Raises BundleError when another process holds it (unless `wait`).
    """
    work = work_dir(bundle)
    with disk_errors(work):
        handle = _acquire(work, wait, bundle)
    try:
        yield work
    finally:
        unlink(str(work / "lock"))
        try:
            work.rmdir()
        except OSError:
            pass  # work in progress is left there to be resumed or swept
        os.close(handle)


def _acquire(work: Path, wait: bool, bundle: PathLike) -> int:
    while True:
        make_folder(work)
        try:
            handle = os.open(str(work / "lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # the holder removed the folder between our two calls
        try:
            _lock(handle, wait)
        except (BlockingIOError, PermissionError):  # PermissionError is Windows' word for it
            os.close(handle)
            raise BundleError(
                "another edgetl is writing to this bundle", bundle, "wait for it to end and run this again"
            ) from None
        except OSError as error:
            os.close(handle)
            raise BundleError(
                "this file system cannot lock files", "%s (%s)" % (work, error.strerror), "use a local disk"
            ) from error
        try:
            # The previous holder unlinks the file on release: a lock on an unlinked file is no lock.
            if os.path.samestat(os.stat(str(work / "lock")), os.fstat(handle)):
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)


def _lock(handle: int, wait: bool) -> None:
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def sweep(folder: Path) -> None:
    """Remove a folder of unfinished work. Call it under the lock only."""
    shutil.rmtree(str(folder), ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` outlive a power cut, where the file system can."""
    try:
        handle = os.open(str(folder), os.O_RDONLY)
    except OSError:
        return  # Windows cannot open a folder; the rename itself is atomic there
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse to sync a folder
    finally:
        os.close(handle)


def unlink(path: PathLike) -> None:
    """Remove a file where that is possible; one that is gone already is fine."""
    try:
        os.unlink(str(path))
    except OSError:
        pass
