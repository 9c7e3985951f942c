"""The contract of half a point on fine-tuned networks: kept or not, with how much of it in INT8, and at what cost.

`edgetl export --int8 --max-drop 0.5` on each; the cost is told as a multiple of one FP32 pass of onnxruntime over the
calibration and validation images on the same cores. One case more is the size that the aim of 15 passes is about.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.child import cores
from benchmarks.networks import Recipe, bundle_of, finetuned, from_scratch, have_samples, weights_of
from benchmarks.rows import Case, Row, row
from benchmarks.subject import Subject, Values, coverage, exported, fp32_seconds, fresh, searched

BACKBONES = ("mobilenet_v2", "squeezenet1_0")
DATA = ("flowers5_small", "pacs_mini pooled", "cifar10_mini")
CALIBRATION_IMAGES = 512


def recipes(quick: bool) -> list[Recipe]:
    """Backbones x data sets, and mobilenet_v2 at 224 px with 500 validation images; without samples a small one."""
    if quick or not have_samples():
        return [from_scratch("mobilenet_v3_small x0.5", "mobilenet_v3_small", "width_mult=0.5", 1 if quick else 12)]
    return [*(finetuned(backbone, data) for data in DATA for backbone in BACKBONES), _large()]


def run(quick: bool) -> Iterator[Row]:
    """A row for each network."""
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        for index, recipe in enumerate(recipes(quick)):
            place = Path(folder) / str(index)
            subject = Subject.of(bundle_of(recipe), place / "subject", CALIBRATION_IMAGES)
            yield row(Case("contract", recipe.name, quick), cores(), kept(subject, place / "bundle"))


def kept(subject: Subject, to: Path) -> Values:
    """The row's values."""
    said, graph = exported(fresh(subject.bundle, to), "--calib-size", str(CALIBRATION_IMAGES))
    share, nvidia = coverage(graph)
    images = subject.calibration_images + said["guard"]["n"]
    once = fp32_seconds(subject.graph, subject.judged, images)
    return {
        "reference_accuracy": round(subject.accuracy, 4),
        **subject.judge(graph),
        **searched(said["guard"]),
        "int8_macs_share": share,
        "nvidia": nvidia,
        "calibration_images": subject.calibration_images,
        "seconds": round(said["seconds"], 1),
        "fp32_pass_s": round(once, 2),
        "passes": round(said["seconds"] / once, 1),
    }


def _large() -> Recipe:
    """mobilenet_v2 at 224 px on flowers with 500 validation images; a probe will do, for it is about time."""
    which = ("--backbone", "mobilenet_v2", "--weights", str(weights_of("mobilenet_v2")), "--image-size", "224")
    how = ("--strategy", "linear-probe", "--val-fraction", "0.1158", "--test-fraction", "0.1158")
    return Recipe("mobilenet_v2 at 224 px, flowers5_small", "flowers5_small", which + how)
