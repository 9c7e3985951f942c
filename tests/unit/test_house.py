"""The house rules that a linter does not know."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.deploy.app import DEVICE_SIDE as TRAVELS
from edgetl.errors import BackboneError, CorruptImage, DataError, InputError, WeightsError

PACKAGE = Path(__file__).resolve().parents[2] / "edgetl"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# What a Jetson imports: JetPack 5 has Python 3.8.
DEVICE_SIDE = tuple(name for name in TRAVELS if name != "__init__")


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(path: Path) -> str:
    """The package or module below edgetl/ that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


DEVICE_SOURCES = [path for path in SOURCES if room(path) in DEVICE_SIDE] + [PACKAGE / "__init__.py"]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(where, lines) of each function in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{name(path)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", DEVICE_SOURCES, ids=name)
def test_the_device_side_parses_on_python_3_8(path):
    text = path.read_text(encoding="utf-8")
    ast.parse(text, filename=str(path), feature_version=(3, 8))
    assert (
        "from __future__ import annotations" in text
        or not text.partition('"""')[2].partition('"""')[2].strip()
        or (path.name == "__init__.py")
    )


def test_the_device_side_uses_nothing_newer_than_python_3_8():
    vermin = Path(sys.executable).with_name("vermin")
    command = [str(vermin), "-t=3.8-", "--violations", "--no-tips", *map(str, DEVICE_SOURCES)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_functions_and_files_stay_small():
    sizes = [size for path in SOURCES for size in functions(path)]
    assert [where for where, lines in sizes if lines > 60] == []
    lines = sorted(lines for _, lines in sizes)
    assert lines[int(len(lines) * 0.9)] <= 30
    assert [name(path) for path in SOURCES if path.read_text(encoding="utf-8").count("\n") >= 400] == []


def prints(tree: ast.Module) -> list[int]:
    """Lines that write to the process's own streams."""
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "pprint"):
            out.append(node.lineno)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout.write", "sys.stderr.write"):
            out.append(node.lineno)
    return out


def test_only_the_command_line_prints():
    found = {
        name(path): lines
        for path in SOURCES
        if room(path) not in ("cli", "device") and (lines := prints(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_nothing_is_left_for_later_and_no_exception_is_caught_without_a_reason():
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "breakpoint" + "()")
    found = []
    for path in SOURCES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            broad = line.strip().startswith(("except Exception", "except BaseException", "except:"))
            if any(mark in line for mark in marks) or (broad and "#" not in line and not reraises(path, number)):
                found.append(f"{name(path)}:{number}: {line.strip()}")
    assert found == []


def reraises(path: Path, number: int) -> bool:
    """Whether the handler on that line ends in a bare `raise`: it tidies up and catches nothing."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler) and node.lineno == number:
            last = node.body[-1]
            return isinstance(last, ast.Raise) and last.exc is None
    return False


def advises(call: ast.Call) -> bool:
    """Whether an error is given what to do, its third argument."""
    return (
        len(call.args) > 2
        or any(isinstance(a, ast.Starred) for a in call.args)
        or "do" in {k.arg for k in call.keywords}
    )


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_an_error_about_the_users_input_says_what_to_do(path):
    kinds = {kind.__name__ for kind in (InputError, DataError, CorruptImage, WeightsError, BackboneError)}
    raised = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds
    ]
    assert [f"{name(path)}:{call.lineno}" for call in raised if not advises(call)] == []


def test_rooms_have_names_that_say_something():
    nothing = {"utils", "util", "common", "core", "helpers", "helper", "manager", "misc"}
    assert [name(path) for path in SOURCES if nothing & set(path.relative_to(PACKAGE).with_suffix("").parts)] == []


def test_no_path_of_the_machine_it_was_written_on():
    homes = ("/" + "work/", "/" + "tmp/", "/" + "root/", "/home/")
    found = [name(p) for p in SOURCES if any(home in p.read_text(encoding="utf-8") for home in homes)]
    assert found == []


def test_the_readme_has_a_phrase_for_every_file():
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("The tree, a phrase per file") :]
    missing = [p for p in SOURCES if p.name not in ("__init__.py", "__main__.py") and f"  {p.name} " not in tree]
    assert not missing
