"""One piece of work in this process, and the memory it took above the imports. Started by benchmarks.memory.

    python -m benchmarks.memory_child cli finetune DATA --to BUNDLE ...
    python -m benchmarks.memory_child calibrate GRAPH DATA SIZE N
    python -m benchmarks.memory_child modelopt GRAPH DATA SIZE N BATCH

The last line on stdout is JSON: {"peak_mb": above the baseline, "baseline_mb", "batch"}. Linux only (/proc).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

MEGABYTE = 1e6


def main() -> None:
    """Dispatch on the first argument."""
    what, *arguments = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr), stdout_to_stderr():
        answer = WORK[what](*arguments)
    print(json.dumps(answer))


def cli(*arguments: str) -> dict[str, float]:
    """A command of edgetl, after everything that it would import."""
    import modelopt.onnx.quantization
    import onnxruntime
    import sklearn.linear_model
    import torch
    import torchvision.transforms.v2

    import edgetl.bench
    import edgetl.graph
    import edgetl.transfer
    from edgetl.cli.app import app

    torch.zeros(1).sum()
    loaded = (modelopt, onnxruntime, sklearn, torchvision, edgetl.bench, edgetl.graph, edgetl.transfer)
    assert all(loaded)
    before = baseline()
    failed = app(["-q", *arguments], standalone_mode=False)  # the exit code, where it is not 0
    if failed:
        raise SystemExit(failed)
    return taken(before)


def calibrate(graph: str, data: str, size: str, count: str) -> dict[str, float]:
    """edgetl's histograms over `count` images: every input of a convolution, a matrix product or a sum."""
    import onnx

    from edgetl.graph.calibrate import Calibration

    model = onnx.load(graph)
    before = baseline()
    watched = Calibration(model, _counted(model), threads=int(os.environ["OMP_NUM_THREADS"]))
    seen: list[int] = []
    watched.feed(_images(data, int(size), int(count)), on_images=seen.append)
    batch = max((b - a for a, b in itertools.pairwise(seen)), default=1)
    return {**taken(before), "batch": batch}


def modelopt(graph: str, data: str, size: str, count: str, batch: str) -> dict[str, float]:
    """modelopt's quantize with calibration_method="max" on the same images, handed over a batch at a time."""
    import onnx
    from modelopt.onnx.quantization.quantize import quantize

    name = onnx.load(graph).graph.input[0].name
    before = baseline()
    with tempfile.TemporaryDirectory() as scratch:
        quantize(
            graph,
            quantize_mode="int8",
            calibration_method="max",
            calibration_data_reader=_Reader(name, data, int(size), int(count), int(batch)),
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(Path(scratch) / "out.onnx"),
            log_level="ERROR",
        )
        return taken(before)


class _Reader:
    """Batches as onnxruntime's CalibrationDataReader gives them, decoded when asked for."""

    def __init__(self, name: str, data: str, size: int, count: int, batch: int) -> None:
        self._name, self._data, self._size, self._count, self._batch = name, data, size, count, batch
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, None at the end."""
        from edgetl.images import to_batch

        pixels = list(itertools.islice(self._images, self._batch))
        return {self._name: to_batch(np.stack(pixels), "float32")} if pixels else None

    def get_first(self) -> dict[str, np.ndarray]:
        """The first batch; modelopt calls this undeclared method to infer shapes."""
        self.rewind()
        first = self.get_next()
        assert first is not None
        self.rewind()
        return first

    def rewind(self) -> None:
        """Start again."""
        self._images = _images(self._data, self._size, self._count)


def _images(data: str, size: int, count: int) -> Iterator[np.ndarray]:
    """`count` training images, uint8 (size, size, 3), decoded one at a time."""
    from edgetl.images import ReadOptions, draw_balanced, read_bytes, read_data, to_input
    from edgetl.spec import Preprocess

    found = read_data(data, ReadOptions())
    for sample in draw_balanced(found.split("train"), count, seed=0):
        yield to_input(read_bytes(found.root / sample.path), Preprocess(size=size, resize=size), sample.path)


def _counted(model: object) -> list[str]:
    graph = model.graph  # type: ignore[attr-defined]  # an onnx.ModelProto; onnx is imported by the caller alone
    constants = {tensor.name for tensor in graph.initializer}
    made = {name for node in graph.node for name in node.output} | {graph.input[0].name}
    wanted = [name for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul", "Add") for name in node.input]
    return sorted({name for name in wanted if name in made and name not in constants})


def baseline() -> float:
    """Forget the peak so far; resident MB now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return status("VmRSS")


def taken(before: float) -> dict[str, float]:
    """Peak since `baseline`, above it."""
    return {"peak_mb": max(0.0, status("VmHWM") - before), "baseline_mb": before}


def status(field: str, process: int | str = "self") -> float:
    """A field of /proc/<process>/status in MB. Raises OSError, RuntimeError where there is none."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / MEGABYTE
    raise RuntimeError(f"no {field} in /proc/{process}/status")


def children(process: int) -> Iterator[int]:
    """Every process below `process`, whichever of its threads started it."""
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread ended in between
            for word in path.read_text(encoding="ascii").split():
                yield int(word)
                yield from children(int(word))


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What libraries print, from C++ too, must not mix with the answer."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


WORK: dict[str, Callable[..., dict[str, float]]] = {"cli": cli, "calibrate": calibrate, "modelopt": modelopt}


if __name__ == "__main__":
    main()
