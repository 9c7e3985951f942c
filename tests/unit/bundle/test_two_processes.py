"""Real processes that are killed, that want the same bundle, and that meet a full disk."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgetl.bundle import Bundle, atomic_json, locked, work_dir, writing
from edgetl.errors import BundleError, DiskError

ROOT = Path(__file__).resolve().parents[3]

# Adds an artifact of many blocks again and again, and says so after each.
ADDER = """
import sys
from pathlib import Path
from edgetl.bundle import NewArtifact, create, writing, locked
path = Path(sys.argv[1])
number = int(sys.argv[2])
while True:
    number += 1
    with writing(path, "export") as (bundle, scratch):
        (scratch / "graph").write_bytes(b"%d " % number * 60_000)
        (scratch / "logits").write_bytes(b"logits %d" % number)
        graph = {"kind": "graph", "made_by": "export", "number": number}
        logits = {"kind": "graph-logits", "made_by": "export"}
        bundle.add([
            NewArtifact(scratch / "graph", "graphs/trt10/int8-{sha12}.onnx", graph),
            NewArtifact(scratch / "logits", "golden/graph-{sha12}.npy", logits),
        ])
    print(number, flush=True)
"""

# Makes new generations again and again.
OVERWRITER = """
import sys
from pathlib import Path
from edgetl.bundle import Bundle, NewArtifact, create, locked
path, number = Path(sys.argv[1]), int(sys.argv[2])
keep = {k: v for k, v in Bundle.open(path).manifest.items() if k not in ("format", "generation", "artifacts", "digest")}
while True:
    number += 1
    with locked(path) as work:
        source = work / "weights"
        source.write_bytes(b"%d " % number * 60_000)
        record = {"kind": "checkpoint", "made_by": "finetune", "number": number}
        new = NewArtifact(source, "checkpoint-{sha12}.safetensors", record)
        create(path, keep, [new], {"number": number}, overwrite=True)
        source.unlink()
    print(number, flush=True)
"""

HOLDER = """
import sys, time
from edgetl.bundle import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def killed_after(process: subprocess.Popen[str], seconds: float) -> int:
    """SIGKILL `seconds` after its first line; the last number it printed."""
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    assert process.wait() == -signal.SIGKILL
    return int((first + rest).split()[-1])


def test_a_bundle_survives_kills_at_random_moments(make_bundle):
    path = make_bundle().path
    rng = random.Random(7)
    last = 0
    for _ in range(10):
        said = killed_after(start(ADDER, path, last), rng.uniform(0, 0.12))
        bundle = Bundle.open(path)
        checks = bundle.check_files()
        assert all(check.ok for check in checks), [c for c in checks if not c.ok]
        numbers = [r["number"] for r in bundle.artifacts("graph")]
        # What was reported done is there; at most the one in the making came too. Each graph has its logits.
        last = numbers[-1]
        assert numbers == list(range(1, last + 1))
        assert said <= last <= said + 1
        assert len(bundle.artifacts("graph-logits")) == last
    with writing(path, "export"):
        pass  # the next writer sweeps
    on_disk = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
    assert on_disk == {r["file"] for r in bundle.manifest["artifacts"]} | {"manifest.json", "local.json"}
    assert not work_dir(path).exists()


def test_a_killed_overwrite_leaves_the_older_generation_with_its_own_notes(make_bundle):
    path = make_bundle().path
    rng = random.Random(11)
    last = 0
    for _ in range(6):
        killed_after(start(OVERWRITER, path, last), rng.uniform(0, 0.08))
        bundle = Bundle.open(path)
        assert all(check.ok for check in bundle.check_files())
        (current,) = bundle.artifacts("checkpoint")
        last = current["number"]
        assert bundle.manifest["generation"] == last + 1
        assert bundle.local == {"number": last}


def test_two_writers_are_kept_apart_and_a_killed_one_frees_the_lock(make_bundle):
    path = make_bundle().path
    before = (path / "manifest.json").read_bytes()
    holder = start(HOLDER, path)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(BundleError, match=r"another edgetl is writing to this bundle: .*; wait for it"):
            writing(path, "export").__enter__()
        assert Bundle.open(path).labels  # readers are not kept out
    finally:
        holder.kill()
        holder.wait()
    assert (work_dir(path) / "lock").exists()  # the killed process could not tidy up, and yet:
    with writing(path, "export") as (bundle, _):
        assert bundle.labels
    assert not work_dir(path).exists()
    assert (path / "manifest.json").read_bytes() == before


