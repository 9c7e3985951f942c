"""A fault planted into the way to INT8, and the guard refuses what comes out: exit 3, the graph kept as not meeting.

The network is real and so is what it sees: a linear probe on the embedded backbone and scanned digits, each in red and
in blue, so that a digit's colour is half of its class. (Fine-tuned, its margins shrug off any one scale that is ten
times too large: at most .2 points of 500 images, measured tensor by tensor.) Faults are planted with --rescue none:
the ladder would leave a damaged layer in float, which is its work and not the guard's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from typer.testing import CliRunner

from edgetl.bundle import Bundle
from edgetl.cli.app import app
from edgetl.embedded.digits import write_digits
from edgetl.graph import qdq
from edgetl.graph.placement import Placement
from edgetl.graph.quantise import Calibrated

pytestmark = pytest.mark.slow  # seconds each: modelopt's process starts for every export

TINTS = {"red": (1.0, 0.25, 0.25), "blue": (0.25, 0.25, 1.0)}
DIGITS = "01234"
MAX_DROP = 2.0  # points; the honest graph loses about half a point of 500 images


@pytest.fixture(scope="module")
def tinted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ten classes, 0-red ... 4-blue, with 500 images in val, and its images in `digits` beside it."""
    folder = tmp_path_factory.mktemp("faults")
    grey = write_digits(folder / "grey", train_per_class=110)
    for path in grey.glob("*/*/*.png"):
        split, digit = path.parts[-3:-1]
        if digit in DIGITS:
            pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)
            for tint, factors in TINTS.items():
                to = folder / "digits" / split / f"{digit}-{tint}"
                to.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.rint(pixels * factors).astype(np.uint8)).save(to / path.name)
    words = ["--weights", "embedded", "--strategy", "linear-probe"]
    run("finetune", folder / "digits", "--to", folder / "bundle", *words)
    return folder / "bundle"


def run(*words: object, code: int = 0) -> dict[str, Any]:
    """A command of edgetl in this process; its JSON object."""
    done = CliRunner().invoke(app, [str(word) for word in (*words, "--json")])
    assert done.exit_code == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def export(bundle: Path, to: Path, code: int, *words: object) -> dict[str, Any]:
    """The guard's object of an INT8 export of a copy of `bundle`, whose exit code is looked at."""
    shutil.copytree(bundle, to)
    words = ("--int8", "--max-drop", MAX_DROP, "--rescue", "none", *words)
    guard: dict[str, Any] = run("export", to, *words, code=code)["guard"]
    (kept,) = Bundle.open(to).artifacts("graph", precision="int8")
    assert kept["met"] is guard["met"] is (code == 0)
    return guard


def test_the_untouched_graph_passes(tinted: Path, tmp_path: Path) -> None:
    guard = export(tinted, tmp_path / "b", 0)
    assert guard["verdict"] in ("met", "unresolved")
    assert guard["agreement"] > 0.93 and guard["n"] == 500


def too_large(self: Calibrated, method: str, honest: Any = Calibrated.ranges) -> dict[str, float]:
    """Calibrated.ranges, but the range of what the classifier's last layer reads is ten times too large."""
    found: dict[str, float] = honest(self, method)
    (tensor,) = [name for name in found if "avgpool" in name]
    return {**found, tensor: 10 * found[tensor]}


def test_one_scale_ten_times_too_large(tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Calibrated, "ranges", too_large)
    guard = export(tinted, tmp_path / "b", 3)
    assert guard["verdict"] == "not_met" and guard["drop_pp"] > 3


def test_a_calibration_set_from_another_domain(tinted: Path, tmp_path: Path) -> None:
    """Grey noise of little contrast: the ranges fit it, and cut off what the digits do."""
    rng = np.random.default_rng(0)
    for label in sorted(p.name for p in (tinted.parent / "digits/train").iterdir()):
        folder = tmp_path / "noise" / label
        folder.mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(120, 136, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    guard = export(tinted, tmp_path / "b", 3, "--calib", tmp_path / "noise")
    assert guard["verdict"] == "not_met" and guard["drop_pp"] > 5


def swapped(
    source: onnx.ModelProto, placement: Placement, amax: Mapping[str, float], honest: Any = qdq.inserted
) -> onnx.ModelProto:
    """qdq.inserted, but the first convolution reads blue for red: what a BGR decoder on the way would do."""
    out: onnx.ModelProto = honest(source, placement, amax)
    first = next(node for node in source.graph.node if node.op_type == "Conv")
    weight = next(t for t in out.graph.initializer if t.name == first.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))
    return out


def test_swapped_channels(tinted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdq, "inserted", swapped)
    guard = export(tinted, tmp_path / "b", 3)
    assert guard["verdict"] == "not_met" and guard["drop_pp"] > 20
