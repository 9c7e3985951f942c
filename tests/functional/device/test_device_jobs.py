"""Work that outlives the connection: hang-ups, kills, two callers, a power cut."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ORT = ("--backend", "onnxruntime", "--threads", "1", "--precision", "fp32")


@pytest.fixture
def words(device_bundle: Path, tmp_path: Path) -> tuple[object, ...]:
    """A bench of a second or two, as a job."""
    bench = ("bench", device_bundle, *ORT, "--seconds", 0.6, "--no-peaks")
    return ("--job", tmp_path / "jobs/one", *bench)


def wait_until(held: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not held():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


@contextmanager
def stopped(worker: int) -> Iterator[None]:
    """The worker stands still meanwhile, so that its work cannot be over before the test has looked."""
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def watches(caller: subprocess.Popen[str], folder: Path) -> bool:
    """Whether this caller reads the job's log."""
    for handle in Path(f"/proc/{caller.pid}/fd").iterdir():
        try:
            if handle.resolve() == folder / "log":
                return True
        except OSError:
            pass  # closed meanwhile
    return False


def test_a_lost_connection_does_not_end_the_work(device: Any, words: Any, tmp_path: Path) -> None:
    first, folder = device.start(*words), tmp_path / "jobs/one"
    with stopped(worker_of(folder)):
        first.send_signal(signal.SIGKILL)  # as hard as a hang-up can be
        first.communicate()
        modes = {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}
        assert modes == {"0o600"} and folder.stat().st_mode & 0o777 == 0o700, "its user's alone"
        second = device.start(*words)
        wait_until(lambda: watches(second, folder))
    out, err = second.communicate()
    assert "picked up" in err and "timing onnxruntime" in err, "the log from its beginning"
    told = json.loads(out)
    assert second.returncode == 0 and told["rows"][0]["status"] == "ok"
    assert not folder.exists(), "handed over, so forgotten"


@pytest.mark.slow
def test_an_answer_waits_for_its_caller(device: Any, words: Any, tmp_path: Path) -> None:
    first, answer = device.start(*words), tmp_path / "jobs/one/answer"
    with stopped(worker_of(tmp_path / "jobs/one")):
        first.send_signal(signal.SIGKILL)
        first.communicate()
    wait_until(answer.read_bytes)
    written = answer.read_bytes()
    assert device(*words) == json.loads(written), "its times are the first run's: nothing was measured again"


@pytest.mark.slow
def test_another_question_in_the_same_place_is_refused_while_it_runs(device: Any, words: Any, tmp_path: Path) -> None:
    first = device.start(*words)
    with stopped(worker_of(tmp_path / "jobs/one")):
        told = device(*words, "--threads", 2, code=1)
        assert "another job runs here" in told["error"]["what"]
    out, _ = first.communicate()
    assert json.loads(out)["exit"] == 0


@pytest.mark.slow
def test_two_callers_of_one_job_get_one_answer(device: Any, words: Any, tmp_path: Path) -> None:
    callers = [device.start(*words) for _ in range(2)]
    with stopped(worker_of(tmp_path / "jobs/one")):
        wait_until(lambda: all(watches(caller, tmp_path / "jobs/one") for caller in callers))
    answers = [json.loads(caller.communicate()[0]) for caller in callers]
    assert answers[0] == answers[1] and answers[0]["rows"][0]["status"] == "ok"


def test_a_worker_that_is_killed_leaves_no_answer_and_starts_anew(device: Any, words: Any, tmp_path: Path) -> None:
    first = device.start(*words)
    worker = worker_of(tmp_path / "jobs/one")
    os.kill(worker, signal.SIGKILL)
    out, err = first.communicate()
    told = json.loads(out)
    assert told["exit"] == 1 and "without an answer" in told["error"]["what"], err
    assert device(*words)["rows"][0]["status"] == "ok"


def worker_of(folder: Path) -> int:
    """The process that holds the job's lock open for its own."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_worker(entry, folder):
                return int(entry.name)
        time.sleep(0.02)
    raise AssertionError("no worker")


def _is_worker(process: Path, folder: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        return b"edgetl.device" in words and b"--job" not in words and (process / "fd/1").resolve().parent == folder
    except OSError:
        return False


def test_a_verb_that_is_no_job(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    told = device("--job", tmp_path / "j", "run", device_bundle, "--source", tmp_path, code=1)
    assert "no job" in told["error"]["what"]


def test_a_failing_job_hands_its_error_and_code_on(device: Any, device_bundle: Path, tmp_path: Path) -> None:
    told = device("--job", tmp_path / "j", "verify", device_bundle, "--precision", "fp16", *ORT[:2], code=1)
    assert "no fp16 graph" in told["error"]["what"] and not (tmp_path / "j").exists()


@pytest.mark.slow
def test_ctrl_c_lets_the_work_go_on(device: Any, words: Any, tmp_path: Path) -> None:
    first = subprocess.Popen(
        device.command(*words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=device.environment, text=True
    )
    with stopped(worker_of(tmp_path / "jobs/one")):
        wait_until(lambda: watches(first, tmp_path / "jobs/one"))
        first.send_signal(signal.SIGINT)
        out, _ = first.communicate()
    assert json.loads(out)["exit"] == 130
    assert device(*words)["rows"][0]["status"] == "ok"
