"""What an import costs: `edgetl --help` loads nothing heavy, and the device side needs numpy and Pillow alone."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgetl.deploy.app import DEVICE_SIDE as TRAVELS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "onnxslim", "onnx_graphsurgeon", "tensorrt",
    "tensorrt_rtx", "modelopt", "sklearn", "scipy", "matplotlib", "tensorboard", "safetensors", "numpy", "PIL",
)  # fmt: skip
COMMANDS = (
    "demo", "finetune", "pretrain", "adopt", "export", "build", "bench", "rank", "domains", "classify", "inspect",
    "verify", "deploy", "doctor", "report",
)  # fmt: skip
DEVICE_SIDE = tuple(name for name in TRAVELS if name != "__init__")
FOREIGN = (
    "torch",
    "torchvision",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "pydantic",
    "typer",
    "rich",
    "scipy",
)


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(command):
    done = run(
        """
        import json, sys
        sys.argv = ["edgetl", *sys.argv[1:], "--help"]
        from edgetl.cli.app import main
        try:
            main()
        except SystemExit as end:
            assert end.code in (0, None), end.code
        top = sorted({name.partition(".")[0] for name in sys.modules})
        print("\\n" + json.dumps(top))
        """,
        *command,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & set(HEAVY)
    assert "usage" in done.stdout.lower()


ON_A_BUNDLE = {"export": (), "build": ("--precision", "int8"), "bench": (), "classify": ("x.jpg",)}
ON_A_BUNDLE |= {"inspect": (), "verify": (), "report": ("--html", "x.html")}


@pytest.mark.parametrize("command", ON_A_BUNDLE)
def test_a_wrong_bundle_path_is_told_before_anything_heavy_is_loaded(command, tmp_path):
    done = run(
        """
        import json, sys
        sys.argv[0] = "edgetl"
        from edgetl.cli.app import main
        try:
            main()
        except SystemExit as end:
            assert end.code == 1, end.code
        print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
        """,
        *(command, str(tmp_path / "nowhere"), *ON_A_BUNDLE[command]),
    )
    assert done.returncode == 0, done.stderr
    assert "error: no such bundle" in done.stderr
    assert not set(json.loads(done.stdout)) & set(HEAVY) - {"numpy", "PIL"}


def test_the_device_side_imports_with_numpy_and_pillow_alone():
    done = run(
        """
        import importlib, importlib.abc, pkgutil, sys

        class Alone(importlib.abc.MetaPathFinder):
            '''Refuses every installed package but numpy and Pillow, as on a bare device.'''
            def find_spec(self, name, path=None, target=None):
                top = name.partition(".")[0]
                if top in sys.stdlib_module_names or top in ("edgetl", "numpy", "PIL"):
                    return None
                raise ModuleNotFoundError("No module named %r (blocked)" % name, name=name)

        for name in list(sys.modules):  # whatever .pth files of the environment loaded at start
            if name.partition(".")[0] not in (*sys.stdlib_module_names, "__main__"):
                del sys.modules[name]
        sys.meta_path.insert(0, Alone())
        from edgetl.errors import BackendError
        count = 0
        for room in sys.argv[1:]:
            module = importlib.import_module("edgetl." + room)
            count += 1
            for inner in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + "."):
                try:
                    importlib.import_module(inner.name)
                except BackendError as error:
                    # The door to a runtime says so where that runtime is not installed; nothing else may.
                    assert inner.name == "edgetl.runtime.ort" and "onnxruntime" in str(error), inner.name
                count += 1
        print(count)
        """,
        *DEVICE_SIDE,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_the_device_side_pulls_in_nothing_foreign():
    done = run(
        """
        import importlib, json, sys
        for room in sys.argv[1:]:
            importlib.import_module("edgetl." + room)
        print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
        """,
        *DEVICE_SIDE,
    )
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout)) & set(FOREIGN)


def test_the_package_can_be_run_and_says_its_version():
    from edgetl import __version__

    done = subprocess.run(
        [sys.executable, "-m", "edgetl", "--version"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"edgetl {__version__}\n"
