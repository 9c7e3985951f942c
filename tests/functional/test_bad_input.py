"""Bad input through the real command: exit 1, one `error:` line that holds the value, nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl.bundle import Bundle
from edgetl.bundle.manifest import FORMAT, seal

EDGETL = Path(sys.executable).with_name("edgetl")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "400"}
QUICK = ("--weights", "embedded", "--strategy", "linear-probe")


def edgetl(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(EDGETL), *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)


def fails(*args: object, cwd: Path, value: str) -> str:
    """Run a command that must fail as promised; its error line."""
    before = snapshot(cwd)
    done = edgetl(*args, cwd=cwd)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert value in errors[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert not errors[0].startswith("error: unexpected ")
    assert done.stdout == ""
    assert snapshot(cwd) == before  # no bundle, no .work, and every older file as it was
    return errors[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def photos(root: Path, *classes: str, n: int = 8, size: int = 32) -> Path:
    """Noise in another colour for each class."""
    rng = np.random.default_rng(0)
    for index, label in enumerate(classes):
        (root / label).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
            pixels[:, :, index % 3] += 120
            Image.fromarray(pixels).save(root / label / f"{i:02}.png")
    return root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with photos/ of two classes, to run in."""
    photos(tmp_path / "photos", "left", "right")
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ and the bundle made of them, with its fp32 graph. Copy it before changing it."""
    root = tmp_path_factory.mktemp("made")
    photos(root / "photos", "left", "right")
    done = edgetl("finetune", root / "photos", "--to", root / "bundle", *QUICK, cwd=root)
    assert done.returncode == 0, done.stderr
    done = edgetl("export", root / "bundle", cwd=root)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy of the made bundle that a test may damage; it lies alone in its folder."""
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


# --- DATA


def test_no_such_folder(tmp_path):
    line = fails("finetune", "no/where", "--to", "b", cwd=tmp_path, value="no/where")
    assert line == "error: no such folder or CSV file: no/where; check the path"


def test_with_json_the_error_is_an_object_on_stdout(tmp_path):
    done = edgetl("finetune", "nowhere", "--to", "b", "--json", "--out", "result.json", cwd=tmp_path)
    assert done.returncode == 1
    error = {"what": "no such folder or CSV file", "value": "nowhere", "do": "check the path"}
    assert json.loads(done.stdout) == {"error": error} == json.loads((tmp_path / "result.json").read_text())
    assert done.stderr.count("error: ") == 1


def test_an_out_file_that_cannot_be_written(bundle):
    (bundle.parent / "file").write_text("x")
    fails("inspect", bundle, "--out", "file/result.json", cwd=bundle.parent, value="file/result.json")


def test_a_traceback_comes_with_v_alone(tmp_path):
    done = edgetl("-v", "finetune", "nowhere", "--to", "b", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.count("error: ") == 1


def test_one_class_only(tmp_path):
    photos(tmp_path / "photos", "daisy")
    fails("finetune", "photos", "--to", "b", *QUICK, cwd=tmp_path, value="daisy in photos")


def test_an_empty_class_and_an_empty_folder(place):
    (place / "photos/tulip").mkdir()
    fails("finetune", "photos", "--to", "b", *QUICK, cwd=place, value="photos/tulip")
    (place / "empty").mkdir()
    fails("finetune", "empty", "--to", "b", *QUICK, cwd=place, value="empty")


def test_classes_in_val_that_train_lacks(tmp_path):
    photos(tmp_path / "data/train", "left", "right")
    photos(tmp_path / "data/val", "left", "middle", n=2)
    fails("finetune", "data", "--to", "b", *QUICK, cwd=tmp_path, value="middle")


def test_one_image_with_two_labels_under_strict(place):
    shutil.copy(place / "photos/left/00.png", place / "photos/right/copy.png")
    fails("finetune", "photos", "--to", "b", "--strict", *QUICK, cwd=place, value="right/copy.png (right)")


def cut_short(path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def as_text(path: Path) -> None:
    path.write_text("hello, I am no photo\n")


@pytest.mark.parametrize("spoil", [cut_short, pytest.param(as_text, marks=pytest.mark.slow)])
def test_a_corrupt_image_is_named_and_left_out_only_when_asked(place, spoil: Callable[[Path], None]):
    spoil(place / "photos/left/bad.jpg")
    fails("finetune", "photos", "--to", "b", *QUICK, cwd=place, value="photos/left/bad.jpg")
    done = edgetl("finetune", "photos", "--to", "b", "--skip-corrupt", *QUICK, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "photos/left/bad.jpg" in done.stderr  # named
    assert "1 corrupt image" in done.stderr  # counted
    recorded = json.loads((place / "b/manifest.json").read_text())
    assert sum(recorded["splits"][name]["n"] for name in ("train", "val", "test")) == 16


# --- options


def test_an_unknown_backbone_suggests_the_nearest(place):
    line = fails(
        "finetune",
        "photos",
        "--to",
        "b",
        "--backbone",
        "mobilnet_v2",
        "--weights",
        "none",
        cwd=place,
        value="mobilnet_v2",
    )
    assert "mobilenet_v2" in line


@pytest.mark.slow
def test_an_image_size_the_backbone_cannot_take(place):
    args = ("--backbone", "vit_b_16", "--weights", "none", "--image-size", "100")
    line = fails("finetune", "photos", "--to", "b", *args, cwd=place, value="100")
    assert "vit_b_16" in line


def test_weights_of_another_architecture(place):
    import torch

    torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3), "strange.weight": torch.zeros(4)}, place / "other.pth")
    args = ("--backbone", "resnet18", "--weights", "other.pth")
    line = fails("finetune", "photos", "--to", "b", *args, cwd=place, value="other.pth")
    assert "strange.weight" in line or "conv1.weight" in line  # what did not fit is listed


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch ran",))


