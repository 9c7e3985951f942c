"""The app in a venv that holds numpy and Pillow and nothing else: every module loads, and what is missing is said."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from edgetl.deploy.app import write_app

EVERY_MODULE = """
import importlib, sys, zipfile
sys.path.insert(0, sys.argv[1])
from edgetl.errors import BackendError
names = [n[:-3].replace("/", ".") for n in zipfile.ZipFile(sys.argv[1]).namelist() if n.endswith(".py")]
names = [n[: -len(".__init__")] if n.endswith(".__init__") else n for n in names if not n.endswith("__main__")]
refused = []
for name in names:
    try:
        importlib.import_module(name)
    except BackendError as error:
        refused.append([name, error.what])
loaded = {name.partition(".")[0] for name in sys.modules}
heavy = sorted(loaded & {"torch", "onnx", "typer", "rich", "scipy", "sklearn"})
print(__import__("json").dumps([len(names), refused, heavy]))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the interpreter of such a venv, the app)."""
    folder = tmp_path_factory.mktemp("alone")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    into = folder / "venv/lib" / version / "site-packages"
    for name in ("numpy", "PIL"):
        package = Path(importlib.import_module(name).__file__ or "").parent
        wheel = {"numpy": "numpy", "PIL": "pillow"}[name]
        for path in (package, *package.parent.glob(f"{wheel}-*.dist-info"), *package.parent.glob(f"{wheel}.libs")):
            (into / path.name).symlink_to(path)
    return folder / "venv/bin/python", write_app(folder)[0]


def run(*words: object) -> Any:
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=env, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_every_module_loads_and_onnxruntimes_door_says_what_it_lacks(alone: tuple[Path, Path]) -> None:
    python, app = alone
    found, refused, heavy = run(python, "-c", EVERY_MODULE, app)
    assert found > 60 and heavy == []
    assert refused == [["edgetl.runtime.ort", "onnxruntime is not installed for this Python"]]


def test_it_probes_and_its_selftest_says_that_no_runtime_loads(alone: tuple[Path, Path]) -> None:
    python, app = alone
    told = run(python, app, "probe")
    assert told["exit"] == 0 and told["probe"]["python"]["numpy"] and told["probe"]["python"]["pillow"]
    assert told["probe"]["python"]["onnxruntime"] is None and told["backends"]["onnxruntime"]["ok"] is False
    told = run(python, app, "selftest", "--seconds", "0.02")
    assert told["exit"] == 1 and told["steps"] == [] and "neither TensorRT nor onnxruntime" in told["error"]["value"]


def test_a_graph_without_a_runtime_is_one_clear_line(alone: tuple[Path, Path], device_bundle: Path) -> None:
    python, app = alone
    photo = next((device_bundle / "golden/images").iterdir())
    told = run(python, app, "classify", device_bundle, photo, "--backend", "onnxruntime", "--precision", "fp32")
    assert told["exit"] == 1 and told["error"]["what"] == "onnxruntime is not installed for this Python"
