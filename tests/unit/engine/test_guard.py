"""Ctrl-C around native calls, stdout kept clean: real signals, real descriptors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from edgetl.engine.guard import Cancel, interruptible, stdout_to_stderr


def test_ctrl_c_is_held_back_inside_and_raised_on_the_way_out() -> None:
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt), interruptible() as cancel:
        os.kill(os.getpid(), signal.SIGINT)
        reached = cancel.wanted  # a plain handler would have raised in the line above
    assert reached and signal.getsignal(signal.SIGINT) is before


def test_an_error_raised_because_of_the_cancel_is_reported_as_the_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("the builder returned nothing")


def test_without_a_signal_errors_pass_and_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="own"), interruptible():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_process() -> None:
    code = (
        "import os, signal\n"
        "from edgetl.engine.guard import interruptible\n"
        "with interruptible():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT and done.stdout == ""


def test_other_threads_are_left_alone() -> None:
    seen: list[Cancel] = []

    def work() -> None:
        with interruptible() as cancel:
            seen.append(cancel)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 1 and not seen[0].wanted


def test_native_prints_land_on_stderr() -> None:
    code = (
        "import os\n"
        "from edgetl.engine.guard import stdout_to_stderr\n"
        "print('before')\n"
        "with stdout_to_stderr():\n"
        "    os.write(1, b'native noise\\n')\n"
        "print('after')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["before", "after"] and done.stderr.strip() == "native noise"


def test_a_process_without_stdout_is_served() -> None:
    code = (
        "import os, sys\n"
        "from edgetl.engine.guard import stdout_to_stderr\n"
        "os.close(1)\n"
        "with stdout_to_stderr():\n"
        "    print('through', file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "through" in done.stderr


def test_the_descriptor_is_restored_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="x"), stdout_to_stderr():
        raise ValueError("x")
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"
