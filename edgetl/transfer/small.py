"""Backbones of our own, for images of about 32 px: SmallNet, which ships with edgetl, and a plain CNN.

SmallNet (`--weights embedded`) is a residual network (He et al. 2016, post-activation basic blocks) of 0.9 M
parameters and 38 M multiply-accumulates at 32 px, so that the whole line runs in minutes on two CPU cores. Plain 3x3
convolutions, BatchNorm and ReLU throughout: what every INT8 engine fuses.
"""

from __future__ import annotations

import torch
from torch import nn

WIDTHS = (48, 96, 192)
DEPTHS = (1, 2, 1)
STEM = 32
GRID = 4


class BasicBlock(nn.Module):
    """float32 (B, C_in, H, W) -> (B, C_out, H/stride, W/stride): two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One residual step."""
        y: torch.Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return y


class SmallNet(nn.Module):
    """float32 (B, 3, S, S), normalised RGB, S >= 8 -> logits (B, num_classes)."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, STEM, 3, 1, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))
        inputs = STEM
        stages = []
        for width, depth in zip(WIDTHS, DEPTHS, strict=True):
            blocks = [BasicBlock(inputs if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
            stages.append(nn.Sequential(*blocks))
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class logits."""
        return self.fc(torch.flatten(self.avgpool(self.stages(self.stem(x))), 1))  # type: ignore[no-any-return]


class PlainCNN(nn.Module):
    """Two convolutions, two linear layers: the first network of every course, for small images and small devices.

    float32 (B, 3, S, S), S a multiple of 16 -> logits (B, num_classes). The mean over a 4 x 4 grid before the linear
    layers lets weights of one size serve another.
    """

    def __init__(self, num_classes: int = 1000, width: int = 32, hidden: int = 128) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(GRID)
        self.fc1 = nn.Linear(2 * width * GRID * GRID, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class logits."""
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        return self.fc(self.relu(self.fc1(x)))  # type: ignore[no-any-return]


def smallnet(num_classes: int = 1000) -> SmallNet:
    """SmallNet with random weights (Kaiming); the builder behind the row "smallnet"."""
    return SmallNet(num_classes)


def plaincnn(num_classes: int = 1000, width: int = 32, hidden: int = 128) -> PlainCNN:
    """PlainCNN with random weights (PyTorch's own); the builder behind the row "plaincnn"."""
    return PlainCNN(num_classes, width, hidden)
