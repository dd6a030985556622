"""Variant: one way to run the stages and heads of a model, on tensors of any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eenet.models import MultiExitModel
from eenet.stages import Stage, Step

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to run a model: its stages, what its heads are called with, and whether images come channels last.

    `final` gives the logits in the tensors of the last stage. `buckets` are the numbers of samples its stages run on
    where not every number will do; `lock` is held while a batch runs, where only one can run at a time.
    """

    name: str
    stages: tuple[Stage, ...]
    heads: tuple[Callable[[Tensor], Tensor], ...]
    final: Callable[[Tensors], Tensor]
    channels_last: bool = False
    buckets: tuple[int, ...] | None = None
    lock: AbstractContextManager[Any] = field(default_factory=nullcontext)

    @property
    def num_exits(self) -> int:
        """K, the last exit included; also the number of stages."""
        return len(self.stages)

    def entered(self, live: Tensors) -> Tensors:
        """The live tensors before stage 0 in this variant's layout."""
        if not self.channels_last:
            return live
        return tuple(
            [
                t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 and t.is_floating_point() else t
                for t in live
            ]
        )

    def run(self, k: int, live: Tensors, *, observe: bool) -> tuple[Tensors, Tensor | None]:
        """Run stage k: the live tensors before stage k + 1, and the logits of exit k if asked for, or of the last."""
        stage = self.stages[k]
        step = Step(stage, stage(*live))
        if k == len(self.stages) - 1:
            return (), self.final(step.outputs)
        return step.live, self.heads[k](step.feature) if observe else None

    def all_logits(self, live: Tensors) -> list[Tensor]:
        """The logits of every exit, from the live tensors before stage 0."""
        live, logits_of = self.entered(live), []
        for k in range(self.num_exits):
            live, logits = self.run(k, live, observe=True)
            assert logits is not None
            logits_of.append(logits)
        return logits_of

    def size(self, k: int, live: Tensors) -> int:
        """The number of samples in the live tensors before stage k."""
        return next(t.shape[dim] for t, dim in zip(live, self.stages[k].batch_dims, strict=True) if dim is not None)

    def take(self, k: int, live: Tensors, rows: NDArray[np.intp]) -> Tensors:
        """The samples `rows` of the live tensors before stage k."""
        index = torch.from_numpy(rows).to(live[0].device, non_blocking=True)
        return self.stages[k].compact(live, index)

    def join(self, k: int, parts: Sequence[Tensors]) -> Tensors:
        """The live tensors before stage k of several batches as those of one, in order."""
        return tuple(
            tensors[0] if dim is None else torch.cat(tensors, dim)
            for tensors, dim in zip(zip(*parts, strict=True), self.stages[k].batch_dims, strict=True)
        )

    def no_logits(self, device: torch.device) -> Tensor:
        """The logits of no samples. Nothing is run, since not every network can run on an empty batch."""
        return self.final(_no_outputs(self.stages[-1], device))

    def replaced(self, name: str, **changes: Any) -> Variant:
        """The same variant with another name and other parts."""
        return replace(self, name=name, **changes)


def eager(model: MultiExitModel) -> Variant:
    """The model's own stages and heads."""
    stages = model.staged.inference_stages
    outputs = _no_outputs(stages[-1], torch.device("cpu"))
    logits = model.final_logits(outputs)
    place = next((number for number, tensor in enumerate(outputs) if tensor is logits), None)
    # Usually the logits are one of the last stage's tensors, and the structure of the output need not be built.
    final = model.final_logits if place is None else itemgetter(place)
    return Variant("eager", stages, tuple(model.heads), final)


def batch_of(model: MultiExitModel, live: Tensors, size: int) -> Tensors:
    """A batch of `size` samples before stage 0: those of `live`, repeated or shortened."""
    rows = torch.arange(size, device=live[0].device) % model.staged.batch_size_of(live)
    return model.staged.compact(live, rows, 0)


def _no_outputs(stage: Stage, device: torch.device) -> Tensors:
    """What a stage gives for no samples."""
    shapes = [[size if isinstance(size, int) else 0 for size in live.shape] for live in stage.outputs]
    return tuple(
        torch.empty(shape, dtype=live.dtype, device=device) for shape, live in zip(shapes, stage.outputs, strict=True)
    )
