"""Whether the ranges have settled: the line that says so, and `--calib-size auto`, which stops there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetl.graph.calibrate import Statistics
from edgetl.graph.convergence import Convergence, convergence
from edgetl.graph.pixels import Pixels
from edgetl.graph.placement import Placement
from edgetl.graph.quantise import Calibrated, calibrated
from edgetl.graph.ranges import METHODS

PLACED = Placement({"image": (("conv", 0),), "act": (("fc", 0),)}, {("conv", 1): 0, ("fc", 1): 1}, ())


def network() -> onnx.ModelProto:
    """image (N, 3, 8, 8) -> Conv 3x3 (4 channels) -> Relu -> Flatten -> Gemm -> logits (N, 3)."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["conv_out"], name="conv"),
        helper.make_node("Relu", ["conv_out"], ["act"], name="relu"),
        helper.make_node("Flatten", ["act"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "fc_w"], ["logits"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.normal(size=(144, 3)).astype(np.float32), "fc_w"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def alike(n: int) -> np.ndarray:
    """The same 16 sights over and over: a few images tell the ranges."""
    seen = np.random.default_rng(1).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    return np.resize(seen, (n, 8, 8, 3))


def brighter(n: int) -> np.ndarray:
    """Each image brighter than the one before: no number of them tells the ranges."""
    noise = np.random.default_rng(2).uniform(0.5, 1.0, (n, 8, 8, 3))
    return (noise * np.linspace(8, 255, n).reshape(n, 1, 1, 1)).astype(np.uint8)


def run(tmp_path: Path, images: np.ndarray, settle: bool = False) -> Statistics:
    pixels = Pixels.of_array(tmp_path / "images.pixels", images)
    return calibrated(network(), PLACED, pixels, settle=settle, threads=1)


def shown(found: Statistics) -> dict[str, object]:
    return {
        "peaks": found.peaks,
        "n": (found.n, found.n_half),
        "all": {name: h.to_json() for name, h in found.histograms.items()},
        "half": {name: h.to_json() for name, h in found.half.items()},
    }


def test_the_largest_and_the_median_move_are_over_the_tensors() -> None:
    found = convergence({"a": 1.0, "b": 2.0, "c": 4.0}, {"a": 1.0, "b": 2.5, "c": 3.0}, 8, 16)
    assert found == Convergence(8, 16, 0.25, 0.2, "c")
    assert str(found) == "from 8 to 16 images the ranges moved by 20.0% (median), by 25.0% at most (c)"
    assert Convergence(**found.to_json()) == found


def test_a_tensor_that_came_to_life_moved_wholly_and_a_dead_one_is_not_counted() -> None:
    found = convergence({"a": 1.0, "woken": 0.0, "dead": 0.0}, {"a": 1.0, "woken": 3.0, "dead": 0.0}, 1, 2)
    assert (found.largest, found.tensor, found.median) == (1.0, "woken", 0.5)
    assert convergence({}, {}, 1, 2) == Convergence(1, 2, 0.0, 0.0, "")


@pytest.mark.parametrize("method", METHODS)
def test_the_line_compares_with_what_half_the_images_give(tmp_path: Path, method: str) -> None:
    images = brighter(31)
    whole, half = (Calibrated(PLACED, run(tmp_path, part)) for part in (images, images[:15]))
    found = whole.convergence(method)
    assert found == convergence(half.ranges(method), whole.ranges(method), 15, 31)
    assert found.largest > 0.3


def test_it_is_kept_in_the_calibration_file(tmp_path: Path) -> None:
    made = Calibrated(PLACED, run(tmp_path, alike(24)))
    made.save(tmp_path / "calibration.json", "source", "images")
    read = Calibrated.load(tmp_path / "calibration.json")
    assert all(made.convergence(m) is not None and read.convergence(m) == made.convergence(m) for m in METHODS)
    assert read.ranges("entropy") == made.ranges("entropy")


def test_one_image_has_no_half(tmp_path: Path) -> None:
    assert Calibrated(PLACED, run(tmp_path, alike(1))).convergence("max") is None


@pytest.mark.parametrize("n", [2, 63, 64, 65, 100, 128])
def test_auto_takes_all_where_there_are_too_few_to_tell(tmp_path: Path, n: int) -> None:
    assert shown(run(tmp_path, alike(n), settle=True)) == shown(run(tmp_path, alike(n)))


@pytest.mark.parametrize("n", [129, 300, 512, 600])
def test_auto_stops_where_doubling_moved_nothing(tmp_path: Path, n: int) -> None:
    found = run(tmp_path, alike(n), settle=True)
    assert found.n == 128
    assert Calibrated(PLACED, found).convergence("percentile").largest <= 0.02  # type: ignore[union-attr]
    assert shown(found) == shown(run(tmp_path, alike(n)[:128]))  # as if it had been given that many


@pytest.mark.parametrize("n", [129, 300, 512])
def test_auto_goes_on_while_the_ranges_move(tmp_path: Path, n: int) -> None:
    found = run(tmp_path, brighter(n), settle=True)
    assert found.n == n
    assert shown(found) == shown(run(tmp_path, brighter(n)))


def test_auto_stops_later_where_the_ranges_settle_later(tmp_path: Path) -> None:
    late = np.concatenate([alike(100) // 4, alike(412)])  # the first look and its half are dark, the rest is not
    assert run(tmp_path, late, settle=True).n == 256
