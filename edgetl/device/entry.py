"""The device's command line: parse, call one function, print one JSON object. Logs go to stderr.

Exit codes: 0 done; 1 bad input or failed; 2 usage; 3 a contract was not met; 130 interrupted; 143 ended by
SIGTERM. Whatever the code, stdout holds exactly one JSON object with its protocol version (`run`: one a line).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Dict, NoReturn, Optional, Sequence

from edgetl.device.signals import Terminated, terminate_as_exception
from edgetl.device.verbs import JOBS, VERBS, Result
from edgetl.errors import BackendError, EdgetlError, InputError
from edgetl.monitor import Monitor
from edgetl.protocol import PROTOCOL, answer, check_caller, failure

_INTERRUPTED, _TERMINATED = 130, 143


class StderrMonitor(Monitor):
    """Lines on stderr; progress as a line each tenth, since nobody may be watching a terminal."""

    def __init__(self) -> None:
        self._told: Dict[str, int] = {}

    def progress(self, what: str, done: int, total: int) -> None:
        """`what: done of total` at each tenth."""
        tenth = done * 10 // max(total, 1)
        if tenth != self._told.get(what):
            self._told[what] = tenth
            self.say("%s: %d of %d" % (what, done, total))

    def say(self, line: str) -> None:
        """The line, flushed: the other end of an SSH connection reads it live."""
        print(line, file=sys.stderr, flush=True)

    def warn(self, line: str) -> None:
        """The line, marked."""
        self.say("warning: " + line)


class Parser(argparse.ArgumentParser):
    """argparse whose usage errors are a JSON object too."""

    def error(self, message: str) -> NoReturn:
        """Usage on stderr, the error object on stdout, exit 2."""
        self.print_usage(sys.stderr)
        print("error: " + message, file=sys.stderr)
        verb = self.prog.split()[-1]
        _print(failure(verb if verb in VERBS else "", InputError("usage", message, "see --help"), 2))
        raise SystemExit(2)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    given = _parser().parse_args(words)
    terminate_as_exception()
    os.umask(0o077)  # what we leave on a device is its user's alone
    try:
        check_caller(given.protocol)
        if given.job is not None:
            return _as_job(given, words)
        result = VERBS[given.verb].call(given, StderrMonitor())
    except EdgetlError as error:
        return _failed(given, error)
    except KeyboardInterrupt:
        return _failed(given, EdgetlError("interrupted"), _INTERRUPTED)
    except Terminated:
        return _failed(given, EdgetlError("ended by SIGTERM"), _TERMINATED)
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except Exception as error:  # a fault of ours: the caller still gets its one object, and the traceback on stderr
        return _failed(given, _fault(error))
    code = 1 if "error" in result else 0
    if code:
        print("error: " + ": ".join(str(result["error"][k]) for k in ("what", "value")), file=sys.stderr, flush=True)
    _print(answer(given.verb, result, code))
    return code


def _fault(error: Exception) -> EdgetlError:
    if isinstance(error, ImportError) and error.name in ("numpy", "PIL"):
        do = "sudo apt install python3-numpy python3-pil, and run the system's Python"
        return BackendError("the device side needs numpy and Pillow", error, do)
    traceback.print_exc()
    return EdgetlError("a fault in edgetl's device side", repr(error), "report it")


def _as_job(given: argparse.Namespace, words: Sequence[str]) -> int:
    """The same verb without --job, in a process of its own that a lost connection does not end."""
    from edgetl.device import jobs

    if given.verb not in JOBS:
        raise InputError("this verb is no job", given.verb, "jobs: " + ", ".join(JOBS))
    at = next(i for i, word in enumerate(words) if word == "--job" or word.startswith("--job="))
    rest = list(words[:at]) + list(words[at + (2 if words[at] == "--job" else 1) :])
    monitor = StderrMonitor()
    try:
        found = jobs.attach(given.job, rest, monitor.say)
    except (KeyboardInterrupt, Terminated):
        monitor.say("the job goes on; the same command joins it again")
        raise
    if _print(found):
        jobs.forget(given.job)
    return int(found["exit"])


def _failed(given: argparse.Namespace, error: EdgetlError, code: Optional[int] = None) -> int:
    print("error: %s" % error, file=sys.stderr, flush=True)
    _print(failure(given.verb, error, code))
    return error.exit_code if code is None else code


def _print(result: Result) -> bool:
    """Print the object; whether somebody was there to read it."""
    try:
        text = json.dumps(result, ensure_ascii=False, allow_nan=False)
    except ValueError as error:  # NaN or infinity somewhere: JSON has neither
        text = json.dumps(failure(str(result.get("verb")), EdgetlError("a result that JSON cannot hold", error)))
    try:
        print(text, flush=True)
        return True
    except BrokenPipeError:
        _silence_stdout()
        return False


def _silence_stdout() -> None:
    """The reader is gone; Python would complain once more when it flushes at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


_EXAMPLES = """examples, with the app that a deploy leaves as app.pyz:
  python3 app.pyz probe
  python3 app.pyz selftest > selftest.json
  python3 app.pyz classify current photo.jpg --precision int8
  python3 app.pyz run current --source /dev/video0
"""


def _parser() -> argparse.ArgumentParser:
    about = "edgetl on the device: needs numpy and Pillow alone."
    how = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="edgetl.device", description=about, epilog=_EXAMPLES, formatter_class=how, allow_abbrev=False)
    parser.add_argument("--protocol", type=int, default=PROTOCOL, metavar="N", help="the caller's protocol version")
    parser.add_argument(
        "--job",
        type=Path,
        metavar="DIR",
        help="run apart from this connection; the same command joins it again (%s)" % ", ".join(JOBS),
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS), parser_class=Parser)
    for name, verb in VERBS.items():
        verb.options(verbs.add_parser(name, help=verb.help_line, description=verb.help_line))
    return parser
