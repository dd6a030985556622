"""Running a module for inference and leaving every part of it in the mode it was in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from eenet.stages import modes_kept


@contextmanager
def inferring(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients within the block; the modes of all submodules are restored after it."""
    with modes_kept(model):
        model.eval()
        with torch.inference_mode():
            yield
