"""One quantiser in this process: an INT8 graph from a job's fp32 graph and images. Started by benchmarks.peers.

    python -m benchmarks.peers_child METHOD JOB.json

JOB names files: "graph" (ONNX, fp32), "calibration" and "validation" (uint8 (n, S, S, 3) in .npy), "targets"
(of validation), "bundle" (edgetl's own), "to" (where the INT8 graph goes), "threads", "max_drop" (points).
The last line on stdout is JSON: {"seconds", "peak_mb" above what is resident after all imports, "total_mb" with the
peaks of child processes, "graph", "said"}, or {"error"}. edgetl is imported for its own methods alone, so that the
others run in an environment without it. Linux only (/proc).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import memory_child as memory

Job = dict[str, Any]
Pixels = np.ndarray


def main() -> None:
    """Dispatch on the first argument."""
    method, file = sys.argv[1:]
    job = json.loads(Path(file).read_text(encoding="utf-8"))
    with contextlib.redirect_stdout(sys.stderr), memory.stdout_to_stderr():
        try:
            answer = METHODS[method](job)
        except Exception as error:  # whatever a quantiser raises is a result: it goes into its row
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer))


class _Measured:
    """Time and memory of what happens in the block; child processes are looked at ten times a second."""

    def __enter__(self) -> _Measured:
        self._children: dict[int, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._before = memory.baseline()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self.taken = memory.taken(self._before)
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            for pid in memory.children(os.getpid()):
                with contextlib.suppress(OSError, RuntimeError):  # it ended in between
                    self._children[pid] = max(self._children.get(pid, 0.0), memory.status("VmHWM", pid))

    def answer(self, graph: str | Path, said: str = "") -> dict[str, Any]:
        """The JSON of the protocol."""
        total = self.taken["baseline_mb"] + self.taken["peak_mb"] + sum(self._children.values())
        return {
            "seconds": self.seconds,
            "peak_mb": self.taken["peak_mb"],
            "total_mb": total,
            "graph": str(graph),
            "said": said,
        }


def _edgetl(rescue: str) -> Callable[[Job], dict[str, Any]]:
    def run(job: Job) -> dict[str, Any]:
        """`edgetl export --int8` as a user runs it: decoding, fp32 and fp16 graphs, search, verdict and coverage."""
        import onnxruntime
        import torch

        import edgetl.engine
        import edgetl.graph
        from edgetl.cli.app import app

        torch.zeros(1).sum()
        assert onnxruntime and edgetl.graph and not edgetl.engine.missing()
        out = Path(job["to"]).with_suffix(".json")
        words = ["-q", "export", job["bundle"], "--int8", "--rescue", rescue, "--max-drop", str(job["max_drop"])]
        words += ["--calib-size", str(len(_pixels(job, "calibration"))), "--allow-unmet", "--out", str(out)]
        with _Measured() as measured:
            failed = app(words, standalone_mode=False)
        if failed:
            raise RuntimeError(f"edgetl export exited {failed}")
        result = json.loads(out.read_text(encoding="utf-8"))
        made = next(a for a in result["artifacts"] if a["precision"] == "int8")
        rungs = " > ".join(rung["name"] for rung in result["guard"]["rungs"] if rung["kept"])
        said = f"{result['guard']['verdict']}; {rungs}; {len(result['guard']['excluded_nodes'])} nodes in float"
        return measured.answer(Path(job["bundle"]) / made["file"], said)

    return run


def _onnxruntime(method: str) -> Callable[[Job], dict[str, Any]]:
    def run(job: Job) -> dict[str, Any]:
        """quantize_static as TensorRT wants it: symmetric int8, weights per channel, biases left in float."""
        from onnxruntime import quantization as ort

        reader = _reader(ort.CalibrationDataReader, _input_name(job), _pixels(job, "calibration"))
        with _Measured() as measured, tempfile.TemporaryDirectory() as scratch:
            plain = Path(scratch) / "prepared.onnx"
            ort.shape_inference.quant_pre_process(job["graph"], str(plain))
            ort.quantize_static(
                str(plain),
                job["to"],
                reader,
                quant_format=ort.QuantFormat.QDQ,
                per_channel=True,
                activation_type=ort.QuantType.QInt8,
                weight_type=ort.QuantType.QInt8,
                calibrate_method=ort.CalibrationMethod[method],
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )
        return measured.answer(job["to"])

    return run


def _modelopt(method: str) -> Callable[[Job], dict[str, Any]]:
    def run(job: Job) -> dict[str, Any]:
        """modelopt's quantize with nothing set but the method, the images as an array and the CPU."""
        from modelopt.onnx.quantization import quantize

        images = np.concatenate(list(batches(_pixels(job, "calibration"), 1)))
        with _Measured() as measured:
            quantize(
                job["graph"],
                quantize_mode="int8",
                calibration_method=method,
                calibration_data=images,
                calibration_eps=["cpu"],
                output_path=job["to"],
                log_level="ERROR",
            )
        return measured.answer(job["to"])

    return run


