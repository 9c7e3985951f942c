"""The names taken from TensorRT's bindings, against the code that takes them and the bindings that have them."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from edgetl.engine.names import ALWAYS, GUARDED
from edgetl.engine.toolkit import LINES

ROOT = Path(__file__).resolve().parents[3]
RECORDED = ROOT / "tests/data/trt_names"
DOORS = [ROOT / "edgetl/engine" / n for n in ("plan.py", "guard.py", "toolkit.py")]
DOORS += [ROOT / "edgetl/runtime" / n for n in ("trt.py", "binding.py")]

# What the doors call the binding's objects.
OBJECTS = frozenset(
    ["trt", "builder", "network", "parser", "config", "profile", "tensor", "layer", "maker", "engine", "context"]
    + ["inspector", "runtime", "cache", "progress", "error", "module", "_engine", "_context"]
)
OWN = {"what", "value", "do"}  # of our exceptions, which the doors call `error` too
OWN |= {"__init__", "__path__"}  # of any class and package
VERSIONS = ("8.6.1", "10.3.0", "11.4.0")


def used_names() -> set[str]:
    """Every attribute that the doors take from an object of the binding, by dot, hasattr or getattr."""
    found: set[str] = set()
    for path in DOORS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and _root(node) in OBJECTS:
                found.add(node.attr)
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("hasattr", "getattr")
                and isinstance(node.args[1], ast.Constant)
            ):
                found.add(str(node.args[1].value))
    flags = {flag for line in LINES for flag in line.network_flags}
    flags |= {flag for line in LINES for flags in line.precision_flags.values() for flag in flags}
    return found | flags


def _root(node: ast.expr) -> str:
    """`trt.BuilderFlag.TF32` -> "trt"; `self._engine.create` -> "_engine"."""
    while isinstance(node, (ast.Attribute, ast.Call, ast.Subscript)):
        inner = node.func if isinstance(node, ast.Call) else node.value
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self":
            return inner.attr
        node = inner
    return node.id if isinstance(node, ast.Name) else ""


def recorded(version: str) -> dict[str, list[str]]:
    return dict(json.loads((RECORDED / f"{version}.json").read_text()))


def test_the_list_is_exactly_what_the_code_uses() -> None:
    declared = set(ALWAYS) | set(GUARDED)
    used = used_names()
    assert used - declared - OWN == set(), "used but not in names.py"
    sources = "\n".join(path.read_text() for path in DOORS)
    assert {name for name in declared if name not in sources} == set(), "in names.py but used nowhere"


def test_guarded_names_are_never_taken_plainly() -> None:
    plain = set()
    for path in DOORS:
        text = path.read_text()
        for name in GUARDED:
            if f".{name}" in text and f'"{name}"' not in text:
                plain.add(name)
    # Behind the hasattr of a name that always comes with them.
    assert plain <= {"EngineValidity", "INVALID"}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_line_has_the_names_it_is_asked_for(version: str) -> None:
    known = recorded(version)
    asked = set(ALWAYS) | set(GUARDED)
    assert asked == set(known["has"]) | set(known["lacks"]), f"run {RECORDED.name}/record.py again"
    assert set(ALWAYS) - set(known["has"]) == set()


def test_what_11_removed_is_what_the_record_says() -> None:
    lacks_11, lacks_8 = set(recorded("11.4.0")["lacks"]), set(recorded("8.6.1")["lacks"])
    assert "EXPLICIT_BATCH" in lacks_11 and "EXPLICIT_BATCH" not in lacks_8
    assert "STRONGLY_TYPED" in lacks_8
    assert "IProgressMonitor" in lacks_8 and "IProgressMonitor" not in lacks_11


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", RECORDED / "record.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_the_record_is_what_the_real_binding_says(version: str) -> None:
    try:
        fresh = _script().record(version)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    known = recorded(version)
    assert (fresh["has"], fresh["lacks"]) == (known["has"], known["lacks"])
