"""`edgetl demo` as a user runs it, and again in the same folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def demo(to: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgetl", "demo", "--to", str(to), *more],
        cwd=to.parent,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(to.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def interval(found: dict[str, Any]) -> tuple[float, float]:
    low, high = found["test"]["accuracy_ci"]
    return low, high


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_line_and_again(tmp_path: Path) -> None:
    to = tmp_path / "demo"
    first = demo(to, "--json")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)

    assert result["finetune"]["n"]["train"] == 100
    assert result["finetune"]["test"]["n"] == result["scratch"]["test"]["n"] == 1197
    for transferred in ("linear_probe", "finetune"):
        assert interval(result[transferred])[0] > interval(result["scratch"])[1], "the transfer must win clearly"

    precisions = [a["precision"] for a in result["export"]["artifacts"]]
    assert precisions == ["fp32", "fp16", "int8"]
    assert result["export"]["guard"]["met"] and result["export"]["guard"]["n"] == 500
    rows = result["bench"]["rows"]
    assert {(r["backend"], r["precision"]) for r in rows} >= {
        ("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("onnxruntime", "int8"),
    }  # fmt: skip
    assert {r["status"] for r in rows} == {"ok"}
    bundle = Path(result["paths"]["bundle"])
    assert all((bundle / a["file"]).is_file() for a in result["export"]["artifacts"])

    again = demo(to)
    assert again.returncode == 0, again.stderr
    for name in ("scratch", "linear_probe", "finetune"):
        assert f"{100 * result[name]['test']['accuracy']:.1f} %" in again.stdout
    assert str(bundle / result["export"]["artifacts"][2]["file"]) in again.stdout
    assert "Next, with photos of your own" in again.stdout


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine/digits").mkdir(parents=True)
    (tmp_path / "mine/digits/notes.txt").write_text("keep")
    ended = demo(tmp_path / "mine")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: this folder holds something else")]
    assert [p.name for p in (tmp_path / "mine").rglob("*")] == ["digits", "notes.txt"]
