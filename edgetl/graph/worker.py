"""The parent's end of the modelopt child process (graph/place.py)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from edgetl.errors import GraphError
from edgetl.graph import surgery

# Without these modelopt's libraries phone home or grab a GPU they do not need.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


class Worker:
    """A running child; one job at a time. It imports modelopt while the parent still decodes images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log_path = folder / "modelopt.log"
        self._log = self._log_path.open("wb")  # closed in close()
        self._jobs = 0
        temporary = folder / "tmp"
        temporary.mkdir()
        environment = {**os.environ, **_ENVIRONMENT, "TMPDIR": str(temporary), "PYTHONPATH": _python_path()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgetl.graph.place"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
        )

    def place(self, graph: onnx.ModelProto, images: np.ndarray, exclude: Sequence[str] = ()) -> onnx.ModelProto:
        """`graph` with modelopt's Q/DQ nodes; `images` float32 (n, 3, S, S) are real ones, for shapes only.

        `exclude` are node names. Raises GraphError.
        """
        self._jobs += 1
        pixels = self.folder / f"{self._jobs}.npy"
        np.save(pixels, images)
        patterns = [re.escape(name) for name in exclude]  # modelopt reads them as regular expressions
        return self._run(graph, {"do": "place", "pixels": str(pixels), "exclude": patterns})

    def fp16(self, graph: onnx.ModelProto, keep: Sequence[str] = ()) -> onnx.ModelProto:
        """`graph` in FP16 at opset 19, float32 at both ends; the nodes named in `keep` stay FP32."""
        self._jobs += 1
        return self._run(graph, {"do": "fp16", "keep": list(keep)})

    def _run(self, graph: onnx.ModelProto, job: dict[str, object]) -> onnx.ModelProto:
        source, target = (self.folder / f"{self._jobs}{end}" for end in (".onnx", ".out.onnx"))
        source.write_bytes(graph.SerializeToString(deterministic=True))
        line = json.dumps({**job, "graph": str(source), "to": str(target)})
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise GraphError("the modelopt process died", self._tail(), "is there memory left (it takes about 1.5 GB)?")
        result = json.loads(answer)
        if not result["ok"]:
            raise GraphError(f"modelopt failed at {job['do']}", result["error"])
        return surgery.load(target)

    def _tail(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it closed its end and hangs: nothing more will come from it
            self._process.kill()
            code = self._process.wait()
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit {code}: {lines[-1] if lines else 'no log'}"

    def close(self) -> None:
        """End the child, by force if it does not listen."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it died before; there is nothing to tell it
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def _python_path() -> str:
    """This edgetl first, so that the child runs the same code from whatever folder."""
    here = str(Path(__file__).resolve().parents[2])
    older = os.environ.get("PYTHONPATH")
    return here + (os.pathsep + older if older else "")


@contextmanager
def worker(scratch: Path) -> Iterator[Worker]:
    """A Worker in `scratch`/modelopt, ended however the block ends."""
    folder = scratch / "modelopt"
    folder.mkdir()
    child = Worker(folder)
    try:
        yield child
    finally:
        child.close()
