"""The mode of every part of a module, put back after a while in another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """After the block every submodule is in training or evaluation mode as it was before, whatever was called.

    Not through `train()`, which a module may override to do more than set its mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def set_evaluation(module: nn.Module) -> None:
    """Set evaluation mode in every part, not through `eval()`, which a module may override."""
    for part in module.modules():
        part.training = False
