"""Small networks for the tests of the stages, each with one property that cutting has to get right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block that works in place wherever it can."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Any:
        out = self.bn(self.conv(x))
        out += x
        return self.relu(out)


class SmallResNet(nn.Module):
    """A convolutional network with in-place ReLUs, batch norm, dropout and a tensor made from the batch size."""

    def __init__(self, width: int = 4, classes: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer1 = Block(width)
        self.layer2 = nn.Sequential(Block(width), Block(width))
        self.layer3 = Block(width)
        self.unused = nn.Linear(2, 2)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Any:
        batch = x.shape[0]
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        x = x.view(batch, x.shape[1], -1).mean(-1)
        return self.head(self.drop(x)) + torch.zeros(batch, 1, device=x.device)


class Chain(nn.Module):
    """Modules one after another, for a forward pass given as a function of the network and its input."""

    def __init__(self, forward: Any, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._run = forward

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self, *args, **kwargs)


def warm(model: nn.Module) -> nn.Module:
    """Give batch norms running statistics and affine weights that matter."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model
