"""What the demo shows, from objects as the stages return them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgetl.cli import line
from edgetl.errors import EngineError
from edgetl.monitor import SILENT


def trained(accuracy: float, chosen: str) -> dict[str, Any]:
    test = {"accuracy": accuracy, "accuracy_ci": [accuracy - 0.01, accuracy + 0.01], "n": 1197}
    return {"test": test, "chosen": chosen, "seconds": 12.3, "n": {"train": 100}}


def result(chosen: str = "lp-ft", verdict: str = "met") -> dict[str, Any]:
    engine = {"file": "engines/abc.plan", "layers": {"int8": 12, "fp16": 1, "fp32": 0}, "runs_on": "RTX GPUs"}
    graph = {"profile": "trt10", "precision": "int8", "file": "graphs/trt10/int8-abc.onnx"}
    return {
        "scratch": trained(0.80, "scratch"),
        "linear_probe": trained(0.90, "linear-probe"),
        "finetune": trained(0.95, chosen),
        "export": {
            "artifacts": [graph],
            "guard": {"drop_pp": 0.2, "drop_ci_pp": [-0.3, 0.7], "n": 500, "verdict": verdict},
        },
        "build": {"tensorrt": {"skipped": "no libraries"}, "tensorrt_rtx": {"artifacts": [engine]}},
        "bench": {"schema": 1, "environments": {}, "rows": []},
        "paths": {"digits": "demo/digits", "bundle": "demo/finetune", "all": "demo"},
    }


def shown(of: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=100)
    line.show_line(console, of)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_shows_three_accuracies_with_their_number_of_images_and_intervals() -> None:
    text = shown(result())
    for name, cells in (("from scratch", "80.0 %"), ("linear probe", "90.0 %"), ("fine-tuned", "95.0 %")):
        (found,) = [x for x in text.splitlines() if name in x]
        assert cells in found and "1197" in found
    assert "94.0 - 96.0 %" in text
    assert "the probe is kept" not in text


def test_says_where_fine_tuning_did_not_beat_the_probe() -> None:
    assert "the probe is kept" in shown(result(chosen="linear-probe"))


def test_says_how_sure_the_verdict_on_int8_is() -> None:
    assert "drop +0.20 points (95 % -0.30 to +0.70); allowed 1.0: met\n" in shown(result())
    assert "reaches past it" in shown(result(verdict="unresolved"))


def test_names_engines_and_why_one_was_not_built_and_every_path() -> None:
    text = shown(result())
    assert "tensorrt: skipped: no libraries" in text
    assert "tensorrt-rtx: int8 engine built; layers that multiply: 12 int8, 1 fp16; runs on RTX GPUs" in text
    for path in ("demo/digits", "demo/finetune/graphs/trt10/int8-abc.onnx", "demo/finetune/engines/abc.plan"):
        assert path in text


def test_a_builder_that_refuses_ends_neither_the_demo_nor_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> dict[str, Any]:
        raise EngineError("the parser refused", "node Conv_1")

    monkeypatch.setattr("edgetl.engine.build", refuses)
    built = line._built(tmp_path, SILENT)
    assert built == {f: {"skipped": "the parser refused: node Conv_1"} for f in ("tensorrt", "tensorrt_rtx")}