def test_a_pickle_that_would_run_code_does_not(place):
    (place / "evil.pth").write_bytes(pickle.dumps(Evil()))
    fails("finetune", "photos", "--to", "b", "--weights", "evil.pth", cwd=place, value="evil.pth")
    assert not (place / "ran").exists()


@pytest.mark.slow
def test_a_place_that_is_taken(place):
    (place / "thesis").mkdir()
    (place / "thesis/chapter.txt").write_text("do not touch")
    fails("finetune", "photos", "--to", "thesis", *QUICK, cwd=place, value="thesis")
    fails("finetune", "photos", "--to", "thesis", "--overwrite", *QUICK, cwd=place, value="thesis")


@pytest.mark.parametrize(
    "args",
    [("finetune",), ("finetune", "photos"), ("export", "b", "--target", "moon"), ("bench", "b", "--nope"), ("fly",)],
)
def test_usage_is_exit_2(tmp_path, args):
    done = edgetl(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- bundles


@pytest.mark.parametrize("command", ["export", "build", "bench", "classify", "inspect", "verify"])
def test_every_command_refuses_what_is_no_bundle(tmp_path, command):
    rest = {"build": ("--precision", "fp32"), "classify": ("x.jpg",)}.get(command, ())
    fails(command, "nowhere", *rest, cwd=tmp_path, value="nowhere")
    (tmp_path / "empty").mkdir()
    fails(command, "empty", *rest, cwd=tmp_path, value="empty")


@pytest.mark.parametrize("command", [pytest.param("export", marks=pytest.mark.slow), "inspect", "verify"])
def test_a_newer_format_and_an_edit_by_hand(bundle, command):
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(seal({**manifest, "format": FORMAT + 1})))
    line = fails(command, bundle, cwd=bundle.parent, value=f"has format {FORMAT + 1}")
    assert line.endswith("upgrade edgetl")
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "labels": ["right", "left"]}))
    line = fails(command, bundle, cwd=bundle.parent, value=str(bundle / "manifest.json"))
    assert "changed by hand" in line


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_checkpoint_whose_bytes_changed(bundle):
    record = Bundle.open(bundle).artifact("checkpoint")
    flip(bundle / record["file"])
    fails("export", bundle, cwd=bundle.parent, value=record["file"])
    done = edgetl("verify", bundle, cwd=bundle.parent)
    assert done.returncode == 1
    assert record["file"] in done.stderr and "Traceback" not in done.stderr


def test_a_graph_whose_bytes_changed(bundle, made):
    record = Bundle.open(bundle).artifact("graph", precision="fp32")
    flip(bundle / record["file"])
    photo = made / "photos/left/00.png"
    fails("classify", bundle, photo, cwd=bundle.parent, value=record["file"])
    done = edgetl("verify", bundle, "--json", cwd=bundle.parent)
    assert done.returncode == 1
    assert not json.loads(done.stdout)["ok"]


def test_classify_what_is_no_image(bundle):
    as_text(bundle.parent / "notes.jpg")
    fails("classify", bundle, "notes.jpg", cwd=bundle.parent, value="notes.jpg")
    fails("classify", bundle, "gone.jpg", cwd=bundle.parent, value="gone.jpg")


