"""What travels as code: one zipapp, the same bytes each time, with numpy and Pillow alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgetl.bundle import sha256_bytes
from edgetl.deploy.app import DEVICE_SIDE, LARGEST, build_app, sources, write_app

HEAVY = {"torch", "torchvision", "onnx", "typer", "rich", "pydantic", "scipy", "sklearn", "modelopt"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_app(tmp_path_factory.mktemp("app"))[0]


def test_the_same_sources_give_the_same_bytes_and_few_of_them(app: Path) -> None:
    data = build_app()
    assert data == build_app() == app.read_bytes() and len(data) < LARGEST
    assert app.name == f"edgetl-{sha256_bytes(data)[:12]}.pyz"


def test_nothing_in_it_tells_when_or_where_it_was_made(app: Path) -> None:
    with zipfile.ZipFile(app) as archive:
        entries = archive.infolist()
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in entries} == {0o644}
        names = [entry.filename for entry in entries]
        text = b"".join(archive.read(name) for name in names)
    assert names[0] == "__main__.py" and names[1:] == [f"edgetl/{p.relative_to(_package())}" for p in sources()]
    assert str(Path.home()).encode() not in text and str(_package().parent).encode() not in text


def _package() -> Path:
    import edgetl

    return Path(edgetl.__file__).parent


def test_it_imports_nothing_heavy_and_only_what_travels(app: Path) -> None:
    program = "import json, sys; import edgetl.device.entry, edgetl.device.selftest, edgetl.device.modes; "
    program += "import edgetl.device.stream, edgetl.device.sources, edgetl.device.build, edgetl.device.jobs; "
    program += "print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(app)}, capture_output=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert not HEAVY & loaded
    ours = {name.split(".")[1] for name in loaded if name.startswith("edgetl.")}
    assert ours <= set(DEVICE_SIDE) and {"device", "engine", "measure"} <= ours


def test_it_runs_and_knows_its_own_sha256(app: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(app), "probe"], cwd=tmp_path, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["probe"]["app"]["sha256"] == sha256_bytes(app.read_bytes())


def test_what_starts_processes_finds_the_app_in_them(app: Path, tmp_path: Path) -> None:
    words = ["--job", str(tmp_path / "job"), "selftest", "--seconds", "0.02"]
    done = subprocess.run([sys.executable, str(app), *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert told["ok"] and told["probe"]["app"]["sha256"] == sha256_bytes(app.read_bytes())
    assert not (tmp_path / "job").exists(), "the answer was handed over"


def test_without_numpy_it_says_what_to_install(app: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(app), "selftest"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = json.loads(done.stdout)
    assert done.returncode == 1 and "python3-numpy" in told["error"]["do"]


def test_a_zip_of_it_is_a_zip(app: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(app.read_bytes())) as archive:
        assert archive.testzip() is None
