"""A small task that a small network learns in a second: which corner of the image is bright."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import eenet

CLASSES = 4


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 8, 8) of noise with one bright corner, and which corner, (count,)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    for sample, corner in enumerate(y.tolist()):
        rows, columns = 5 * (corner // 2), 5 * (corner % 2)
        x[sample, :, rows : rows + 3, columns : columns + 3] += 2.0
    return x, y


class CornerNet(nn.Module):
    """Three small groups of convolutions, with batch norm and dropout."""

    def __init__(self, classes: int = CLASSES, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.third = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, width, 3, 1, 1), nn.ReLU())
        self.linear = nn.Linear(16 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.third(self.second(self.first(x)))
        logits: Tensor = self.linear(x.flatten(1))
        return logits


@cache
def _traced(seed: int, width: int) -> eenet.MultiExitModel:
    torch.manual_seed(seed)
    net = CornerNet(width=width)
    model = eenet.attach(net, exits=["first", "second"], num_classes=CLASSES, example=torch.randn(2, 3, 8, 8))
    _ = model.train().staged.stages  # the trace for training, which copies then have too
    return model


def corner_model(seed: int = 0, width: int = 6) -> eenet.MultiExitModel:
    """The network with three exits in training mode, its weights those of a seed; a copy, so that it is made fast."""
    return copy.deepcopy(_traced(seed, width))


class Augmented(Dataset[tuple[Tensor, int]]):
    """Images that every reading changes, with the random numbers of torch, numpy and Python."""

    def __init__(self, count: int, seed: int) -> None:
        self.x, self.y = images(count, seed)
        self.read = 0

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read += 1
        noise = 0.1 * torch.randn(3, 8, 8) + 0.1 * random.random() + 0.1 * np.random.rand()  # noqa: NPY002
        return self.x[index] + noise, int(self.y[index])


def loaders(count: int = 128, **options: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """A loader of training images in a random order, and one of validation images."""
    options = {"batch_size": 32, "shuffle": True, **options}
    return DataLoader(TensorDataset(*images(count, 0)), **options), DataLoader(TensorDataset(*images(96, 1)), 32)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal to the last bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor), name