def test_many_writers_in_turn_lose_nothing(make_bundle, tmp_path):
    """Each waits for the lock, so every artifact of every process ends up in the manifest."""
    path = make_bundle().path
    code = """
import sys
from edgetl.bundle import Bundle, NewArtifact, locked
for i in range(5):
    with locked(sys.argv[1], wait=True) as work:
        source = work / "x"
        source.write_text(sys.argv[2] + str(i))
        Bundle.open(sys.argv[1]).add([NewArtifact(source, "graphs/{sha12}.onnx", {"kind": "graph", "made_by": "t"})])
        source.unlink()
"""
    workers = [start(code, path, name) for name in "abcd"]
    assert [w.wait() for w in workers] == [0] * 4
    bundle = Bundle.open(path)
    assert {bundle.file(r).read_text() for r in bundle.artifacts("graph")} == {
        f"{n}{i}" for n in "abcd" for i in range(5)
    }
    assert not work_dir(path).exists()


def test_a_reader_never_sees_half_a_manifest(make_bundle):
    path = make_bundle().path
    writer = start(ADDER, path, 0)
    try:
        assert writer.stdout is not None and writer.stdout.readline()
        seen = set()
        end = time.monotonic() + 60.0
        while len(seen) < 10 and time.monotonic() < end:
            bundle = Bundle.open(path)
            record = bundle.artifact("graph")
            bundle.file(record)
            seen.add(record["number"])
        assert len(seen) == 10
    finally:
        writer.kill()
        writer.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "edgetl-test", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small tmpfs here: " + mounted.stderr.decode().strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_full_disk_leaves_the_bundle_as_it_was(small_disk, tmp_path, make_bundle, make_artifact):
    path = make_bundle("disk/flowers").path
    before = snapshot(small_disk)
    small, big = make_artifact(b"s" * 1000, kind="graph"), make_artifact(b"b" * 2_000_000, kind="graph")
    with pytest.raises(DiskError, match=r"the disk is full: .*; free some space") as caught, locked(path):
        Bundle.open(path).add([small, big])
    assert "\n" not in str(caught.value)
    assert snapshot(small_disk) == before
    with pytest.raises(DiskError, match="the disk is full"):
        make_bundle("disk/other", weights=b"w" * 2_000_000)
    assert snapshot(small_disk) == before
    assert not list(small_disk.glob("*.work"))


def test_every_byte_count_at_which_the_disk_can_fill_is_survived(small_disk, make_bundle, make_artifact):
    """The disk is filled to within a few pages, so that placing, sealing and rows fail at different steps."""
    path = make_bundle("disk/flowers").path
    bundle = Bundle.open(path)
    outcomes = set()
    for pages in range(8):
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(b"\0" * 4096)
        os.truncate(filler, max(0, filler.stat().st_size - pages * 4096))
        before = snapshot(path)
        try:
            with locked(path):
                bundle.add([make_artifact(b"g" * 6000 + bytes([pages])), make_artifact(b"l" * 100 + bytes([pages]))])
            outcomes.add("done")
        except DiskError:
            outcomes.add("full")
            assert snapshot(path) == before
        rows = (path / "runs/bench.jsonl").read_bytes() if (path / "runs/bench.jsonl").exists() else b""
        try:
            bundle.append_rows("bench", ['{"row": "%s"}' % ("x" * 9000)])
        except DiskError:
            left = (path / "runs/bench.jsonl").read_bytes() if (path / "runs/bench.jsonl").exists() else b""
            assert left == rows
        filler.unlink()
        assert all(check.ok for check in Bundle.open(path).check_files())
    assert outcomes == {"done", "full"}


def limited(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that write() says EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def test_a_file_size_limit_is_a_disk_error(make_bundle, make_artifact):
    path = make_bundle().path
    before = snapshot(path)
    code = """
import sys
from pathlib import Path
from edgetl.bundle import Bundle, NewArtifact
from edgetl.errors import DiskError
new = NewArtifact(Path(sys.argv[2]), "graphs/{sha12}.onnx", {"kind": "graph", "made_by": "t"})
try:
    Bundle.open(sys.argv[1]).add([new])
except DiskError as error:
    print(error)
"""
    source = make_artifact(b"b" * 3_000_000).source
    command = [sys.executable, "-c", code, str(path), str(source)]
    out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=limited(1 << 20), check=True)
    assert out.stdout.startswith("the file is larger than may be written here: ")
    assert snapshot(path) == before


def test_a_place_that_cannot_be_written_is_a_disk_error(tmp_path, make_bundle):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="a file stands where a folder is wanted"):
        make_bundle("file/flowers")
    with pytest.raises(DiskError, match="too long"):
        make_bundle("x" * 300)


def test_out_files_that_are_no_files_are_written_to(tmp_path):
    """As root, replacing /dev/null by a file would break the machine."""
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", str(fifo)], stdout=subprocess.PIPE)
    atomic_json(fifo, {"a": 1})
    out, _ = reader.communicate(timeout=120)
    assert out == b'{\n "a": 1\n}\n'
    assert fifo.is_fifo()
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    atomic_json(tmp_path / "link.json", {"a": 2})
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == '{\n "a": 2\n}\n'
    with pytest.raises(DiskError, match="a folder stands where a file is wanted"):
        atomic_json(tmp_path, {})
