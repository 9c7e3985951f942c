"""DeepStream: a configuration of Gst-nvinfer as a classifier, and its labels file.

nvinfer hands the network y = net-scale-factor * (x - offset) in planar RGB: with one scalar factor it cannot say a
standard deviation for each channel, so normalisation is inside our graphs and the factor is 1. It scales whole frames
with a filter of its own: a bundle's resize is expressible only where the frame is stretched to the square.
Keys as in NVIDIA's Gst-nvinfer plugin manual.
"""

from __future__ import annotations

from edgetl.deploy.emit.served import Served, require_probabilities
from edgetl.errors import InputError
from edgetl.spec import Fit, Precision, Profile

ENGINE = "model.plan"
LABELS = "labels.txt"
CONFIG = "config_infer.txt"
_MODES = {Precision.FP32: 0, Precision.INT8: 1, Precision.FP16: 2}  # nvinfer's network-mode
_BILINEAR = 1  # NvBufSurfTransform's bilinear filter: no anti-aliasing, unlike the bundle's own resize


def texts(model: Served) -> dict[str, str]:
    """The configuration and the labels file.

    Raises InputError where nvinfer cannot do what the bundle's Preprocess says, for a graph that ends in logits,
    and for a label with a semicolon, which separates labels there.
    """
    require_probabilities(model, "DeepStream")
    if model.preprocess.fit is not Fit.STRETCH:
        raise InputError(
            "DeepStream stretches a frame to the network's size, or pads it with black",
            f"this bundle was trained with --fit {model.preprocess.fit}",
            "fine-tune with --fit stretch for DeepStream",
        )
    if model.profile is Profile.CPU:
        raise InputError("nvinfer runs TensorRT's engines", "this graph is of profile cpu", "export --target jetpack6")
    if model.nhwc:
        raise InputError("nvinfer feeds float32 planes", "this graph takes uint8 NHWC", "export --input float32")
    separated = [label for label in model.labels if ";" in label]
    if separated:
        raise InputError("DeepStream separates labels by semicolons", repr(separated[0]), "rename the class")
    return {CONFIG: _config(model), LABELS: ";".join(model.labels) + "\n"}


def _config(model: Served) -> str:
    properties = {
        "gpu-id": 0,
        "gie-unique-id": 1,
        "process-mode": 1,
        "network-type": 1,
        # The engine alone, no onnx-file: nvinfer would build an engine of its own from that, which nothing has proved.
        "model-engine-file": ENGINE,
        "network-mode": _MODES[model.precision],
        "labelfile-path": LABELS,
        "batch-size": model.max_batch,
        "infer-dims": f"3;{model.size};{model.size}",
        "network-input-order": 0,
        "model-color-format": 0,
        "net-scale-factor": 1.0,
        "offsets": "0;0;0",
        "maintain-aspect-ratio": 0,
        "scaling-filter": _BILINEAR,
        "output-blob-names": model.output,
        "classifier-threshold": 0.0,
        "classifier-async-mode": 0,
    }
    head = (
        f"# {model.name}, {model.precision}: graph {model.sha256[:12]}, {len(model.labels)} classes.\n"
        f"# Put the engine that `edgetl deploy` or `edgetl build` made on this machine beside this file, as {ENGINE}.\n"
        "# DeepStream scales with its own filter, not with the bundle's.\n"
    ) + (f"# {model.remark}\n" if model.remark else "")
    return head + "[property]\n" + "".join(f"{key}={value}\n" for key, value in properties.items())
