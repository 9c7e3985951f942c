"""The peak memory of a backend, measured in a process of its own.

In a process that holds several backends, a peak belongs to none of them. So a fresh interpreter opens
one backend, runs it, and reports its peak resident set: interpreter and libraries included, as a
deployed program would have them. Python 3.8.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Optional

import numpy as np

from edgetl.errors import BackendCrash, BackendError
from edgetl.runtime import Backend

RUNS = 3
_ROOT = str(Path(__file__).resolve().parents[2])


def peak_rss_mb() -> Optional[float]:
    """The peak resident set of this process in MB (1e6 bytes); None where the system does not tell.

    Linux's VmHWM, not getrusage: there ru_maxrss also counts the parent that this process was forked from.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass  # no /proc: not Linux
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return None


def peak_of(opens: Callable[[], Backend], batch: int = 1, timeout: float = 120.0) -> Optional[float]:
    """Peak resident MB of a process that opens this backend and runs it on `batch` images.

    `opens` must be picklable (a functools.partial of a class or a module's function).
    None where the system does not tell. Raises BackendError when the process fails or takes too long, BackendCrash
    when a signal ended it (a crash of the runtime, or the kernel out of memory).
    """
    try:
        job = pickle.dumps((opens, batch))
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # pickle raises any of the three
        raise BackendError("memory is measured in a process of its own, which cannot be told", error) from error
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([_ROOT] + [p for p in [environment.get("PYTHONPATH")] if p])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "edgetl.measure.memory"],
            input=job,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=timeout,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError("measuring memory took too long", "%.0f s" % timeout) from error
    except subprocess.CalledProcessError as error:
        if error.returncode < 0:
            raise BackendCrash(
                "the backend ended the process that it was tried in", _signal(-error.returncode)
            ) from error
        last = error.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise BackendError("the process that measures memory failed", "".join(last) or error.returncode) from error
    answer = json.loads(done.stdout.decode("utf-8"))["peak_rss_mb"]
    return None if answer is None else float(answer)


def _signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "signal %d" % number
    return name + (" (out of memory?)" if name == "SIGKILL" else "")


def _child() -> None:
    """Stdin: what peak_of pickled. Stdout: {"peak_rss_mb"} and nothing that a library prints."""
    answer = os.dup(1)
    os.dup2(2, 1)
    opens, batch = pickle.loads(sys.stdin.buffer.read())
    backend: Backend = opens()
    shape = (backend.input.shape[0] if backend.input.shape[0] > 0 else batch,) + tuple(backend.input.shape[1:])
    for _ in range(RUNS):
        backend.run(np.zeros(shape, dtype=backend.input.dtype))
    peak = peak_rss_mb()
    backend.close()
    os.write(answer, json.dumps({"peak_rss_mb": peak}).encode("ascii"))


if __name__ == "__main__":
    _child()
