"""`edgetl deploy` over a real sshd: the whole of it, a second time, and what breaks in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LABELS = ("left", "a; rm -rf ~", 'qu"o, te')
Device = Any  # conftest.Device
Result = subprocess.CompletedProcess[str]


def edgetl(*words: object) -> Result:
    command = [sys.executable, "-m", "edgetl", *map(str, words)]
    env = dict(os.environ, OMP_NUM_THREADS="1", NO_COLOR="1", COLUMNS="120")
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "flowers")
    return tmp_path / "flowers"


def deploy(board: Device, bundle: Path, *words: object) -> Result:
    return edgetl(
        "deploy", bundle, "board", "--ssh-config", board.config, "--backend", "onnxruntime", "--seconds", "0.1",
        "--json", *words,
    )  # fmt: skip


def answer(done: Result) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def current(board: Device) -> str:
    return str((board.root / "flowers/current").readlink())


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def test_a_deploy_then_the_same_again(board: Device, bundle: Path) -> None:
    planned = answer(deploy(board, bundle, "--dry-run"))
    assert {s["status"] for s in planned["steps"][1:]} == {"planned"} and planned["installed"] is None
    assert not (board.root / "flowers/releases").exists()

    first = answer(deploy(board, bundle))
    assert [s["name"] for s in first["steps"]][:3] == ["probe", "push", "install"]
    assert first["steps"][-1]["name"] == "switch"
    assert first["installed"]["precision"] in {"fp32", "fp16", "int8"}
    rows = {row["precision"]: row for row in first["rows"]}
    assert set(rows) == {"fp32", "fp16", "int8"}
    held = json.loads((bundle / "manifest.json").read_text())["splits"]["test"]["n"]
    for row in rows.values():
        assert row["status"] == "ok" and row["split"] == "test" and row["n_images"] == held, row
        assert row["accuracy_evidence"] == "host-cpu" and row["drop_pp"] is not None
    assert rows["fp32"]["drop_pp"] == 0.0
    served = json.loads((board.root / "flowers/current/serve.json").read_text())
    assert served["precision"] == first["installed"]["precision"]
    # Its rows are the bundle's too.
    kept = [json.loads(line) for line in (bundle / "runs/bench.jsonl").read_text().splitlines()]
    assert {row["id"] for row in kept} == {row["id"] for row in first["rows"]} and kept[0]["host"] == "board"

    second = answer(deploy(board, bundle))
    assert [s["name"] for s in second["steps"]] == ["probe", "push", "bench"]
    assert sum(s["bytes"] for s in second["steps"]) < 100_000
    assert second["installed"] == first["installed"]
    assert answer(deploy(board, bundle, "--status"))["state"]["current"] == current(board).split("/")[-1]


@pytest.mark.slow
def test_what_lies_on_the_device_is_private_and_tells_nothing_of_the_pc(board: Device, bundle: Path) -> None:
    answer(deploy(board, bundle))
    root = board.root / "flowers"
    assert not (root / "images").exists()
    assert not list(root.rglob("*.safetensors")) and not list(root.rglob("local.json"))
    for path in files(board.home / ".local"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        data = path.read_bytes()
        for secret in (str(bundle.parent), str(bundle), "photos/left"):
            assert secret.encode() not in data, (path, secret)
    classified = subprocess.run(
        [sys.executable, str(root / "app.pyz"), "classify", str(root / "current"), "--backend", "onnxruntime",
         *map(str, sorted((root / "current").rglob("golden/images/*"))[:2])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(classified.stdout)["predictions"]
    assert len(found) == 2 and all(p["label"] in LABELS for p in found)


@pytest.mark.slow
def test_rollback_goes_to_the_release_before(board: Device, bundle: Path) -> None:
    answer(deploy(board, bundle, "--prove", "none", "--precision", "fp32"))
    old = current(board)
    answer(deploy(board, bundle, "--prove", "golden", "--precision", "int8"))
    new = current(board)
    assert new != old
    answer(deploy(board, bundle, "--rollback"))
    assert current(board) == old
    answer(deploy(board, bundle, "--rollback"))
    assert current(board) == new


@pytest.mark.slow
def test_keep_removes_the_oldest(board: Device, bundle: Path) -> None:
    for precision in ("fp32", "fp16", "int8"):
        answer(deploy(board, bundle, "--prove", "none", "--precision", precision, "--keep", "2"))
    releases = sorted(p.name for p in (board.root / "flowers/releases").iterdir())
    assert len(releases) == 2 and current(board).split("/")[-1] in releases
    wanted = {json.loads((board.root / f"flowers/releases/{r}/manifest.json").read_text())["digest"] for r in releases}
    assert len(wanted) == 2
    stored = {p.name for p in (board.root / "flowers/store").iterdir()}
    assert len(stored) < 60 and not any(name.endswith(".part") for name in stored)


def test_an_unknown_or_changed_host_key_is_never_accepted(board: Device, bundle: Path) -> None:
    known = board.known_hosts.read_text()
    board.known_hosts.write_text("")
    done = deploy(board, bundle)
    assert done.returncode == 1 and "host key is not known" in done.stderr
    assert board.known_hosts.read_text() == ""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(board.folder / "other")], check=True)
    other = (board.folder / "other.pub").read_text().split()[1]
    place, kind, _ = known.split()
    board.known_hosts.write_text(f"{place} {kind} {other}\n")
    done = deploy(board, bundle)
    assert done.returncode == 1 and "host key has changed" in done.stderr
    assert not board.root.exists()


def test_no_connection_is_one_clear_line(board: Device, bundle: Path) -> None:
    (board.folder / "authorized").write_text("")
    done = deploy(board, bundle)
    assert done.returncode == 1 and "does not let us in" in done.stderr and "Traceback" not in done.stderr
    board.process.terminate()
    board.process.wait()
    done = deploy(board, bundle)
    assert done.returncode == 1 and "nothing listens for SSH there" in done.stderr
    assert json.loads(done.stdout)["error"]["do"]


def test_two_deploys_at_once_do_not_mix(board: Device, bundle: Path) -> None:
    lock = board.root / "flowers/lock"
    lock.parent.mkdir(parents=True)
    with subprocess.Popen(["flock", str(lock), "sleep", "600"]) as holder:
        while subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False).returncode == 0:
            time.sleep(0.05)  # the holder has not begun yet
        done = deploy(board, bundle, "--prove", "none")
        holder.kill()
    assert done.returncode == 1 and "another deploy" in done.stderr
    subprocess.run(["pkill", "-f", f"flock {lock}"], check=False)
    assert not (board.root / "flowers/current").exists()


@pytest.mark.slow
def test_a_killed_deploy_leaves_what_serves_and_can_be_run_again(board: Device, bundle: Path) -> None:
    answer(deploy(board, bundle, "--prove", "none", "--precision", "fp32"))
    old = current(board)
    command = [sys.executable, "-m", "edgetl", "deploy", str(bundle), "board", "--ssh-config", str(board.config)]
    command += ["--backend", "onnxruntime", "--seconds", "0.1", "--precision", "int8", "--prove", "none"]
    killed = 0
    for delay in (0.3, 1.0):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 120
            while not board.sessions() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            break  # a fast machine had ended by then
        killed += 1
        assert current(board) == old
    assert killed >= 1
    answer(deploy(board, bundle, "--prove", "none", "--precision", "int8"))
    assert current(board) != old


@pytest.mark.slow
def test_a_half_pushed_or_damaged_file_is_pushed_again(board: Device, bundle: Path) -> None:
    graph = next((bundle / "graphs/cpu").glob("int8-*.onnx"))
    record = next(
        r for r in json.loads((bundle / "manifest.json").read_text())["artifacts"] if r["file"].endswith(graph.name)
    )
    store = board.root / "flowers/store"
    store.mkdir(parents=True, mode=0o700)
    data = graph.read_bytes()
    (store / (record["sha256"] + ".part")).write_bytes(data[: len(data) // 2])
    resumed = answer(deploy(board, bundle, "--prove", "none", "--precision", "int8"))
    other = next(s for s in resumed["steps"] if s["name"] == "push")["bytes"]
    whole = sum(p.stat().st_size for p in store.iterdir())
    assert other <= whole - len(data) // 2
    # A part of other bytes does not survive its hash; the next run pushes it whole.
    for path in (board.root / "flowers").rglob("*"):
        if path.is_file() and path.stat().st_nlink and path.name == record["sha256"]:
            path.unlink()
    shutil.rmtree(board.root / "flowers/releases")
    (board.root / "flowers/current").unlink()
    (store / (record["sha256"] + ".part")).write_bytes(b"x" * 100)
    done = deploy(board, bundle, "--prove", "none", "--precision", "int8")
    assert done.returncode == 1 and "other bytes" in done.stderr
    answer(deploy(board, bundle, "--prove", "none", "--precision", "int8"))


def test_no_permission_and_a_missing_runtime_are_said(board: Device, bundle: Path) -> None:
    done = edgetl("deploy", bundle, "board", "--ssh-config", board.config)
    assert done.returncode == 1 and "trt" in done.stderr  # the bundle has cpu graphs only
    done = edgetl("deploy", bundle)
    assert done.returncode == 1 and "wants a host" in done.stderr
    for host in (f"-oProxyCommand=touch {bundle}.never", f"board;touch {bundle}.never"):
        done = edgetl("deploy", bundle, "--ssh-config", board.config, "--backend", "onnxruntime", "--", host)
        assert done.returncode == 1 and "not a host" in done.stderr
    assert not bundle.with_name(bundle.name + ".never").exists()


@pytest.mark.slow
def test_a_missed_contract_is_not_deployed(board: Device, bundle: Path) -> None:
    from edgetl.bundle.manifest import seal

    manifest = json.loads((bundle / "manifest.json").read_text())
    for record in manifest["artifacts"]:
        if record["kind"] == "graph" and record["precision"] == "int8":
            record["met"] = False
    (bundle / "manifest.json").write_text(json.dumps(seal(manifest)))
    done = deploy(board, bundle, "--precision", "int8")
    assert done.returncode == 3 and not board.root.exists()
    found = answer(deploy(board, bundle, "--prove", "none"))
    assert {row["precision"] for row in found["rows"]} == {"fp32", "fp16"}


@pytest.mark.slow
def test_an_inventory_goes_on_where_one_host_fails(board: Device, bundle: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.toml"
    hosts.write_text('[[host]]\nhost = "board"\nprecision = "int8"\n[[host]]\nhost = "nowhere.invalid"\n')
    done = edgetl(
        "deploy", bundle, "--inventory", hosts, "--ssh-config", board.config, "--backend", "onnxruntime",
        "--seconds", "0.1", "--prove", "none", "--json",
    )  # fmt: skip
    assert done.returncode == 1
    first, second = json.loads(done.stdout)["hosts"]
    assert first["installed"]["precision"] == "int8" and "error" in second
    assert "no device of this name" in second["error"]["what"]


def test_doctor_asks_a_device(board: Device) -> None:
    found = answer(edgetl("doctor", "--device", "board", "--ssh-config", board.config, "--json"))
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["TensorRT"]["ok"] is False and rows["TensorRT"]["do"]
    assert rows["Python"]["ok"] is True
    assert found["probe"]["python"]["version"] == sys.version.split()[0]
