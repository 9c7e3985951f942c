"""A part of a batch that behaves as if the whole batch were here: BatchNorm's statistics, dropout's masks.

Where several processes share a batch, two kinds of layers would make the result depend on their number. BatchNorm in
training takes mean and variance over the part it sees (torch's SyncBatchNorm takes them over all, on GPUs only), and
dropout and stochastic depth draw masks for it. Here the statistics are summed over the processes, and masks are drawn
for the whole batch, of which each process uses its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Summed = Callable[[torch.Tensor], torch.Tensor]  # over the processes, with a gradient


class WholeBatch(TorchFunctionMode):
    """While it is active, layers treat tensors of len(rows) rows as the rows `rows` of a batch of `total`.

    `real`: how many of them count in statistics; fewer than all where a process had nothing left to do and passes an
    image for form's sake. All processes must run the same layers in the same order.
    """

    def __init__(self, rows: Sequence[int], total: int, real: Sequence[bool], summed: Summed) -> None:
        super().__init__()
        self._rows = torch.tensor(rows)
        self._total = total
        self._real = torch.tensor(real)
        self._summed = summed

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Our own arithmetic for the three functions that look across rows or draw at random."""
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim and len(args[0]) == len(self._rows):
            if func is functional.batch_norm:
                return self._batch_norm(*args, **kwargs)
            if func is functional.dropout:
                return self._dropout(*args, **kwargs)
            if func is torch.Tensor.bernoulli_:  # torchvision's stochastic depth
                return args[0].copy_(self._drawn(args[0], *args[1:], **kwargs))
        return func(*args, **kwargs)

    def _drawn(self, like: torch.Tensor, p: float) -> torch.Tensor:
        """This process's rows of a mask (true with probability `p`) that is drawn for the whole batch."""
        form = torch.contiguous_format
        if like.ndim == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
            form = torch.channels_last  # a mask is drawn in the order of memory
        whole = torch.empty(
            (self._total, *like.shape[1:]), dtype=torch.bool, device=like.device, memory_format=form
        ).bernoulli_(p)
        return whole[self._rows.to(like.device)]

    def _dropout(
        self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if not training or p == 0:
            return input
        kept = input * self._drawn(input, 1 - p) * (1 / (1 - p) if p < 1 else 0.0)
        return input.copy_(kept) if inplace else kept

    def _batch_norm(
        self,
        input: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        """Batch normalisation (Ioffe & Szegedy 2015, algorithm 1) with statistics over the whole batch."""
        if not training:
            return functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        axes = [axis for axis in range(x.ndim) if axis != 1]
        counted = x[self._real.to(x.device)]
        size = self._summed(torch.tensor(counted.numel() / x.shape[1], dtype=x.dtype, device=x.device))
        mean = self._summed(counted.sum(axes)) / size
        shape = [1, -1, *[1] * (x.ndim - 2)]
        variance = self._summed((counted - mean.view(shape)).square().sum(axes)) / size
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean, momentum)
                running_var.lerp_(variance * size / (size - 1).clamp_min(1), momentum)
        out = (x - mean.view(shape)) * (variance.view(shape) + eps).rsqrt()
        if weight is not None and bias is not None:
            out = out * weight.view(shape) + bias.view(shape)
        return out.to(input.dtype)
