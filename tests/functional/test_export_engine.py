"""`edgetl export --engine`: graphs, then the engine of the last one; or a word before any work where none can be built.

Where TensorRT proper cannot run, NVIDIA's builder for RTX stands in for it: the same parser and API, no GPU needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edgetl import engine
from edgetl.bundle import Bundle
from edgetl.cli.app import app
from edgetl.engine import TENSORRT_RTX, load
from edgetl.errors import BackendError
from edgetl.spec import Precision

BUILD: Any = sys.modules["edgetl.engine.build"]  # the package's name for it is the function
needs_rtx = pytest.mark.skipif(bool(engine.missing()), reason=engine.missing() or "present")


def edgetl(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def bundle(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    """A smallnet on noise of two colours."""
    data = make_folder(n=24)
    quick = ("--backbone", "smallnet", "--weights", "none", "--epochs", 1, "--image-size", 32)
    made = edgetl("finetune", data, "--to", tmp_path / "b", *quick)
    assert made.exit_code == 0, made.stderr
    return tmp_path / "b"


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's builder for RTX wherever TensorRT proper is asked for."""
    monkeypatch.setattr(BUILD, "load", lambda flavour: load(TENSORRT_RTX))


def test_where_nothing_can_be_built_it_is_told_before_any_graph_is_made(bundle: Path) -> None:
    try:
        engine.check_machine(engine.BuildOptions(Precision.FP32))
        pytest.skip("an engine can be built here")
    except BackendError:
        pass
    before = files(bundle)
    done = edgetl("export", bundle, "--engine", "--json")
    assert done.exit_code == 1
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "tensorrt-rtx" in json.loads(done.stdout)["error"]["do"]
    assert files(bundle) == before


@needs_rtx
@pytest.mark.rtx
def test_a_cpu_graph_has_no_engine(bundle: Path, builder: None) -> None:
    before = files(bundle)
    done = edgetl("export", bundle, "--engine", "--target", "cpu")
    assert done.exit_code == 1
    assert "error: a CPU graph has no engine: cpu" in done.stderr
    assert files(bundle) == before


@needs_rtx
@pytest.mark.rtx
def test_the_engine_is_that_of_the_last_graph_made(bundle: Path, builder: None) -> None:
    done = edgetl("export", bundle, "--engine", "--json")
    assert done.exit_code == 0, done.stderr
    graph, made = json.loads(done.stdout)["artifacts"]
    assert (graph["kind"], made["kind"], made["precision"]) == ("graph", "engine", "fp32")
    record = Bundle.open(bundle).artifact("engine")
    assert record["made_from"] == graph["sha256"]
    assert Bundle.open(bundle).file(record).read_bytes()
    again = edgetl("export", bundle, "--engine")
    assert again.exit_code == 0, again.stderr
    assert f"engine  {made['file']}" in again.stdout
    assert len(Bundle.open(bundle).artifacts("engine")) == 1  # reused: its key is identical


@needs_rtx
@pytest.mark.rtx
@pytest.mark.slow
def test_no_engine_of_a_graph_that_misses_its_contract(bundle: Path, builder: None) -> None:
    unmet = ("export", bundle, "--int8", "--engine", "--max-drop", 0, "--confident", "--rescue", "none", "--json")
    refused = edgetl(*unmet)
    assert refused.exit_code == 3, refused.stderr
    assert {a["kind"] for a in json.loads(refused.stdout)["artifacts"]} == {"graph"}
    assert not Bundle.open(bundle).artifacts("engine")
    allowed = edgetl(*unmet, "--allow-unmet")
    assert allowed.exit_code == 0, allowed.stderr
    made = json.loads(allowed.stdout)["artifacts"]
    assert [(a["kind"], a["precision"]) for a in made][-2:] == [("graph", "int8"), ("engine", "int8")]
