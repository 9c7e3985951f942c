"""Writing so that nothing is ever half there: atomic files, one writer at a time, sha256.

Python 3.8, standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Union

from edgetl.errors import BundleError, disk_errors

try:
    import fcntl
except ImportError:  # Windows has none; the lock file's exclusive creation stands in there
    fcntl = None  # type: ignore[assignment]

PathLike = Union[str, Path]


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: PathLike) -> str:
    """Hex sha256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(str(path), "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(data: Any) -> bytes:
    """The one byte string for a JSON value: sorted keys, no spaces, UTF-8."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def atomic_write(path: PathLike, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the new one, through a crash or a power cut."""
    target = Path(path)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix="." + target.name + ".", suffix=".tmp", dir=str(target.parent))
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, str(target))
            _sync_directory(target.parent)
        except BaseException:
            _unlink(temporary)
            raise


def atomic_json(path: PathLike, data: Any) -> None:
    """`atomic_write` of indented JSON."""
    atomic_write(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def read_json(path: PathLike, what: str) -> Dict[str, Any]:
    """A JSON object from a file. Raises BundleError naming `what` when it is missing or broken."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError("no %s there" % what, path) from None
    except (ValueError, OSError) as error:
        raise BundleError("the %s cannot be read" % what, "%s (%s)" % (path, error)) from error
    if not isinstance(data, dict):
        raise BundleError("the %s is not a JSON object" % what, path)
    return data


def copy_in(source: PathLike, target: PathLike) -> None:
    """Put the file `source` at `target`: a rename where they share a file system, else copy and rename."""
    with disk_errors(target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        temporary = str(target) + ".tmp"
        try:
            shutil.copyfile(str(source), temporary)
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, str(target))
            _sync_directory(Path(target).parent)
        except BaseException:
            _unlink(temporary)
            raise


def work_dir(bundle: PathLike) -> Path:
    """`<bundle>.work`, where unfinished work on that bundle lives."""
    path = Path(os.path.abspath(str(bundle)))
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
        _unlink(str(work / "lock"))
        try:
            work.rmdir()
        except OSError:
            pass  # work in progress is left there to be resumed or swept
        os.close(handle)


def _acquire(work: Path, wait: bool, bundle: PathLike) -> int:
    while True:
        work.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(str(work / "lock"), os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # the holder removed the folder between our two calls
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                raise BundleError(
                    "another edgetl is writing to this bundle", bundle, "wait for it to end and run this again"
                ) from None
        try:
            # The previous holder unlinks the file on release: a lock on an unlinked file is no lock.
            if os.stat(str(work / "lock")).st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove a folder of unfinished work. Call it under the lock only."""
    shutil.rmtree(str(folder), ignore_errors=True)


def _sync_directory(folder: Path) -> None:
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


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
