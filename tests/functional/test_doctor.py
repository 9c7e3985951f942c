from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from edgetl.cli.doctor import doctor

runner = CliRunner()
app = typer.Typer(pretty_exceptions_enable=False)
app.command("doctor")(doctor)


@app.callback()
def _root(ctx: typer.Context) -> None:
    ctx.obj = {"verbosity": 0}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    done = runner.invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)["rows"]}


def test_every_row_has_the_same_fields_and_every_no_a_way_out(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        assert set(row) == {"name", "ok", "value", "do"} and row["ok"] in (True, False, None)
        assert row["value"] and (row["ok"] is not False or row["do"]), row


def test_it_speaks_of_everything_the_line_needs(rows: dict[str, dict[str, Any]]) -> None:
    for name in (
        "edgetl",
        "PyTorch",
        "PyTorch on a GPU",
        "NVIDIA GPU",
        "TensorRT",
        "TensorRT for RTX",
        "Memory",
        "Disk",
    ):
        assert name in rows
    assert rows["PyTorch"]["ok"] and rows["ONNX Runtime CPU"]["ok"]
    assert sum(name.startswith("TensorRT line ") for name in rows) == 4


def test_a_provider_counts_only_if_it_loads(rows: dict[str, dict[str, Any]]) -> None:
    from edgetl.runtime.ort import available_providers

    for name, row in rows.items():
        if name.startswith("ONNX Runtime "):
            provider = name.rpartition(" ")[2] + "ExecutionProvider"
            assert row["ok"] is (provider in available_providers())


def test_rows_for_gpus_agree_with_each_other(rows: dict[str, dict[str, Any]]) -> None:
    if not rows["NVIDIA GPU"]["ok"]:
        assert not rows["PyTorch on a GPU"]["ok"] and not rows["TensorRT"]["ok"]


def test_a_full_disk_is_told_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5e8))
    done = runner.invoke(app, ["doctor", "--json"])
    disk = json.loads(done.stdout)["rows"][-1]
    assert disk["ok"] is False and disk["value"] == f"0.5 GB free at {tmp_path}" and disk["do"]


def test_people_get_a_table() -> None:
    done = runner.invoke(app, ["doctor"])
    assert done.exit_code == 0 and "TensorRT for RTX" in done.stdout
