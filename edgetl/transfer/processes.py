"""One run in several processes: which of them this is, and what they tell each other.

`torchrun --nproc-per-node 2 -m edgetl finetune ...` starts them; every process runs the same phases, the work on
images is split, and the first process alone decides, writes and speaks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Group:
    """A run's processes; this class is the run that has one only."""

    rank = 0
    size = 1

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process; the others do not call it and get the same."""
        return make()

    def gathered(self, own: T) -> list[T]:
        """Every process's `own`, in the order of their ranks."""
        return [own]

    def wait(self) -> None:
        """Return when all have come here."""

    def wrapped(self, module: nn.Module) -> nn.Module:
        """`module`, whose gradients after `backward` are the mean over the processes."""
        return module

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of `loss`, which a wrapped module had a part in."""
        loss.backward()  # type: ignore[no-untyped-call]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The same for parameters that are not of a wrapped module."""

    def whole_batch(self, rows: Sequence[int], total: int, real: Sequence[bool]) -> AbstractContextManager[Any]:
        """Inside, this process's rows of a batch pass through layers as if with all `total` (WholeBatch)."""
        return nullcontext()


ALONE = Group()
