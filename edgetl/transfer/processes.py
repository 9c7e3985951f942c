"""One run in several processes: which of them this is, and what they tell each other.

`torchrun --nproc-per-node 2 -m edgetl finetune ...` starts them; every process runs the same phases, the work on
images is split, and the first process alone decides, writes and speaks.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from edgetl.errors import EdgetlError, StageError
from edgetl.transfer.whole_batch import WholeBatch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
# The first process may fit a probe for long while the others wait. A process that dies closes its connections, and
# torchrun ends the rest, so nobody waits for this long in vain.
PATIENCE = timedelta(hours=24)
ANSWERS_WITHIN = timedelta(seconds=10)


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

    def each(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives in every process, in the order of their ranks. An error in one is raised in all."""
        return [make()]

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

    def whole(self, rows: torch.Tensor, start: int, total: int) -> torch.Tensor:
        """The `total` rows of a batch of which this process has `rows`, those from `start` on; the same for all.

        For a loss that is no mean over rows: every process computes it of all of them, and the mean of the
        processes' gradients is that of the one loss.
        """
        return rows


ALONE = Group()


class Launched(Group):
    """The processes that torchrun started, connected by Lightning Fabric: gloo between CPUs, NCCL between GPUs."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.rank, self.size = fabric.global_rank, fabric.world_size
        # What is not a gradient is small and on the CPU; NCCL carries tensors on GPUs only.
        self._talk: Any = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def first(self, make: Callable[[], T]) -> T:
        """Broadcast by pickling."""
        box = [make() if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(box, src=0, group=self._talk)
        return box[0]  # type: ignore[return-value]

    def gathered(self, own: T) -> list[T]:
        """Gathered by pickling."""
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, own, group=self._talk)
        return found

    def each(self, make: Callable[[], T]) -> list[T]:
        """Of several errors that of the lowest rank."""
        own: T | None = None
        wrong = None
        try:
            own = make()
        except EdgetlError as error:
            wrong = error
        every = self.gathered((own, wrong))
        for _, found in every:
            if found is not None:
                raise found
        return [made for made, _ in every]  # type: ignore[misc]  # none raised

    def wait(self) -> None:
        """A barrier."""
        torch.distributed.barrier(group=self._talk)

    def wrapped(self, module: nn.Module) -> nn.Module:
        """In DistributedDataParallel; the first process's parameters become everyone's. Nothing to train: as it is."""
        if not any(p.requires_grad for p in module.parameters()):
            return module
        wrapped: nn.Module = self._fabric.setup_module(module, move_to_device=False)
        return wrapped

    def backward(self, loss: torch.Tensor) -> None:
        """Through Fabric."""
        self._fabric.backward(loss)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of every parameter that trains, in their order; one without a gradient here counts as zero."""
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def close(self) -> None:
        """Let go of the connections, so that their threads end here and not in the interpreter's shutdown."""
        del self._talk, self._fabric  # nothing is asked of it any more
        torch.distributed.destroy_process_group()
        gc.collect()  # what a cycle still holds of them

    def whole_batch(self, rows: Sequence[int], total: int, real: Sequence[bool]) -> AbstractContextManager[Any]:
        """Statistics over all processes, masks of the whole batch."""
        return WholeBatch(rows, total, real, _Summed.apply)

    def whole(self, rows: torch.Tensor, start: int, total: int) -> torch.Tensor:
        """Summed over the processes, each of which has zeros where it has no row."""
        return _Whole.apply(rows, start, total, self.size)  # type: ignore[no-any-return]  # as autograd functions are


class _Summed(torch.autograd.Function):
    """The sum over all processes; so is the gradient: each process's loss depends on every process's input."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        total = own.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        torch.distributed.all_reduce(total)
        return total


class _Whole(torch.autograd.Function):
    """The whole batch's rows. Each process's loss is the same, so its rows' gradients are known without asking."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, start: int, total: int, processes: int) -> torch.Tensor:
        ctx.rows, ctx.processes = slice(start, start + len(own)), processes
        whole = own.new_zeros((total, *own.shape[1:]))
        whole[ctx.rows] = own
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return gradients[0][ctx.rows] * ctx.processes, None, None, None  # times: they are averaged later on


def fails_first() -> bool | None:
    """Whether no other process of this run has failed before; None where torchrun's store is out of reach."""
    key = "edgetl/failed/" + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        # torch exports it without a word to type checkers.
        store = torch.distributed.TCPStore(*address, is_master=False, timeout=ANSWERS_WITHIN)  # type: ignore[attr-defined]
        return bool(store.add(key, 1) == 1)
    except RuntimeError:  # DistError is one
        return None


@contextmanager
def _said_plainly() -> Iterator[None]:
    """A connection that broke says that another process is gone: StageError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        do = "what it said is above, if it could; the same command with --resume continues"
        raise StageError(
            "another process of this run has ended", f"noticed by process {os.environ['RANK']}", do
        ) from error


@contextmanager
def joined(device: str = "auto") -> Iterator[Group]:
    """The group of this process: of all that torchrun started (on `device`: auto, cpu or cuda), or of itself alone.

    The connections are closed at the end; after an error that is done by the end of the process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ALONE
        return
    from lightning_fabric import Fabric  # here: it takes two seconds, and most runs have one process
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # importing it set it to INFO
    strategy = DDPStrategy(timeout=PATIENCE)
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator="cuda" if device != "cpu" and torch.cuda.is_available() else "cpu",
        strategy=strategy,
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
    )
    fabric.launch()
    group = Launched(fabric)
    with _said_plainly():
        yield group
    # Only where all went well: after an error the others may be in the middle of something, and torchrun ends them.
    group.wait()
    group.close()
