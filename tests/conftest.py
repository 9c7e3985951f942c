"""Shared fixtures: small image folders made here, and the real sample images where they are present."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# A shell starts its background jobs with Ctrl-C ignored, and every process that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples at every run: a red CI can be reproduced. HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("edgetl", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "edgetl"))

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = Path(os.environ.get("EDGETL_SAMPLES", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder with data/ and weights/; tests that want it are skipped where it is absent."""
    if not (SAMPLES / "data").is_dir():
        pytest.skip(f"no sample images at {SAMPLES} (set EDGETL_SAMPLES)")
    return SAMPLES


@pytest.fixture(scope="session")
def mobilenet_weights(samples: Path) -> Path:
    """ImageNet weights of torchvision's mobilenet_v2."""
    path = samples / "weights/mobilenet_v2/mobilenet_v2-imagenet-coral-dequant.pth"
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    return path


MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """make_folder(classes=("a", "b"), n=6, size=32) -> an image folder whose classes differ in colour and texture."""

    def make(
        classes: tuple[str, ...] = ("left", "right"), n: int = 8, size: int = 32, name: str = "photos", seed: int = 0
    ) -> Path:
        rng = np.random.default_rng(seed)
        for index, label in enumerate(classes):
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
                pixels[:, :, index % 3] += 120
                pixels[index :: 2 + index, :, :] //= 2
                Image.fromarray(pixels).save(folder / f"{i:03}.png")
        return tmp_path / name

    return make


class TinyGraph:
    """A two-convolution classifier written node by node, so that a test knows what is in the file.

    float32 or uint8 in, `classes` logits out; `int8` has Q/DQ in the TensorRT manner with an FP16 rest.
    """

    def __init__(self, classes: int = 3, size: int = 16, seed: int = 0) -> None:
        self.classes, self.size = classes, size
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._init: list[Any] = []

    def model(
        self, precision: str = "fp32", kind: str = "float32", batch: int | str = "N", ends: str = "logits"
    ) -> Any:
        import onnx
        from onnx import TensorProto, helper

        rest = np.float32 if precision == "fp32" else np.float16
        shape = [batch, self.size, self.size, 3] if kind == "uint8" else [batch, 3, self.size, self.size]
        dtype = TensorProto.UINT8 if kind == "uint8" else TensorProto.FLOAT
        x = self._front(kind, rest)
        for name, width_in, width in (("c0", 3, 8), ("c1", 8, 8)):
            x = self._layer("Conv", x, (width, width_in, 3, 3), name, rest, precision, pads=[1] * 4)
            x = self._node("Relu", [x], name + "_relu")
        x = self._node("Flatten", [self._node("GlobalAveragePool", [x], "pool")], "flat")
        x = self._layer("Gemm", x, (self.classes, 8), "fc", rest, precision, transB=1)
        x = self._node("Cast", [x], "widened", to=TensorProto.FLOAT)
        self._node("Softmax" if ends == "probabilities" else "Identity", [x], ends)
        graph = helper.make_graph(
            self._nodes,
            "tiny",
            [helper.make_tensor_value_info("image", dtype, shape)],
            [helper.make_tensor_value_info(ends, TensorProto.FLOAT, [batch, self.classes])],
            self._init,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        helper.set_model_props(model, {"precision": precision})
        onnx.checker.check_model(model, full_check=True)
        return model

    def _front(self, kind: str, rest: Any) -> str:
        from onnx import TensorProto

        x = "image"
        if kind == "uint8":
            x = self._node(
                "Transpose", [self._node("Cast", [x], "wide", to=TensorProto.FLOAT)], "nchw", perm=[0, 3, 1, 2]
            )
        x = self._node("Mul", [x, self._const("unit", np.float32(1 / 255))], "scaled")
        return self._node("Cast", [x], "rest", to=TensorProto.FLOAT if rest is np.float32 else TensorProto.FLOAT16)

    def _layer(self, op: str, x: str, shape: tuple[int, ...], name: str, rest: Any, precision: str, **how: Any) -> str:
        # Small weights beside large biases: their int32 bias scale is below what FP16 holds.
        weight = (self._rng.normal(size=shape) * (0.01 if op == "Conv" else 1.0)).astype(np.float32)
        bias = self._rng.normal(size=shape[0]).astype(rest)
        if precision == "int8":
            x, kernel = self._quantised(x, name + "_x", rest), self._quantised_weight(weight, name + "_w", rest)
        else:
            kernel = self._const(name + "_w", weight.astype(rest))
        return self._node(op, [x, kernel, self._const(name + "_b", bias)], name, **how)

    def _quantised(self, x: str, name: str, rest: Any) -> str:
        scale, zero = self._const(name + "_s", np.array(3 / 127, rest)), self._const(name + "_z", np.int8(0))
        return self._node(
            "DequantizeLinear", [self._node("QuantizeLinear", [x, scale, zero], name + "_q"), scale, zero], name
        )

    def _quantised_weight(self, weight: Any, name: str, rest: Any) -> str:
        scale = (np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127).astype(rest)
        steps = weight / scale.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1))
        parts = [np.clip(np.rint(steps), -127, 127).astype(np.int8), scale, np.zeros(len(weight), np.int8)]
        names = [self._const(name + end, part) for end, part in zip(("_q", "_s", "_z"), parts, strict=True)]
        return self._node("DequantizeLinear", names, name, axis=0)

    def _const(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self._init.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, op: str, inputs: list[str], output: str, **how: Any) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **how))
        return output


@pytest.fixture
def tiny_graph(tmp_path: Path) -> Callable[..., Path]:
    """tiny_graph(precision="fp32", kind="float32", batch="N", ends="logits", classes=3, seed=0) -> an ONNX file."""

    def make(name: str = "", classes: int = 3, size: int = 16, seed: int = 0, **how: Any) -> Path:
        path = tmp_path / (name or "-".join(["tiny", *(str(v) for v in how.values()), str(seed)]) + ".onnx")
        path.write_bytes(TinyGraph(classes, size, seed).model(**how).SerializeToString())
        return path

    return make


GraphBundle = Callable[..., Path]


@pytest.fixture
def graph_bundle(tmp_path: Path) -> GraphBundle:
    """graph_bundle({("trt10", "int8"): path}, met=True) -> a bundle that holds those graphs and nothing else."""
    from edgetl.bundle import NewArtifact, create, locked

    def make(graphs: dict[tuple[str, str], Path], met: bool | None = True, name: str = "bundle") -> Path:
        facts = {"kind": "graph", "made_by": "export", "input": "float32", "met": met}
        new = [
            NewArtifact(
                path,
                f"graphs/{profile}/{precision}-{{sha12}}.onnx",
                {**facts, "profile": profile, "precision": precision},
            )
            for (profile, precision), path in graphs.items()
        ]
        preprocess = {"size": 32, "resize": 32, "fit": "crop", "mean": [0, 0, 0], "std": [1, 1, 1]}
        manifest: dict[str, Any] = {"task": "classification", "made_by": "adopt", "labels": list("abcde")}
        manifest |= {"preprocess": {**preprocess, "interpolation": "bilinear"}, "training": {}}
        manifest |= {"model": {}, "splits": {}, "tolerances": {}}
        with locked(tmp_path / name):
            create(tmp_path / name, manifest, new, {})
        return tmp_path / name

    return make
