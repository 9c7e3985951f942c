"""OpenVINO's plug-in for onnxruntime: where its library lies, and what a session tells it.

The package `onnxruntime-ep-openvino` lies beside any onnxruntime from 1.23 on, onnxruntime-gpu too, and brings
OpenVINO with it. What loads it is runtime/ort. Python 3.8, standard library only.
"""

from __future__ import annotations

import importlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Dict, Optional

from edgetl.errors import BackendError

PROVIDER = "OpenVINOExecutionProvider"
PACKAGE = "onnxruntime-ep-openvino"
INSTALL = "pip install %s (edgetl's extra `openvino`), a faster CPU backend on a PC" % PACKAGE
NO_DEVICE = "the plug-in may take Intel's CPUs alone (releases up to 1.8 do): measure with CPUExecutionProvider"


def installed() -> Optional[str]:
    """The plug-in's version, "1.8.1"; None where it is not installed."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def offered() -> bool:
    """Whether there is a wheel for this machine: x86-64 only."""
    return platform.machine().lower() in ("x86_64", "amd64")


def library() -> str:
    """The path of the plug-in's library. Raises BackendError where it is not installed or not whole."""
    try:
        return str(importlib.import_module("onnxruntime_ep_openvino").get_library_path())
    except ImportError as error:
        raise BackendError("OpenVINO's plug-in for onnxruntime is not installed", str(error), INSTALL) from error
    except (OSError, AttributeError) as error:
        raise BackendError("OpenVINO's plug-in for onnxruntime is not whole", str(error), INSTALL) from error


def session_options(threads: int = 0) -> Dict[str, str]:
    """What a session on the CPU hands to the plug-in. `threads` 0: OpenVINO's own choice.

    float32 is said aloud: on a CPU with BF16 instructions OpenVINO otherwise computes an fp32 graph in bfloat16,
    twice as fast and with another precision than the row says. Q/DQ pairs are INT8 all the same. The hint for
    latency is one stream: a batch is not torn apart.
    """
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = str(threads)
    return {"load_config": json.dumps({"CPU": config})}
