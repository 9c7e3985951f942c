"""The runtimes of peers_latency, opened: each a call from a float32 array (B, 3, S, S) to float32 logits (B, C).

Each is set up as its own documentation says for the latency of one caller, with the job's threads.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from edgetl.bundle import Bundle
from edgetl.runtime.openvino import installed
from edgetl.runtime.ort import CPU, OPENVINO, OrtBackend, why_not
from edgetl.transfer.network import deployed

Batch = npt.NDArray[np.float32]
Call = Callable[[Batch], Batch]


class NotHere(Exception):
    """A runtime that this machine lacks; the text says why."""


@dataclass(frozen=True)
class Job:
    """`bundle` has fp32 and int8 graphs of profile `cpu`; `size` is its images' in pixels."""

    bundle: Bundle
    batch: int
    threads: int
    size: int

    def graph(self, precision: str) -> str:
        return str(self.bundle.file(self.bundle.artifact("graph", profile="cpu", precision=precision)))


@dataclass(frozen=True)
class Opened:
    """Ways of running one method, by what is said of them; the fastest counts. `versions` of what runs."""

    ways: dict[str, Call]
    versions: str


def eager(job: Job) -> Opened:
    """PyTorch as it is, in both memory formats."""
    torch.set_num_threads(job.threads)
    plain, last = deployed(job.bundle), deployed(job.bundle).to(memory_format=torch.channels_last)
    return Opened({"contiguous": partial(_torch, plain), "channels_last": partial(_torch, last)}, _torch_version())


def compiled(job: Job) -> Opened:
    """torch.compile with Inductor, for one shape, its parameters frozen; in both memory formats."""
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    if compiler is None:
        raise NotHere("Inductor needs a C++ compiler")
    torch.set_num_threads(job.threads)
    ways: dict[str, Call] = {}
    for said, form in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        network = deployed(job.bundle).to(memory_format=form)
        made = torch.compile(network, dynamic=False, options={"freezing": True})
        ways[said] = partial(_torch, made)
    return Opened(ways, _torch_version())


def ours(job: Job, precision: str, provider: str = CPU) -> Opened:
    """onnxruntime as `edgetl bench` runs it."""
    reason = why_not(provider)
    if reason is not None:
        raise NotHere(f"{reason.what}: {reason.value}")
    backend = OrtBackend(job.graph(precision), provider, job.threads)
    versions = f"onnxruntime {onnxruntime.__version__}"
    if provider == OPENVINO:
        versions += f", onnxruntime-ep-openvino {installed()}"
    return Opened({"": backend.run}, versions)


def openvino(job: Job, precision: str, hint: str | None = "f32") -> Opened:
    """OpenVINO's own API on the same graph, read for one shape, with its hint for latency.

    `hint` None: the precision that OpenVINO takes by itself, which is bfloat16 where the CPU has it.
    """
    module = _openvino()
    core = module.Core()
    model = core.read_model(job.graph(precision))
    model.reshape([job.batch, 3, job.size, job.size])
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
    if hint is not None:
        config["INFERENCE_PRECISION_HINT"] = hint
    made = core.compile_model(model, "CPU", config)
    request = made.create_infer_request()
    chosen = made.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    said = "" if hint is not None else f"computes in {chosen}"
    return Opened({said: partial(_openvino_run, request)}, f"openvino {module.__version__.split('-')[0]}")


METHODS: dict[str, Callable[[Job], Opened]] = {
    "torch": eager,
    "torch-compile": compiled,
    "ort-fp32": partial(ours, precision="fp32"),
    "ort-int8": partial(ours, precision="int8"),
    "ort-openvino-fp32": partial(ours, precision="fp32", provider=OPENVINO),
    "ort-openvino-int8": partial(ours, precision="int8", provider=OPENVINO),
    "openvino-fp32": partial(openvino, precision="fp32"),
    "openvino-default": partial(openvino, precision="fp32", hint=None),
    "openvino-int8": partial(openvino, precision="int8"),
}


def _torch(network: Callable[[torch.Tensor], torch.Tensor], batch: Batch) -> Batch:
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(batch)).numpy())


def _torch_version() -> str:
    return f"torch {torch.__version__}"


def _openvino_run(request: Any, batch: Batch) -> Batch:
    return np.asarray(request.infer([batch], share_inputs=True)[0])


def _openvino() -> ModuleType:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise NotHere("not installed (`make peers-setup`)") from error
