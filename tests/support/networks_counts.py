"""Counting parameters and multiply-adds, on the meta device: no memory and no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Network = TypeVar("Network", bound=nn.Module)


def on_meta(build: Callable[..., Network], *args: Any, **kwargs: Any) -> Network:
    """The network without storage, for evaluation."""
    with torch.device("meta"):
        return build(*args, **kwargs).eval()


def image(height: int, width: int) -> Tensor:
    return torch.empty(1, 3, height, width, device="meta")


def params(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def macs(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Multiply-adds of convolutions and matrix products, half of what torch counts as FLOPs."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*args, **kwargs)
    return int(counter.get_total_flops()) // 2


def counts_per_exit(blocks: nn.ModuleList, classifiers: list[nn.Module], x: Tensor) -> Iterator[tuple[int, int]]:
    """Parameters and multiply-adds up to each classifier, those before it included."""
    total_params = total_macs = 0
    maps: Any = x
    for block, classifier in zip(blocks, classifiers, strict=True):
        total_params += params(block, classifier)
        total_macs += macs(block, maps)
        maps = block(maps)
        total_macs += macs(classifier, maps[0])
        yield total_params, total_macs
