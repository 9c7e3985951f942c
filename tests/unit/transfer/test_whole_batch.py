"""Two threads stand for two processes: each passes its rows, and sums meet at a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from edgetl.transfer.whole_batch import WholeBatch

MEMBERS = 2


class Meeting:
    """A sum over threads with a gradient: what the processes' all-reduce is."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(MEMBERS, timeout=300)
        self._parts: list[torch.Tensor | None] = [None] * MEMBERS

    def _sum(self, member: int, own: torch.Tensor) -> torch.Tensor:
        self._parts[member] = own.detach().clone()
        self._barrier.wait()
        total = sum(part for part in self._parts if part is not None)
        self._barrier.wait()
        assert isinstance(total, torch.Tensor)
        return total

    def summed(self, member: int) -> Callable[[torch.Tensor], torch.Tensor]:
        meeting = self

        class Summed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
                return meeting._sum(member, own)

            @staticmethod
            def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
                return meeting._sum(member, gradients[0])

        return Summed.apply


def _network() -> nn.Sequential:
    torch.manual_seed(4)
    layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4, momentum=None))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6, affine=False)).double().train()


def _parted(
    network_of: Callable[[], nn.Module], images: torch.Tensor, cut: int
) -> list[tuple[nn.Module, torch.Tensor]]:
    """Each member's network and its part of the sum of squares of the output, after the backward pass."""
    meeting = Meeting()
    networks = [network_of() for _ in range(MEMBERS)]
    parts = [range(cut), range(cut, len(images))]

    def member(number: int) -> tuple[nn.Module, torch.Tensor]:
        rows, real = list(parts[number]), len(parts[number]) > 0
        mine = images[rows] if real else images[:1]
        with WholeBatch(rows or [0], len(images), [real] * len(mine), meeting.summed(number)):
            out = networks[number](mine)
        loss = (out.square() * torch.arange(1, out.shape[1] + 1))[: len(rows)].sum()
        loss.backward()
        return networks[number], out.detach()[: len(rows)]

    with ThreadPoolExecutor(MEMBERS) as pool:
        return list(pool.map(member, range(MEMBERS)))


@pytest.mark.parametrize("cut", [3, 1, 0])
def test_batch_norm_over_parts_is_that_of_the_whole(cut: int) -> None:
    """Outputs, gradients and running statistics; also where one has no image left."""
    images = torch.rand(7, 3, 6, 6, dtype=torch.float64) * 200
    whole = _network()
    out = whole(images)
    (out.square() * torch.arange(1, 7)).sum().backward()
    found = _parted(_network, images, cut)
    assert torch.allclose(torch.cat([rows for _, rows in found]), out.detach(), rtol=0, atol=1e-10)
    for name, parameter in whole.named_parameters():
        gradient = sum(network.get_parameter(name).grad for network, _ in found)  # type: ignore[misc]
        assert torch.allclose(gradient, parameter.grad, rtol=1e-9, atol=1e-10), name
    for name, value in whole.named_buffers():
        for network, _ in found:
            assert torch.allclose(network.get_buffer(name).double(), value.double(), rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.Dropout(0.4, inplace=True), StochasticDepth(0.4, "row")])
@pytest.mark.parametrize("shape", [(7, 50), (7, 4, 5, 5)])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_masks_are_rows_of_the_whole_batchs(
    layer: nn.Module, shape: tuple[int, ...], form: torch.memory_format
) -> None:
    images = torch.rand(shape)
    if len(shape) == 4:
        images = images.to(memory_format=form)
    torch.manual_seed(8)
    expected = layer.train()(images.clone())
    parts = []
    for rows in (range(3), range(3, 7)):
        torch.manual_seed(8)  # one after the other: threads share the generator, processes do not
        mine = images[list(rows)].to(memory_format=form) if len(shape) == 4 else images[list(rows)]
        with WholeBatch(list(rows), 7, [True] * len(rows), lambda x: x):
            parts.append(layer(mine.clone()))
    assert torch.allclose(torch.cat(parts), expected, rtol=1e-6, atol=0)
    assert not torch.equal(expected, images)


def test_layers_in_eval_mode_and_tensors_of_other_rows_are_left_alone() -> None:
    network, images = _network().eval(), torch.rand(4, 3, 6, 6, dtype=torch.float64)
    expected = network(images)

    def never(own: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing is summed")

    with WholeBatch([0, 1, 2, 3], 9, [True] * 4, never):
        assert torch.equal(network(images), expected)
        assert torch.equal(network.train()(images[:3]), _network()(images[:3]))
