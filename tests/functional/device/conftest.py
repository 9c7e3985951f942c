"""A bundle as it travels: graphs, golden photos, pixels and logits, thresholds; and the device's command line."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgetl.bundle import Bundle, NewArtifact, create, locked, sha256_bytes
from edgetl.images import to_input
from edgetl.runtime import run_pixels
from edgetl.runtime.ort import OrtBackend

ROOT = Path(__file__).resolve().parents[3]
# Another interpreter may play the device: one with numpy, Pillow and onnxruntime.
PYTHON = os.environ.get("EDGETL_DEVICE_PYTHON", sys.executable)
SIZE, LABELS = 16, ["ant", "bee; rm -rf ~", "cat"]
CONFIDENCE = {
    "temperature": 2.0,
    "precision": 0.9,
    "abstain": [{"precision": 0.9, "threshold": 0.45, "coverage": 0.5, "n": 40, "n_needed": None}],
}


def photo(seed: int) -> bytes:
    """A JPEG of a colour, with texture."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (20, 24, 3)) + rng.integers(0, 190, (1, 1, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture
def device_bundle(tmp_path: Path, tiny_graph: Callable[..., Path]) -> Path:
    """fp32 and int8 graphs of profile trt10, eight golden photos with all their logits."""
    work, path = tmp_path / "making", tmp_path / "bundle"
    work.mkdir()
    spec = {"size": SIZE, "resize": 18, "fit": "crop", "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1]}
    from edgetl.spec import Preprocess

    photos = [photo(seed) for seed in range(8)]
    pixels = np.stack([to_input(data, Preprocess.from_json(spec)) for data in photos])
    new = [_saved(work, "pixels", pixels, {"kind": "golden-pixels"})]
    for index, data in enumerate(photos):
        (work / f"{index}.jpg").write_bytes(data)
        name = f"golden/images/{index:02}-{{sha12}}.jpg"
        new.append(NewArtifact(work / f"{index}.jpg", name, {"kind": "golden-image", "index": index, "made_by": "t"}))
    for precision in ("fp32", "int8"):
        graph = tiny_graph(name=precision, precision=precision)
        digest = sha256_bytes(graph.read_bytes())
        backend = OrtBackend(graph, threads=1)
        logits = run_pixels(backend, pixels)
        backend.close()
        if precision == "fp32":
            new.append(_saved(work, "logits", logits, {"kind": "golden-logits"}))
            reference = logits
        from edgetl.measure.parity import parity

        record = {"kind": "graph", "made_by": "export", "profile": "trt10", "precision": precision, "met": True}
        record |= {"input": "float32", "output": "logits", "parity": parity(reference, logits).to_json()}
        new.append(NewArtifact(graph, f"graphs/trt10/{precision}-{{sha12}}.onnx", record))
        proof = {"kind": "graph-logits", "made_from": digest, "precision": precision}
        new.append(_saved(work, "graph-" + digest[:12], logits, proof))
    manifest: dict[str, Any] = {"task": "classification", "made_by": "finetune", "labels": LABELS, "preprocess": spec}
    manifest |= {"model": {}, "splits": {}, "tolerances": {}, "training": {}, "confidence": CONFIDENCE}
    with locked(path):
        create(path, manifest, new, {})
    return path


def _saved(work: Path, name: str, array: Any, record: dict[str, Any]) -> NewArtifact:
    np.save(work / (name + ".npy"), array)
    return NewArtifact(work / (name + ".npy"), f"golden/{name}-{{sha12}}.npy", {"made_by": "test", **record})


class Device:
    """Runs the device's command line in a process of its own, from the source tree."""

    def __init__(self, python: str = PYTHON, where: str = str(ROOT), **environment: str) -> None:
        self.python = python
        self.environment = {**os.environ, "PYTHONPATH": where, "OMP_NUM_THREADS": "1", **environment}

    def command(self, *words: object) -> list[str]:
        return [self.python, "-m", "edgetl.device", *map(str, words)]

    def run(self, *words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
        how: dict[str, Any] = {"capture_output": True, "text": True, "env": self.environment, "timeout": 600}
        return subprocess.run(self.command(*words), input=stdin, check=False, **how)

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def __call__(self, *words: object, code: int = 0, stdin: str = "") -> dict[str, Any]:
        """The one object on stdout."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == code, done.stderr
        (line,) = done.stdout.splitlines()
        told: dict[str, Any] = json.loads(line)
        assert told["protocol"] == 1 and told["exit"] == code
        return told


@pytest.fixture
def device() -> Device:
    """device("probe") -> its object; device.run(...) -> the finished process."""
    return Device()


DOUBLES = ROOT / "tests/doubles"


@pytest.fixture(scope="session")
def cuda_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the CUDA double in it, under the name that the loader looks for."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("cuda")
    source = DOUBLES / "cuda_double.c"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(folder / "libcudart.so.13"), str(source)], check=True
    )
    return folder


@pytest.fixture
def with_tensorrt(cuda_folder: Path) -> Callable[..., Device]:
    """with_tensorrt(DOUBLE_TRT_NEEDS="256,1") -> a Device whose `tensorrt` and libcudart are the doubles."""

    def make(**environment: str) -> Device:
        return Device(where=f"{ROOT}:{DOUBLES}", LD_LIBRARY_PATH=str(cuda_folder), **environment)

    return make


@pytest.fixture
def opened(device_bundle: Path) -> Bundle:
    """The same bundle, open."""
    return Bundle.open(device_bundle)