def _nncf(job: Job) -> dict[str, Any]:
    """quantize_with_accuracy_control on the ONNX model; its metric is accuracy on the validation images."""
    os.environ["NNCF_CI"] = "1"  # it reports its use to its makers otherwise
    import nncf  # type: ignore[import-not-found]  # it lives in another environment
    import onnx

    model, name = onnx.load(job["graph"]), _input_name(job)
    images, held = _pixels(job, "calibration"), _pixels(job, "validation")
    with _Measured() as measured:
        quantised = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(list(range(len(images))), lambda i: {name: _floats(images[i : i + 1])}),
            nncf.Dataset(list(range(len(held))), lambda i: {name: _floats(held[i : i + 1])}),
            _accuracy(name, held, np.load(job["targets"]), job["threads"]),
            max_drop=job["max_drop"] / 100,
            subset_size=len(images),
        )
        onnx.save(quantised, job["to"])
    return measured.answer(job["to"], f"nncf {nncf.__version__}")


def _accuracy(
    name: str, held: Pixels, targets: np.ndarray, threads: int
) -> Callable[[Any, Any], tuple[float, list[float]]]:
    """NNCF's validation function: accuracy of an ONNX model on the images of some indices, and each one's hit or miss.

    By hits, not by logits: NNCF's ranking of layers by logits is for OpenVINO alone (3.4).
    """

    def validate(model: Any, indices: Any) -> tuple[float, list[float]]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        said = [(i, session.run(None, {name: _floats(held[i : i + 1])})[0].argmax()) for i in indices]
        hits = [float(found == targets[i]) for i, found in said]
        return float(np.mean(hits)), hits

    return validate


def _reader(base: Any, name: str, images: Pixels) -> Any:
    class Reader(base):  # type: ignore[misc]  # onnxruntime has no types
        """One image at a time."""

        def __init__(self) -> None:
            self._images = batches(images, 1)

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(self._images, None)
            return None if found is None else {name: found}

    return Reader()


def batches(images: Pixels, size: int) -> Iterator[np.ndarray]:
    """float32 (<= size, 3, S, S), 0 to 255, of uint8 (n, S, S, 3)."""
    for start in range(0, len(images), size):
        yield _floats(images[start : start + size])


def _floats(images: Pixels) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)


def _pixels(job: Job, name: str) -> Pixels:
    pixels: Pixels = np.load(job[name], mmap_mode="r")
    return pixels


def _input_name(job: Job) -> str:
    import onnx

    return str(onnx.load(job["graph"]).graph.input[0].name)


METHODS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "edgetl": _edgetl("exclude"),
    "edgetl-qat": _edgetl("qat"),
    "edgetl-plain": _edgetl("none"),
    "onnxruntime-minmax": _onnxruntime("MinMax"),
    "onnxruntime-entropy": _onnxruntime("Entropy"),
    "onnxruntime-percentile": _onnxruntime("Percentile"),
    "modelopt-entropy": _modelopt("entropy"),
    "modelopt-max": _modelopt("max"),
    "nncf": _nncf,
}

if __name__ == "__main__":
    main()
