"""A small graph whose every layer's precision is known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


class LayerGraph:
    """Writes a small classifier as ONNX: two convolutions that may be quantised, a plain one, a Gemm.

    Input "image" float32 (B, 3, 32, 32), output "logits" float32 (B, 5). `precision` int8 puts Q/DQ
    around the first two convolutions; `rest` is the type of everything else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(
        self, precision: str = "fp32", rest: str = "fp32", seed: int = 0, per_channel_input: bool = False
    ) -> Path:
        from onnx import TensorProto, checker, helper, numpy_helper, save

        rng = np.random.default_rng(seed)
        dtype = np.float16 if rest == "fp16" else np.float32
        weights: list[Any] = []
        nodes: list[Any] = []

        def const(name: str, value: Any) -> str:
            weights.append(numpy_helper.from_array(np.asarray(value), name))
            return name

        def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op, inputs, [name + "_out"], name=name, **attributes))
            return name + "_out"

        def conv(x: str, index: int, channels: int, quantised: bool) -> str:
            kernel = rng.normal(0, 0.2, (8, channels, 3, 3)).astype(dtype)
            name, axis = f"/conv{index}", 0
            if quantised:
                many = (channels,) if per_channel_input else ()
                scale = const(f"s{index}", np.full(many, 0.05, dtype))
                zero = const(f"z{index}", np.zeros(many, np.int8))
                x = add("QuantizeLinear", [x, scale, zero], name + "/Q", axis=1)
                x = add("DequantizeLinear", [x, scale, zero], name + "/DQ", axis=1)
                steps = const(f"ws{index}", np.full(8, 0.005, dtype))
                codes = const(f"wq{index}", np.clip(np.round(kernel / 0.005), -127, 127).astype(np.int8))
                zeros = const(f"wz{index}", np.zeros(8, np.int8))
                weight = add("DequantizeLinear", [codes, steps, zeros], name + "/W", axis=axis)
            else:
                weight = const(f"w{index}", kernel)
            bias = const(f"b{index}", rng.normal(0, 0.1, 8).astype(dtype))
            return add("Relu", [add("Conv", [x, weight, bias], name + "/Conv", pads=[1] * 4)], name + "/Relu")

        x = add("Mul", ["image", const("scale", np.float32(1 / 255))], "/scale")
        x = add("Cast", [x], "/to_rest", to=TensorProto.FLOAT16) if rest == "fp16" else x
        for index, channels in enumerate((3, 8, 8)):
            x = conv(x, index, channels, precision == "int8" and index < 2)
        x = add("Flatten", [add("GlobalAveragePool", [x], "/pool")], "/flat")
        x = add("Gemm", [x, const("head", rng.normal(0, 1, (8, 5)).astype(dtype))], "/head/Gemm")
        nodes.append(helper.make_node("Cast", [x], ["logits"], name="/logits", to=TensorProto.FLOAT))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])
        graph = helper.make_graph(nodes, "layers", [image], [logits], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        checker.check_model(model)
        path = self._folder / f"layers-{precision}-{rest}-{seed}{'-pc' * per_channel_input}.onnx"
        save(model, str(path))
        return path


@pytest.fixture
def layer_graph(tmp_path: Path) -> LayerGraph:
    """layer_graph("int8", rest="fp16") -> path of a small ONNX classifier."""
    return LayerGraph(tmp_path)
