"""The network of a bundle as one ONNX source graph: normalisation inside, float32 NCHW 0-255, dynamic batch.

One of torch's three doors. All graphs of all profiles are made from this one, so tensor names agree.
"""

from __future__ import annotations

import logging
import os
import string
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from edgetl.bundle import Bundle
from edgetl.errors import BackboneError, GraphError
from edgetl.graph import surgery
from edgetl.spec import Profile
from edgetl.transfer import backbones
from edgetl.transfer.network import deployed

_DYNAMO_OPSET = 18  # the dynamo exporter cannot emit less


def source_graph(bundle: Bundle, scratch: Path) -> onnx.ModelProto:
    """The source graph of a fine-tuned bundle; see source_of_network."""
    return source_of_network(deployed(bundle), _row(bundle), bundle.preprocess.size, scratch)


def source_of_network(
    network: torch.nn.Module, row: backbones.BackboneRow, size: int, scratch: Path
) -> onnx.ModelProto:
    """`network` (float32 (B, 3, size, size) -> logits, eval mode) as a tidied graph; `scratch` takes a file.

    TorchScript at the lowest opset that exports (byte-identical twice), or dynamo where the backbone's row
    says that only this one can. Raises GraphError with the exporter's words.
    """
    path = scratch / "exported.onnx"
    pixels = torch.zeros(2, 3, size, size)  # two, so that no axis of size one is taken for a constant
    try:
        with _silence(), torch.no_grad():
            if row.exporter_at(size) == "dynamo":
                _by_dynamo(network, pixels, path)
            else:
                _by_torchscript(network, pixels, path, max(13, row.min_opset))
    except Exception as error:  # the exporters raise anything, from KeyError to their own classes
        raise GraphError(
            f"PyTorch cannot export {row.name} at {size} px",
            f"{type(error).__name__}: {error}",
            "try another --image-size when fine-tuning",
        ) from error
    return surgery.io_named(surgery.tidied(_lower_case_einsum(surgery.load(path))))


def check_profile(bundle: Bundle, profile: Profile) -> None:
    """Raise BackboneError where the bundle's backbone has no graph of this profile at its size."""
    check_network(_row(bundle), bundle.preprocess.size, profile)


def check_network(row: backbones.BackboneRow, size: int, profile: Profile) -> None:
    """Raise BackboneError where a backbone has no graph of this profile at `size` px."""
    allowed = row.profiles_at(size)
    if profile not in allowed:
        raise BackboneError(
            f"{row.name} at {size} px has no graph of profile {profile}",
            "it has: " + ", ".join(sorted(str(p) for p in allowed)),
            "choose another --target, or fine-tune at another --image-size",
        )


def _row(bundle: Bundle) -> backbones.BackboneRow:
    return backbones.row(str(bundle.manifest["model"]["backbone"]))


def _by_torchscript(network: torch.nn.Module, pixels: torch.Tensor, path: Path, opset: int) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused attention kernel has no ONNX operator
    try:
        torch.onnx.export(
            network,
            (pixels,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[surgery.INPUT],
            output_names=[surgery.LOGITS],
            dynamic_axes={surgery.INPUT: {0: "batch"}, surgery.LOGITS: {0: "batch"}},
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _by_dynamo(network: torch.nn.Module, pixels: torch.Tensor, path: Path) -> None:
    torch.onnx.export(
        network,
        (pixels,),
        str(path),
        dynamo=True,
        opset_version=_DYNAMO_OPSET,
        input_names=[surgery.INPUT],
        output_names=[surgery.LOGITS],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
        external_data=False,
        verbose=False,
    )


def _lower_case_einsum(model: onnx.ModelProto) -> onnx.ModelProto:
    """TensorRT's parser refuses capital letters in an Einsum equation (MaxViT has some): rename the axes."""
    for node in model.graph.node:
        if node.op_type == "Einsum":
            equation = next(a for a in node.attribute if a.name == "equation")
            text = equation.s.decode()
            letters = dict.fromkeys(c for c in text if c.isalpha())
            names = dict(zip(letters, string.ascii_lowercase, strict=False))
            equation.s = "".join(names.get(c, c) for c in text).encode()
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what the exporters print (also from C++) off stdout and stderr's warnings off the user."""
    sys.stdout.flush()
    kept = os.dup(1)
    level = logging.getLogger("torch.onnx").level
    with Path(os.devnull).open("w", encoding="utf-8") as null, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
        os.dup2(null.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)
            os.close(kept)
            logging.getLogger("torch.onnx").setLevel(level)