@pytest.mark.slow
def test_a_calibration_set_of_the_wrong_classes_or_of_no_images(bundle):
    photos(bundle.parent / "cars", "left", "lorry", n=2)
    fails("export", bundle, "--int8", "--calib", "cars", cwd=bundle.parent, value="lorry")
    (bundle.parent / "none/left").mkdir(parents=True)
    fails("export", bundle, "--int8", "--calib", "none", cwd=bundle.parent, value="none")
    fails("export", bundle, "--int8", "--calib", "gone", cwd=bundle.parent, value="gone")
    fails("export", bundle, "--int8", "--method", "guess", cwd=bundle.parent, value="guess")


@pytest.mark.slow
def test_images_that_moved_are_asked_for(made, tmp_path):
    """A bundle that travelled without its photos says which option brings them."""
    shutil.copytree(made / "bundle", tmp_path / "bundle", ignore=shutil.ignore_patterns("local.json"))
    line = fails("bench", "bundle", cwd=tmp_path, value="bundle")
    assert "--data" in line


def test_nothing_of_this_machine_travels(made):
    """Absolute paths are in local.json alone."""
    for path in (made / "bundle").rglob("*"):
        if path.is_file() and path.name != "local.json" and "runs" not in path.parts:
            assert str(made).encode() not in path.read_bytes(), path


# --- the disk and Ctrl-C


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB, less than the checkpoint wants."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "edgetl-test", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a small tmpfs here: " + mounted.stderr.strip())
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up(place, small_disk):
    done = edgetl("finetune", "photos", "--to", small_disk / "b", *QUICK, cwd=place)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the disk is full" in line or "No space left" in line
    assert str(small_disk) in line
    assert "Traceback" not in done.stderr
    assert not (small_disk / "b").exists()


# Each command, and how many seconds after it took the bundle's lock Ctrl-C comes.
INTERRUPTED = {
    "training": (
        ("finetune", "photos", "--to", "b2", "--weights", "embedded", "--strategy", "full", "--epochs", "5000"),
        (0.1, 2, 5, 8),
    ),
    "calibration": (("export", "bundle", "--int8", "--method", "auto"), (0.1, 3, 6, 9, 12)),
    "build": (("build", "bundle", "--precision", "fp32", "--with", "tensorrt-rtx"), (0, 0.05, 0.2, 0.5)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "moments"), INTERRUPTED.values(), ids=INTERRUPTED.keys())
def test_ctrl_c_at_any_moment(made, tmp_path, command, moments):
    if command[0] == "build":
        pytest.importorskip("tensorrt_rtx", reason="no TensorRT for RTX on this platform", exc_type=ImportError)
    for name in ("photos", "bundle"):
        shutil.copytree(made / name, tmp_path / name)
    local = json.loads((tmp_path / "bundle/local.json").read_text())
    (tmp_path / "bundle/local.json").write_text(json.dumps({**local, "data": str(tmp_path / "photos")}))
    work = tmp_path / ("b2.work" if command[0] == "finetune" else "bundle.work")
    before = snapshot(tmp_path / "bundle")
    interrupted = 0
    for moment in moments:
        code, out, err = interrupted_run(command, moment, work)
        assert "Traceback" not in err, err
        assert "error:" not in err, err
        if out:
            break  # the machine was quicker than this Ctrl-C
        assert code == 130, (code, err)
        now = snapshot(tmp_path / "bundle")
        # Everything older is untouched. An export may have recorded whole graphs on the way to the one it was at.
        assert {name: now[name] for name in before} | {"manifest.json": b""} == before | {"manifest.json": b""}
        assert all(check.ok for check in Bundle.open(tmp_path / "bundle").check_files())
        if command[0] != "export":
            assert now == before
        assert not (tmp_path / "b2").exists()
        interrupted += 1
    assert interrupted


LOST = """
import os, signal, typer
from edgetl.cli.console import session

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))  # the interpreter looks for signals here

def main(ctx: typer.Context) -> None:
    with session(ctx, False, None) as run:
        Dying()
        for step in range(5):
            run.monitor.progress("work", step, 5)
            print("step", step)

app = typer.Typer()
app.command()(main)
app()
"""


def test_a_ctrl_c_that_falls_into_a_destructor_is_not_lost(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOST], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 130, (done.stdout, done.stderr)
    assert "step" not in done.stdout
    assert "Traceback" not in done.stderr and "interrupted" in done.stderr


def interrupted_run(command: tuple[str, ...], moment: float, work: Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command that got Ctrl-C `moment` seconds after it took the lock."""
    shutil.rmtree(work, ignore_errors=True)
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [str(EDGETL), *command],
        cwd=work.parent,
        env=ENVIRONMENT,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (work / "lock").exists():
        time.sleep(0.005)
    time.sleep(moment)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does: children are told as well
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err
