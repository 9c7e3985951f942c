"""What must hold around a native build: Ctrl-C is safe, stdout stays ours, progress is told. Python 3.8."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterator

from edgetl.monitor import Monitor


class Cancel:
    """Set when the user pressed Ctrl-C during a native call."""

    def __init__(self) -> None:
        self.wanted = False


@contextmanager
def interruptible() -> Iterator[Cancel]:
    """Make Ctrl-C safe around native calls that call back into Python.

    A KeyboardInterrupt raised inside a callback would cross C++ frames and abort the process. So the
    signal only sets a flag, which a progress monitor can act on, and is raised here on the way out. A
    second Ctrl-C ends the process at once (what it leaves is swept by the next writer).
    """
    cancel = Cancel()
    if threading.current_thread() is not threading.main_thread():
        yield cancel  # Python delivers signals to the main thread only
        return

    def on_signal(number: int, frame: object) -> None:
        cancel.wanted = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)
        if cancel.wanted:
            raise KeyboardInterrupt


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """File descriptor 1 goes to 2 meanwhile: native libraries print there, and stdout is the result's."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:
        yield  # no stdout at all (a service): nothing to protect
        return
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def progress_for(trt: Any, monitor: Monitor, cancel: Cancel) -> Any:
    """A trt.IProgressMonitor that feeds `monitor` and ends the build on `cancel`; None where 8.x has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Progress(trt.IProgressMonitor):  # type: ignore[misc]  # as above
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: Dict[str, int] = {}  # of the outermost phases; the inner ones come and go by hundreds

        def phase_start(self, phase: str, parent: Any, steps: int) -> None:
            if parent is None:
                self.steps[phase] = max(steps, 1)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.steps:
                _tell(monitor, phase, min(step, self.steps[phase] - 1), self.steps[phase])
            return not cancel.wanted

        def phase_finish(self, phase: str) -> None:
            if phase in self.steps:
                _tell(monitor, phase, self.steps[phase], self.steps[phase])

    return Progress()


def _tell(monitor: Monitor, phase: str, done: int, total: int) -> None:
    try:
        monitor.progress(phase, done, total)
    except Exception:  # whatever a monitor raises: crossing TensorRT's C++ frames it would abort the process
        return
