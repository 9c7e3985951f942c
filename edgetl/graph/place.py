"""Child process: the two things NVIDIA's modelopt does for us, apart from everything else.

`python -m edgetl.graph.place` reads one JSON job a line on stdin and answers one JSON line a job on the
stdout it was started with. A process of its own because modelopt costs 700 MB, prints on stdout, and
leaves files beside its output and in TMPDIR; `graph/worker.py` gives it a folder and a TMPDIR of ours.

    {"do": "place", "graph": FILE, "pixels": FILE.npy, "exclude": [regex, ...], "to": FILE}
    {"do": "fp16", "graph": FILE, "keep": [node name, ...], "to": FILE}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
import onnx


class Reader:
    """Real calibration images, one at a time, as modelopt and onnxruntime ask for them."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._name = name
        self._images = images
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch of one, None at the end."""
        return next(self._batches, None)

    def get_first(self) -> dict[str, np.ndarray]:
        """The first batch; modelopt calls this undeclared method to infer shapes."""
        return {self._name: self._images[:1]}

    def rewind(self) -> None:
        """Start again; modelopt calls this undeclared method too."""
        self._batches: Iterator[dict[str, np.ndarray]] = iter(
            [{self._name: self._images[i : i + 1]} for i in range(len(self._images))]
        )


def place(job: dict[str, Any]) -> None:
    """Write the graph with Q/DQ nodes where TensorRT fuses them. Its scales are thrown away by the caller."""
    from modelopt.onnx.quantization.quantize import quantize

    name = onnx.load(job["graph"]).graph.input[0].name
    quantize(
        job["graph"],
        quantize_mode="int8",
        calibration_method="max",
        calibration_data_reader=Reader(name, np.load(job["pixels"])),
        calibration_eps=["cpu"],
        nodes_to_exclude=list(job["exclude"]),
        high_precision_dtype="fp32",
        output_path=job["to"],
        log_level="WARNING",
    )


def _keeping(converter: Any, kept: frozenset[str]) -> Any:
    """modelopt's PrecisionConverter, which blocks operator types only, as one that blocks nodes by name."""
    plain = getattr(converter, "plain", converter)

    class Keeping(plain):  # type: ignore[misc, valid-type]  # modelopt has no types
        def convert(self, high: list[str], low: list[str]) -> Any:
            stay = [name for name in low if name in kept]
            return super().convert([*high, *stay], [name for name in low if name not in kept])

    Keeping.plain = plain
    return Keeping


def fp16(job: dict[str, Any]) -> None:
    """Write the graph in FP16 with float32 input and output; the nodes in `keep` stay FP32."""
    from modelopt.onnx.autocast import convert

    convert.PrecisionConverter = _keeping(convert.PrecisionConverter, frozenset(job["keep"]))
    out = convert.convert_to_f16(onnx.load(job["graph"]), low_precision_type="fp16", keep_io_types=True, opset=19)
    onnx.save(out, job["to"])


JOBS = {"place": place, "fp16": fp16}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Do the jobs on `requests` until it ends (also when the parent dies), one answer each."""
    for line in requests:
        job = json.loads(line)
        try:
            JOBS[job["do"]](job)
            answer: dict[str, Any] = {"ok": True}
        except Exception as error:  # whatever modelopt raises must reach the parent as an answer
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Keep the real stdout for answers; everything that prints goes to stderr (the parent's log file)."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
