"""A bundle to be quantised, and how every INT8 graph of it is judged: the same images, reference and arithmetic.

Judged on val and test pooled, which together tell half a point from none; the reference is PyTorch in fp32. All
graphs run through the same onnxruntime session options, which keep Q/DQ as written (see edgetl.runtime.ort).
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.child import cores, run_module
from edgetl import engine
from edgetl.bundle import Bundle
from edgetl.errors import EngineError
from edgetl.graph import ExportOptions, export, reference_backend, surgery
from edgetl.graph.macs import int8_share
from edgetl.graph.pixels import Pixels, graph_logits, logits_of
from edgetl.graph.reference import source_of
from edgetl.graph.sets import image_sets
from edgetl.images import SPLITS, to_batch
from edgetl.images.of_bundle import open_data
from edgetl.measure.score import compare
from edgetl.runtime.ort import OrtBackend
from edgetl.spec import Preprocess, Profile

MAX_DROP = 0.5
Values = dict[str, float | int | str | bool | None]


@dataclass(frozen=True)
class Subject:
    """`graph`: the fp32 graph that every quantiser starts from; `judged`: val and test; `logits`: the reference's.

    `folder` holds calibration.npy, validation.npy (uint8 (n, S, S, 3)) and targets.npy (of validation).
    """

    bundle: Path
    folder: Path
    graph: Path
    judged: Pixels
    logits: npt.NDArray[np.float32]
    calibration_images: int

    @classmethod
    def of(cls, bundle: Path, folder: Path, calibration_images: int = 512) -> Subject:
        """Read the bundle's own splits; `folder` is made, and gets a copy of the bundle to work on."""
        folder.mkdir(parents=True)
        own = fresh(bundle, folder / "bundle")
        made = export(own, ExportOptions(threads=cores()))
        opened = Bundle.open(own)
        sets = image_sets(opened, ExportOptions(int8=True, calib_size=str(calibration_images)))
        assert sets.calibration is not None
        calibration = Pixels.decoded(
            folder / "calibration", sets.calibration.root, sets.calibration.samples, opened.preprocess
        )
        validation, test = (_split(opened, name, folder) for name in ("val", "test"))
        np.save(folder / "calibration.npy", calibration.first(calibration.n))
        np.save(folder / "validation.npy", validation.first(validation.n))
        np.save(folder / "targets.npy", validation.targets)
        judged = Pixels(folder / "judged", opened.preprocess.size, np.concatenate([validation.targets, test.targets]))
        judged.path.write_bytes(validation.path.read_bytes() + test.path.read_bytes())
        reference = reference_backend(opened, cores())
        logits = logits_of(reference, judged)
        return cls(own, folder, own / made["artifacts"][0]["file"], judged, logits, calibration.n)

    @property
    def accuracy(self) -> float:
        """Of the reference, on what graphs are judged on."""
        return float((self.logits.argmax(axis=1) == self.judged.targets).mean())

    def judge(self, graph: Path) -> Values:
        """What `graph` loses. Raises BackendError, ValueError (a graph that gives NaN)."""
        given, _ = graph_logits(graph, self.judged, cores())
        found = compare(self.logits, given, self.judged.targets, max_drop=MAX_DROP)
        low, high = found.drop_ci_pp
        return {
            "n": found.n,
            "drop_pp": round(found.drop_pp, 3),
            "drop_low_pp": round(low, 3),
            "drop_high_pp": round(high, 3),
            "n_needed": found.n_needed,
            "agreement": round(found.agreement, 4),
            "kl": round(found.kl, 5),
        }


def coverage(graph: Path) -> tuple[float | None, str]:
    """(share of MACs in INT8, "accepted") in NVIDIA's builder; (None, its words) where it refuses the graph."""
    if engine.missing():
        return None, "not asked: " + engine.missing()
    try:
        found = engine.coverage(graph)
    except EngineError as error:
        return None, "refused: " + " ".join(str(error).split())[:200]
    return round(int8_share(onnx.load(str(graph)), found.precisions), 4), "accepted"


def exported(bundle: Path, *options: str) -> tuple[dict[str, Any], Path]:
    """`edgetl export BUNDLE --int8` with `options`, in a process of its own: its JSON object and the INT8 graph.

    A graph that misses its contract is as welcome as another. Raises RuntimeError when the command fails.
    """
    words = ["export", str(bundle), "--int8", "--max-drop", str(MAX_DROP), "--allow-unmet", *options, "--json"]
    said = dict(run_module("edgetl", "-q", *words, threads=cores()))
    graph = next(bundle / made["file"] for made in said["artifacts"] if made["precision"] == "int8")
    return said, graph


def searched(guard: dict[str, Any]) -> Values:
    """What the search did, for a row: `rungs` are those that were kept, of `rungs_tried`."""
    kept = [rung["name"] for rung in guard["rungs"] if rung["kept"]]
    return {
        "verdict": guard["verdict"],
        "val_drop_pp": round(guard["drop_pp"], 3),
        "val_n": guard["n"],
        "rungs": " > ".join(kept),
        "rungs_tried": len(guard["rungs"]),
        "nodes_in_float": len(guard["excluded_nodes"]),
    }


def fresh(bundle: Path, to: Path) -> Path:
    """A copy of `bundle`: what one export leaves there must not help the next."""
    shutil.copytree(bundle, to)
    return to


def adopted(bundle: Path, to: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Path:
    """A bundle of `change`(the fp32 source graph of `bundle`), adopted, with the same splits of the same images.

    Raises RuntimeError, GraphError.
    """
    opened = Bundle.open(bundle)
    to.mkdir(parents=True)
    graph = surgery.save(change(source_of(opened, to, Profile.TRT10)), to / "model.onnx")
    # The source graph takes 0-255 already: a normalisation that does nothing.
    spec = {**opened.preprocess.to_json(), "mean": [0.0] * 3, "std": [1 / 255] * 3}
    (to / "preprocess.json").write_text(json.dumps(Preprocess.from_json(spec).to_json()), encoding="utf-8")
    (to / "labels.json").write_text(json.dumps(opened.labels), encoding="utf-8")
    words = [str(graph), "--labels", str(to / "labels.json"), "--preprocess", str(to / "preprocess.json")]
    words += ["--data", str(_laid_out(opened, to / "data")), "--to", str(to / "bundle"), "--json"]
    run_module("edgetl", "-q", "adopt", *words, threads=cores())
    return to / "bundle"


def fp32_seconds(graph: Path, pixels: Pixels, images: int) -> float:
    """One pass of `graph` over `images` images, as they come, on all cores: the unit that an export is told in."""
    backend = OrtBackend(graph, threads=cores(), simulate=False)
    backend.run(to_batch(pixels.first(8), "float32"))  # warm
    part = pixels.first(min(images, pixels.n))
    started = time.perf_counter()
    for start in range(0, len(part), 8):
        backend.run(to_batch(part[start : start + 8], "float32"))
    return (time.perf_counter() - started) * images / len(part)


def _split(bundle: Bundle, name: str, folder: Path) -> Pixels:
    data, samples, _ = open_data(bundle, name)
    return Pixels.decoded(folder / name, data.root, samples, bundle.preprocess)


def _laid_out(bundle: Bundle, to: Path) -> Path:
    for split in SPLITS:
        data, samples, _ = open_data(bundle, split)
        for sample in samples:
            link = to / split / data.labels[sample.target] / sample.path.replace("/", "-")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(data.root / sample.path)
    return to
