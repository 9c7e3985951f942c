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
    |   `-- DiskError           disk full, no permission
    `-- ContractUnmet           exit 3: a contract was asked for and not met; carries the full result

Python 3.8, standard library only: the device imports this.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional


class EdgetlError(Exception):
    """Base of the tree. `what` happened, the offending `value`, and what to `do` about it."""

    exit_code = 1

    def __init__(self, what: str, value: object = "", do: str = "") -> None:
        self.what = what
        self.value = str(value)
        self.do = do
        super().__init__(str(self))

    def __str__(self) -> str:
        line = self.what + (": " + self.value if self.value else "")
        # One line always: values can hold newlines (a builder's log, a file name).
        return " ".join((line + ("; " + self.do if self.do else "")).split())

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


@contextmanager
def disk_errors(path: object) -> Iterator[None]:
    """Map the operating system's write errors on `path` to DiskError; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError("the disk is full", path, "free some space and run the same command again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DiskError("may not write", path, "choose another place or change its permissions") from error
        raise
