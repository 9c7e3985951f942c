"""What a backbone costs: parameters, multiply-accumulates, bytes, and its latency on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from edgetl.errors import BackendError
from edgetl.measure.latency import Effort, Timed, measure
from edgetl.stats import percentiles
from edgetl.transfer import backbones
from edgetl.transfer.pretrained import Pretrained

EFFORT = Effort(seconds=0.2, runs=20, warmup_seconds=0.2)
_BYTES_FP32 = 4
_FACTORIES = (torch.empty, torch.zeros, torch.ones)


@dataclass(frozen=True)
class Size:
    """Of a network with its head: parameters, MACs of one image, and bytes as FP32 and (estimated) as INT8."""

    params: int
    macs: int
    fp32_bytes: int
    int8_bytes: int


class _Weightless(TorchFunctionMode):
    """Tensors that modules make for their weights take no memory; small sums (RegNet's widths) stay numbers."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _FACTORIES:
            given["device"] = "meta"
        return func(*args, **given)


def blank(name: str, classes: int, size: int, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The network without any numbers in it: shapes alone, on torch's meta device. Raises BackboneError."""
    with _Weightless():
        model = backbones.build(name, classes, size, dict(arguments or {}), init=False)
    return model.to("meta").eval()


def size_of(model: nn.Module, size: int) -> Size:
    """The size of a `blank` network for one image of `size` px; FLOPs by torch's own counter, two to a MAC."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    params = sum(p.numel() for p in model.parameters())
    return Size(params, counter.get_total_flops() // 2, params * _BYTES_FP32, _int8_bytes(model))


def _int8_bytes(model: nn.Module) -> int:
    """A byte for each weight of a product, four for its output's scale and bias; BatchNorm is folded away."""
    total = 0
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.ndim >= 2:
                total += parameter.numel() + 2 * _BYTES_FP32 * parameter.shape[0]
            elif not isinstance(module, nn.Conv2d | nn.Linear):  # their biases are counted with the weights
                total += parameter.numel() * _BYTES_FP32
    return total


def latencies_ms(networks: Mapping[str, Pretrained], effort: Effort = EFFORT) -> dict[str, float]:
    """Median milliseconds of one image through each network, in turns; PyTorch, fp32, on the network's device.

    On a CPU with one thread: several that wait for each other say more of what else the machine does than of the
    network. Raises BackendError where a network cannot run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timings = measure({name: Timed(_call(network)) for name, network in networks.items()}, effort)
    finally:
        torch.set_num_threads(threads)
    for name, timing in timings.items():
        if timing.error is not None:
            do = "leave it out of --weights, or try --device cpu"
            raise BackendError("the network could not be timed", f"{name} ({timing.error})", do) from timing.error
    return {name: float(percentiles(timing.wall_ms)["p50"] or 0.0) for name, timing in timings.items()}


def _call(network: Pretrained) -> Callable[[], None]:
    size, device = network.preprocess.size, network.device
    image = torch.zeros(1, 3, size, size, device=device).to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            network.network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
