"""What every command shares: JSON or tables, progress on stderr, errors as one line, exit codes."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from edgetl.cli import launch
from edgetl.errors import ContractUnmet, DiskError, EdgetlError
from edgetl.monitor import Monitor

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; all else goes to stderr.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Write the same JSON object to this file.", metavar="FILE")
]

EXIT_INTERRUPTED = 130
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


class ConsoleMonitor(Monitor):
    """Progress bars and lines on stderr. `interrupted`: a Ctrl-C got lost, so the next progress raises it again."""

    interrupted = False

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        """One bar for each `what`; bars are drawn on a terminal only. Raises a KeyboardInterrupt that got lost."""
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        if self._quiet or not self._console.is_terminal:
            return
        if self._bars is None:
            columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=self._console, transient=True)
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(what))
            if not self._tasks:
                self.close()  # its redrawing thread would be seen in the p99 of a bench

    def say(self, line: str) -> None:
        """A line on stderr unless -q."""
        if not self._quiet:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """A line on stderr, always."""
        self._console.print("warning: " + line, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bars off the terminal."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


class Session:
    """One command's run: where it reports to, and how its result gets out."""

    def __init__(self, as_json: bool, out: Path | None, verbosity: int) -> None:
        self.as_json = as_json
        self.out = out
        self.speaks = launch.speaks()  # of several processes one does
        self.verbosity = verbosity
        self.stderr = Console(stderr=True)
        # A pipe has no width of its own, and rich's guess of 80 would cut paths and tables.
        known = sys.stdout.isatty() or "COLUMNS" in os.environ
        self.stdout = Console(width=None if known else 110)
        self.monitor = ConsoleMonitor(self.stderr, quiet=verbosity < 0)

    def done(self, result: dict[str, Any], show: Callable[[Console], None] | None = None) -> None:
        """Hand over the command's object: as JSON, to `--out`, or through `show` on stdout."""
        self.monitor.close()
        if not self.speaks:
            return
        if self.out is not None:
            from edgetl.bundle import atomic_json

            atomic_json(self.out, result)
        if self.as_json:
            sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif show is not None and self.verbosity >= 0:
            show(self.stdout)


def tune_for_training() -> None:
    """Set this process up for training on a CPU; call it before torch is loaded. A bench does not call it.

    OpenMP threads that spin while they wait made training 2 to 7 times slower beside other work on two
    cores. And glibc gives every large tensor back to the kernel: a third of the time went into page faults
    (mobilenet_v2 at 128 px, batch 64: 14.3 ms an image, 9.0 with the heap kept).
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # libgomp reads this when torch loads
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; musl has none
        if mallopt is not None:
            for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
                mallopt(option, value)


def shell(path: object) -> str:
    """`path` as a shell takes it in a command that is shown: quoted where needed, and a dash in front is no option."""
    text = str(path)
    return shlex.quote("./" + text if text.startswith("-") else text)


@contextmanager
def session(ctx: typer.Context, as_json: bool, out: Path | None) -> Iterator[Session]:
    """Run a command's body: each way it can end becomes its line and its exit code (cli.md)."""
    run = Session(as_json, out, int((ctx.find_root().obj or {}).get("verbosity", 0)))
    if run.verbosity <= 0:
        warnings.simplefilter("ignore")  # libraries' notes to developers; ours go through the monitor
    try:
        with _ctrl_c_wins(run.monitor):
            yield run
    except EdgetlError as error:
        _fail(run, error)
    except KeyboardInterrupt:
        run.monitor.close()
        if launch.tells_of_failure():
            run.stderr.print("interrupted; nothing half-written is left behind", style="yellow")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            _unexpected(run, error)
        do = "free some space (or choose another place) and run the same command again"
        _fail(run, DiskError(error.strerror or "the disk refused", error.filename or "", do))
    except typer.Exit:
        raise
    except Exception as error:  # last line of defence: the contract promises one line and exit 1
        _unexpected(run, error)
    finally:
        run.monitor.close()


@contextmanager
def _ctrl_c_wins(monitor: ConsoleMonitor) -> Iterator[None]:
    """An error that comes out after Ctrl-C is its consequence, and is reported as the interruption it is.

    torch and others turn a KeyboardInterrupt that meets their C++ code into some error of their own. One that
    falls into a destructor Python drops with "Exception ignored in ..."; `monitor` raises it again.
    """
    pressed = False
    report = sys.unraisablehook

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            monitor.interrupted = True
        else:
            report(what)

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    sys.unraisablehook = dropped
    try:
        yield
    except Exception as error:  # any at all: the one that Ctrl-C became is not known in advance
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = report


def _fail(run: Session, error: EdgetlError) -> None:
    run.monitor.close()
    run.speaks = launch.tells_of_failure()
    if not run.speaks:
        raise typer.Exit(error.exit_code) from None
    if run.verbosity > 0:
        traceback.print_exc()
    result = error.result if isinstance(error, ContractUnmet) else {"error": error.as_json()}
    try:
        run.done(result)
    except DiskError:  # `--out` cannot be written; that may be the very error we are reporting
        run.out = None
        run.done(result)
    label = "not met: " if isinstance(error, ContractUnmet) else "error: "
    run.stderr.print(label + str(error), style="bold red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(error.exit_code) from None


def _unexpected(run: Session, error: BaseException) -> None:
    text = " ".join(str(error).split()) or "no message"
    hint = "" if run.verbosity > 0 else "run it again with `edgetl -v ...` for the traceback and report it"
    _fail(run, EdgetlError("unexpected " + type(error).__name__, text[:300], hint))
