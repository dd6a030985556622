"""Compaction: select the survivors of a batch from live tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def compact(live: tuple[Tensor, ...], index: Tensor, batch_dims: Sequence[int | None]) -> tuple[Tensor, ...]:
    """The samples `index` of live tensors, each along its batch dimension; those without one (None) as they are."""
    return tuple(
        [tensor if dim is None else _select(tensor, dim, index) for tensor, dim in zip(live, batch_dims, strict=True)]
    )


def _select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    # index_select always gives a contiguous tensor; convolutions after it would lose their channels_last layout.
    if tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        order = tensor.permute(0, 2, 3, 1)
        return order.index_select((0, 3, 1, 2)[dim], index).permute(0, 3, 1, 2)
    return tensor.index_select(dim, index)
