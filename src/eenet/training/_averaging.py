"""The exponential moving average of the weights (`ema_decay`): what is evaluated and saved in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Average:
    """The moving average of what changes in a model: the parameters that learn, and the batch norms' statistics.

    Whole numbers are left out, since a mean of position ids is none, and so are buffers with infinities, such as masks.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        seen: set[int] = set()
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            changes = tensor.requires_grad or not isinstance(tensor, nn.Parameter)
            if changes and tensor.is_floating_point() and id(tensor) not in seen and bool(tensor.isfinite().all()):
                seen.add(id(tensor))
                self._tensors[name] = tensor
        self._model = _Holder(self._tensors)

        make: Any = get_ema_multi_avg_fn  # it has no types

        def update(averaged: Any, current: Any, done: Tensor | int) -> None:
            # The first steps are of weights that are soon forgotten: in a short run they would never be.
            steps = int(done)
            make(min(decay, (1 + steps) / (10 + steps)))(averaged, current, done)

        self._average = AveragedModel(self._model, multi_avg_fn=update, use_buffers=True)

    def update(self) -> None:
        """Take in the weights after one optimizer step."""
        self._average.update_parameters(self._model)

    @contextmanager
    def used(self) -> Iterator[dict[str, Tensor]]:
        """The averaged weights are those of the model within the block; gives the weights as they were trained."""
        trained = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}
        self._put(dict(zip(self._tensors, self._average.module.buffers(), strict=True)))
        try:
            yield trained
        finally:
            self._put(trained)

    def restore(self, trained: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a model that holds the average after some steps: it gets the trained weights."""
        for averaged, tensor in zip(self._average.module.buffers(), self._tensors.values(), strict=True):
            averaged.copy_(tensor.detach())
        self._average.n_averaged.fill_(steps)
        self._put(trained)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._tensors.items():
                tensor.copy_(values[name])


class _Holder(nn.Module):
    """The tensors of a model as buffers, sharing their memory; a copy of it is a copy of them alone."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for number, tensor in enumerate(tensors.values()):
            self.register_buffer(str(number), tensor.detach())
