"""Every error edgetl raises on purpose, as one tree::

    EdgetlError                 exit 1: what happened, the value, what to do next
    |-- InputError              the user's data, option or file is not usable
    |   |-- DataError           image folder, CSV, split
    |   |   `-- CorruptImage    one image that cannot be decoded (its path is the value)
    |   |-- WeightsError        a state dict that does not fit, or would run code
    |   `-- BackboneError       unknown backbone, or one that cannot do what is asked
    |-- BundleError             no bundle there, edited by hand, newer format, changed bytes, locked
    |-- StageError              a stage started and could not finish
    |   |-- GraphError          export, FP16, calibration, INT8
    |   |   `-- ParityError     a graph does not say what PyTorch says
    |   |-- EngineError         parser or builder refused, or the engine lost its precision
    |   |-- BackendError        a runtime is missing or failed
    |   |   `-- BackendCrash    a runtime took its process down with it
    |   |-- ConnectionLost      a device cannot be reached, or was lost on the way
    |   `-- DiskError           disk full, no permission
    `-- ContractUnmet           exit 3: a contract was asked for and not met; carries the full result

Python 3.8, standard library only: the device imports this.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Tuple


class EdgetlError(Exception):
    """Base of the tree. `what` happened, the offending `value`, and what to `do` about it."""

    exit_code = 1

    def __init__(self, what: str, value: object = "", do: str = "") -> None:
        self.what = one_line(what)
        self.value = one_line(str(value))
        self.do = one_line(do)
        super().__init__(str(self))

    def __str__(self) -> str:
        line = self.what + (": " + self.value if self.value else "")
        return line + ("; " + self.do if self.do else "")

    def __reduce__(self) -> Tuple[Any, ...]:
        # By its parts: Exception's own way would hand the whole line to `what` in another process.
        return (type(self), (self.what, self.value, self.do), dict(self.__dict__))

    def as_json(self) -> Dict[str, str]:
        """The object behind `"error"` in `--json` output."""
        return {"what": self.what, "value": self.value, "do": self.do}


class InputError(EdgetlError):
    """The user's data, option or file is not usable."""


class DataError(InputError):
    """An image folder, CSV or split is not usable."""


class CorruptImage(DataError):
    """One image cannot be decoded; `value` is its path."""


class WeightsError(InputError):
    """A state dict does not fit the backbone, cannot be read, or would run code."""


class BackboneError(InputError):
    """The backbone is unknown, or cannot do what is asked of it (size, profile)."""


class BundleError(EdgetlError):
    """No bundle there, or one that is damaged, edited, locked, or from a newer edgetl."""


class StageError(EdgetlError):
    """A stage started and could not finish."""


class GraphError(StageError):
    """Export, FP16 conversion, calibration or INT8 placement failed."""


class ParityError(GraphError):
    """A graph does not compute what it was made from."""


class EngineError(StageError):
    """NVIDIA's parser or builder refused a graph, or the engine is not what the graph says."""


class BackendError(StageError):
    """A runtime (onnxruntime, TensorRT, CUDA) is missing or failed."""


class BackendCrash(BackendError):
    """A runtime ended the process that it was tried in: a crash, or the kernel out of memory."""


class ConnectionLost(StageError):
    """A device cannot be reached, does not let us in, or was lost on the way."""


class DiskError(StageError):
    """The disk is full or may not be written."""


class ContractUnmet(EdgetlError):
    """A contract (`--max-drop`, `--fail-if`, ...) was asked for and not met.

    `result` is the full object that the command prints all the same.
    """

    exit_code = 3

    def __init__(self, what: str, value: object = "", do: str = "", result: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(what, value, do)
        self.result = result or {}


def one_line(text: str) -> str:
    """`text` as one printable line: line ends become spaces, control characters and broken Unicode escapes.

    Values can be a builder's log, or a file name that holds anything but a slash; spaces stay as they are,
    so that a path can be copied from the message.
    """
    joined = " ".join(part.strip() for part in text.splitlines() if part.strip())
    return "".join(c if c.isprintable() or c.isspace() else ascii(c)[1:-1] for c in joined.replace("\t", " "))


_DISK = {
    errno.ENOSPC: ("the disk is full", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EFBIG: ("the file is larger than may be written here", "choose another place or raise the limit"),
    errno.EACCES: ("may not write", "choose another place or change its permissions"),
    errno.EPERM: ("may not write", "choose another place or change its permissions"),
    errno.EROFS: ("may not write to a read-only file system", "choose another place"),
    errno.ENOTDIR: ("a file stands where a folder is wanted", "choose another place"),
    errno.EEXIST: ("a file stands where a folder is wanted", "choose another place"),
    errno.EISDIR: ("a folder stands where a file is wanted", "choose another place"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EIO: ("the disk failed", "check the disk, then run the same command again"),
}


@contextmanager
def disk_errors(path: object) -> Iterator[None]:
    """Map the operating system's write errors on `path` to DiskError; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        what, do = _DISK[error.errno]
        raise DiskError(what, path, do) from error
