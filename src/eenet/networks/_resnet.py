"""The residual networks for small images of He et al. (CVPR 2016, section 4.2), in the two variants in use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from eenet.networks._weights import load_weights


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters: strided and padded with zero channels (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(N, outputs, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, to 4 * width channels; where sizes change, the shortcut is a 1x1 one."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4 * width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """A residual network for small images (N, channels, H, W); `blocks` are the blocks of each group.

    Groups of basic blocks, of depth 2 * sum(blocks) + 2, or with `bottleneck` of bottlenecks whose outputs are four
    times as wide as `widths`. Group k is the submodule "layers.k"; exits stand after all groups but the last.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        channels: int = 3,
        bottleneck: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        groups = []
        self.exit_widths: list[int] = []
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            group: list[nn.Module] = []
            for block in range(count):
                stride = 2 if index and block == 0 else 1
                group.append(Bottleneck(inputs, width, stride) if bottleneck else BasicBlock(inputs, width, stride))
                inputs = width * Bottleneck.expansion if bottleneck else width
            groups.append(nn.Sequential(*group))
            self.exit_widths.append(inputs)
        self.exit_widths.pop()
        self.bottleneck = bottleneck
        self.layers = nn.ModuleList(groups)
        self.linear = nn.Linear(inputs, num_classes)

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The modules where early exits stand: all groups but the last."""
        return tuple([f"layers.{index}" for index in range(len(self.exit_widths))])

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def resnet56(
    num_classes: int = 10,
    *,
    bottleneck: bool = False,
    weights: str | Path | None = None,
) -> CifarResNet:
    """ResNet-56 for CIFAR: 9 + 9 + 9 blocks; its exits stand after blocks 9 and 18, "layers.0" and "layers.1".

    Basic blocks with option-A shortcuts: 0.85 million parameters and 125.5 million multiply-adds (He et al.). With
    `bottleneck`, the 9 + 9 + 9 bottlenecks that the code of the EENet paper calls ResNet-56: 0.87 million parameters,
    0.94 million with the heads of `StackedConvHead`. `weights` is a file for `load_published` (basic blocks only).

    Parameters
    ----------
    num_classes : int
        C, the classes.
    bottleneck : bool
        Whether blocks have three convolutions in place of two.
    weights : path, optional
        Published weights to load.

    Examples
    --------
    >>> import torch
    >>> from eenet.networks import resnet56
    >>> resnet56(10).eval()(torch.randn(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    model = CifarResNet((9, 9, 9), num_classes=num_classes, bottleneck=bottleneck)
    return model if weights is None else load_published(model, weights)


def resnet20(num_classes: int = 10, *, weights: str | Path | None = None) -> CifarResNet:
    """ResNet-20 for CIFAR: 3 + 3 + 3 basic blocks; its exits stand after blocks 3 and 6, "layers.0" and "layers.1".

    0.27 million parameters and 40.6 million multiply-adds (He et al.). `weights` is a file for `load_published`.

    Parameters
    ----------
    num_classes : int
        C, the classes.
    weights : path, optional
        Published weights to load.

    Examples
    --------
    >>> import torch
    >>> from eenet.networks import resnet20
    >>> resnet20(10).eval()(torch.randn(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    model = CifarResNet((3, 3, 3), num_classes=num_classes)
    return model if weights is None else load_published(model, weights)


def load_published(model: CifarResNet, path: str | Path) -> CifarResNet:
    """Load the weights of a published CIFAR ResNet with option-A shortcuts into `model`, in place, and return it.

    The names are those of akamaster/pytorch_resnet_cifar10 ("layer1.0.conv1.weight"), in safetensors. Those networks
    expect RGB in [0, 1] less (0.485, 0.456, 0.406), over (0.229, 0.224, 0.225). Raises `FileFormatError` for weights of
    another architecture, with the first names that differ.

    Parameters
    ----------
    model : CifarResNet
        What `resnet20` or `resnet56` gave; it is changed in place.
    path : path
        The published weights.

    Examples
    --------
    >>> from eenet.errors import FileFormatError, InvalidInputError
    >>> from eenet.networks import load_published, resnet20
    >>> try:
    ...     load_published(resnet20(10), "no-such-file.safetensors")
    ... except (OSError, FileFormatError, InvalidInputError) as error:
    ...     print("refused")
    refused
    """
    load_weights(model, path, rename=lambda name: re.sub(r"^layer(\d+)\.", _group_name, name))
    return model


def _group_name(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) - 1}."
