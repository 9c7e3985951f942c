"""INT8 on a CPU, as a user gets it: `edgetl export --target cpu --int8`, then `edgetl bench` on one thread.

The bench times the fp32 and the int8 graph in turns in one process, so that both see the same machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import cores, run_module
from benchmarks.data import SAMPLES, split_layout
from benchmarks.rows import Case, Row, row
from edgetl.bundle import Bundle
from edgetl.embedded.digits import write_digits

IMAGES = 256  # a split: enough to calibrate on and to see that the INT8 graph says the same
_WEIGHTS = {
    "mobilenet_v2": SAMPLES / "weights/mobilenet_v2/mobilenet_v2-imagenet-coral-dequant.pth",
    "squeezenet1_0": SAMPLES / "weights/squeezenet1_0/squeezenet1_0-imagenet-deepcompression.pth",
}


@dataclass(frozen=True)
class _Setting:
    backbone: str
    size: int

    @property
    def weights(self) -> str:
        """A file where it is present; else random ones, whose latency is the same."""
        path = _WEIGHTS.get(self.backbone)
        return str(path) if path is not None and path.is_file() else "none"

    @property
    def name(self) -> str:
        """The case's name."""
        return f"{self.backbone} at {self.size} px" + (", random weights" if self.weights == "none" else "")


SETTINGS = [
    _Setting(backbone, size)
    for backbone in ("mobilenet_v2", "resnet18", "squeezenet1_0", "mobilenet_v3_small")
    for size in (128, 224)
]


def run(quick: bool) -> Iterator[Row]:
    """A row for each network and size."""
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as folder:
        scratch = Path(folder)
        data = _images(scratch, quick)
        settings = [_Setting("squeezenet1_0", 64)] if quick else SETTINGS
        for index, setting in enumerate(settings):
            yield row(Case("cpu_int8", setting.name, quick), 1, _measured(setting, data, scratch / str(index), quick))


def _images(scratch: Path, quick: bool) -> Path:
    flowers = SAMPLES / "data/flowers5_small"
    source = flowers if flowers.is_dir() and not quick else write_digits(scratch / "digits")
    split_layout(source, scratch / "images", 20 if quick else IMAGES)
    return scratch / "images"


def _measured(setting: _Setting, data: Path, bundle: Path, quick: bool) -> dict[str, Any]:
    """A head on the frozen backbone, both graphs, and the bench's two rows side by side."""
    options = ["--backbone", setting.backbone, "--weights", setting.weights, "--image-size", str(setting.size)]
    edgetl("finetune", str(data), "--to", str(bundle), *options, "--strategy", "linear-probe", threads=cores())
    # No layer is left in float for accuracy: what is asked here is what int8 kernels gain.
    plain = ("--target", "cpu", "--int8", "--rescue", "none", "--allow-unmet")
    edgetl("export", str(bundle), *plain, threads=cores())
    found = edgetl(
        *("bench", str(bundle), "--target", "cpu", "--backends", "onnxruntime", "--precisions", "fp32,int8"),
        *("--threads", "1", "--seconds", "0.2" if quick else "5"),
        threads=1,
    )
    graph = Bundle.open(bundle).artifact("graph", profile="cpu", precision="int8")
    return side_by_side({r["precision"]: r for r in found["rows"]}, graph)


def edgetl(*arguments: str, threads: int) -> Any:
    """The JSON object of an edgetl command. Raises RuntimeError when it fails."""
    return run_module("edgetl", "-q", *arguments, "--json", threads=threads)


def side_by_side(rows: dict[str, Any], graph: dict[str, Any]) -> dict[str, Any]:
    """The row's values from bench's fp32 and int8 row and the record of the int8 graph."""
    fp32, int8 = rows["fp32"], rows["int8"]
    times = [r["latency_ms"]["p50"] for r in (fp32, int8)]
    return {
        "n_images": int8["n_images"],
        "fp32_ms": round(times[0], 3),
        "int8_ms": round(times[1], 3),
        "ratio": round(times[0] / times[1], 2),
        "agreement": int8["agreement"],
        "drop_pp": int8["drop_pp"],
        "fp32_mb": round(fp32["size_bytes"] / 1e6, 2),
        "int8_mb": round(int8["size_bytes"] / 1e6, 2),
        "int8_macs_share": graph["int8_macs_share"],
        "weight_bits": graph["weight_bits"],
        "weight_bits_why": graph["weight_bits_why"],
    }
