"""Toy networks for the tests of models, profiling and the runtime."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import eenet


class Slice(nn.Module):
    """Gives columns [start, start + width) of its input: a head whose logits the test chooses."""

    def __init__(self, start: int, width: int) -> None:
        super().__init__()
        self.start, self.width = start, width

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.start + self.width]


class Pass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0


class TableNet(nn.Module):
    """A network whose input (N, K * C) is the logits of its K exits, side by side."""

    def __init__(self, exits: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Pass() for _ in range(exits - 1)])
        self.last = Slice((exits - 1) * classes, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.last(x)
        return logits


@cache
def table_model(exits: int, classes: int) -> eenet.MultiExitModel:
    """A multi-exit model whose logits at every exit are its input."""
    return eenet.attach(
        TableNet(exits, classes),
        exits=[f"layers.{k}" for k in range(exits - 1)],
        num_classes=classes,
        example=torch.randn(2, exits * classes),
        heads=[Slice(k * classes, classes) for k in range(exits - 1)],
    )


class SmallConvNet(nn.Module):
    """Three groups of convolutions with batch norm and in-place ReLU."""

    def __init__(self, channels: int = 8, classes: int = 5) -> None:
        super().__init__()

        def group(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
            )

        self.first = group(3, channels, 1)
        self.second = group(channels, 2 * channels, 2)
        self.third = group(2 * channels, 2 * channels, 2)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@cache
def conv_model(seed: int) -> eenet.MultiExitModel:
    """A small convolutional network with random weights, large enough that its logits differ, and three exits."""
    torch.manual_seed(seed)
    net = SmallConvNet()
    model = eenet.attach(net, exits=["first", "second"], num_classes=5, example=torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        for head in (*model.heads, net):
            linear = head.fc if isinstance(head, eenet.models.GridHead) else net.head
            assert isinstance(linear, nn.Linear)
            linear.weight.mul_(20)
    return model.eval()
