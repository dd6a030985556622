"""The densely connected networks of Huang et al. (CVPR 2017), with bottlenecks and compression (DenseNet-BC)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eenet.networks._weights import initialize


class DenseLayer(nn.Module):
    """Adds `growth` channels to what comes in: batch norm, ReLU and a convolution, 1x1 and then 3x3."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs + growth, H, W)."""
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(y)))
        return torch.cat([x, y], 1)


class Transition(nn.Module):
    """Halves height and width, and makes `outputs` channels of `inputs`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, H / 2, W / 2)."""
        smaller: Tensor = self.pool(self.conv(F.relu(self.bn(x))))
        return smaller


class DenseNet(nn.Module):
    """A DenseNet-BC for images (N, channels, H, W): dense blocks with a transition between each two.

    `blocks` are the layers of each dense block and `growth` the channels that a layer adds. The stem is a 3x3
    convolution or, for `large_images`, a 7x7 one of stride 2 and a pooling. Exits stand at "transitions.k".
    """

    def __init__(
        self,
        blocks: Sequence[int] = (6, 12, 24, 16),
        *,
        growth: int = 12,
        num_classes: int = 100,
        channels: int = 3,
        large_images: bool = False,
    ) -> None:
        super().__init__()
        width = 2 * growth
        self.stem: nn.Module = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        if large_images:
            self.stem = nn.Sequential(
                nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        self.num_classes = num_classes
        self.exit_widths: list[int] = []
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for index, count in enumerate(blocks):
            self.blocks.append(nn.Sequential(*(DenseLayer(width + k * growth, growth) for k in range(count))))
            width += count * growth
            if index < len(blocks) - 1:
                self.transitions.append(Transition(width, width // 2))
                width //= 2
                self.exit_widths.append(width)
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)
        initialize(self)

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The modules where early exits stand: the transitions."""
        return tuple([f"transitions.{index}" for index in range(len(self.transitions))])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=False):
            x = transition(block(x))
        x = F.relu(self.norm(self.blocks[-1](x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def densenet121(num_classes: int = 100) -> DenseNet:
    """DenseNet-121 for CIFAR: blocks of 6, 12, 24 and 16 layers, growth 12; exits after the three transitions.

    Parameters
    ----------
    num_classes : int
        C, the classes.

    Examples
    --------
    >>> import torch
    >>> from eenet.networks import densenet121
    >>> densenet121(10).eval()(torch.randn(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    return DenseNet((6, 12, 24, 16), growth=12, num_classes=num_classes)
