"""Triton Inference Server: a model repository's config.pbtxt and labels; the plan goes into folder 1.

Fields as in Triton's model_config.proto (message ModelConfig).
"""

from __future__ import annotations

from edgetl.deploy.emit.served import Served
from edgetl.spec import Profile

LABELS = "labels.txt"


def texts(model: Served) -> dict[str, str]:
    """The repository below one folder: <name>/config.pbtxt, <name>/labels.txt, and where the model goes."""
    onnx = model.profile is Profile.CPU
    file = "model.onnx" if onnx else "model.plan"
    source = "the graph of the cpu profile" if onnx else "the engine built on the machine that serves it"
    return {
        f"{model.name}/config.pbtxt": _config(model, onnx),
        f"{model.name}/{LABELS}": "".join(label + "\n" for label in model.labels),
        f"{model.name}/1/README.txt": f"Put {source} here, as {file} (graph {model.sha256[:12]}).\n",
    }


def _config(model: Served, onnx: bool) -> str:
    kind = "KIND_CPU" if onnx else "KIND_GPU"
    dtype = "TYPE_UINT8" if model.nhwc else "TYPE_FP32"
    dims = ", ".join(str(side) for side in model.input.shape[1:])
    lines = [
        f'name: "{model.name}"',
        'platform: "%s"' % ("onnxruntime_onnx" if onnx else "tensorrt_plan"),
        f"max_batch_size: {model.max_batch}",
        f'input [ {{ name: "{model.input.name}" data_type: {dtype} dims: [ {dims} ] }} ]',
        f'output [ {{ name: "{model.output}" data_type: TYPE_FP32 dims: [ {len(model.labels)} ]'
        f' label_filename: "{LABELS}" }} ]',
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
        # Waiting half a millisecond fills a batch where requests come fast and costs a lone one no more than that.
        "dynamic_batching { max_queue_delay_microseconds: 500 }",
    ]
    return "\n".join(lines) + "\n"
