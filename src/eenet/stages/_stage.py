"""What a stage is: a graph from the live tensors of one boundary to those of the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LiveTensor:
    """A tensor that crosses a boundary: its name, shape (symbols by name), dtype and the dimension samples lie along.

    `batch_dim` is None for a constant: a tensor that is the same whatever the batch, and that is never compacted.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    batch_dim: int | None


class Stage:
    """One piece of a cut network; call it with its live input tensors, get the tuple of its output tensors.

    `module` is what runs, a graph or a module of the caller's; `inputs` and `outputs` describe its live tensors,
    `batch_dims` are those of the inputs. `name` is the module it ends at ("output" for the last), `feature_index` the
    output that is the feature at its end (None for the last), `passed` the outputs that are the next stage's inputs, in
    their order.
    """

    __slots__ = ("batch_dims", "feature_index", "inputs", "module", "name", "outputs", "passed")

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        inputs: tuple[LiveTensor, ...],
        outputs: tuple[LiveTensor, ...],
        feature_index: int | None,
        passed: tuple[int, ...],
    ) -> None:
        self.module = module
        self.name = name
        self.inputs = inputs
        self.batch_dims = tuple(live.batch_dim for live in inputs)
        self.outputs = outputs
        self.feature_index = feature_index
        self.passed = passed

    def __call__(self, *live: Tensor) -> tuple[Tensor, ...]:
        """Run the stage on the tensors of `inputs`, in order; returns the tensors of `outputs`, in order."""
        outputs: tuple[Tensor, ...] = self.module(*live)
        return outputs

    def state_dict(self) -> dict[str, Any]:
        """The parameters and buffers that this stage uses, under their names in the original model, not copied."""
        return dict(self.module.state_dict())

    def __repr__(self) -> str:
        ins = ", ".join(_describe(live) for live in self.inputs)
        outs = ", ".join(_describe(live) for live in self.outputs)
        return f"Stage({self.name!r}: ({ins}) -> ({outs}))"


def _describe(live: LiveTensor) -> str:
    return f"{live.name}: {'x'.join(str(size) for size in live.shape) or 'scalar'}"
