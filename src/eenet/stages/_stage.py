"""What a stage is, how stages are run one after another, and how samples are selected between two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LiveTensor:
    """A tensor that crosses a boundary: its name, shape (symbols by name), dtype and the dimension samples lie along.

    `batch_dim` is None for a constant: a tensor that is the same whatever the batch, and that is never compacted.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> eenet.cut(network, at=["1"], example=torch.randn(2, 4)).stages[1].inputs[0].batch_dim
    0
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

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> [stage.name for stage in eenet.cut(network, at=["1"], example=torch.randn(2, 4)).stages]
    ['1', 'output']
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

    def compact(self, live: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
        """The samples `index` (int64, in any order) of its live input tensors; constants stay as they are."""
        return compact(live, index, self.batch_dims)

    @property
    def feature(self) -> LiveTensor:
        """The feature at the end of the stage as a head takes it: with the samples first. Not for the last stage."""
        assert self.feature_index is not None, f"stage {self.name} has no exit"
        feature = self.outputs[self.feature_index]
        shape = list(feature.shape)
        if feature.batch_dim is not None:
            shape.insert(0, shape.pop(feature.batch_dim))
        return LiveTensor("feature", tuple(shape), feature.dtype, 0)

    def replaced(self, module: nn.Module) -> Stage:
        """The same stage with another module."""
        return Stage(
            module,
            name=self.name,
            inputs=self.inputs,
            outputs=self.outputs,
            feature_index=self.feature_index,
            passed=self.passed,
        )

    def state_dict(self) -> dict[str, Any]:
        """The parameters and buffers that this stage uses, under their names in the original model, not copied."""
        return dict(self.module.state_dict())

    def __repr__(self) -> str:
        ins = ", ".join(_describe(live) for live in self.inputs)
        outs = ", ".join(_describe(live) for live in self.outputs)
        return f"Stage({self.name!r}: ({ins}) -> ({outs}))"


class Step:
    """A stage that has run: its `outputs`, and `live`, the tensors the next stage will be run on.

    The caller may replace `live` before the next stage runs, for instance by the remaining samples of the batch.
    """

    __slots__ = ("live", "outputs", "stage")

    def __init__(self, stage: Stage, outputs: tuple[Tensor, ...]) -> None:
        self.stage = stage
        self.outputs = outputs
        self.live = tuple([outputs[i] for i in stage.passed])

    @property
    def feature(self) -> Tensor:
        """The tensor an exit head looks at, with the samples first. Not for the last stage."""
        index = self.stage.feature_index
        assert index is not None, f"stage {self.stage.name} has no exit"
        batch_dim = self.stage.outputs[index].batch_dim
        return self.outputs[index].movedim(batch_dim, 0) if batch_dim else self.outputs[index]


def walk(stages: Sequence[Stage], live: tuple[Tensor, ...]) -> Iterator[Step]:
    """Run stages in turn, each when the next step is asked for; `live` are the tensors before the first.

    This is the only loop over stages.
    """
    for stage in stages:
        step = Step(stage, stage(*live))
        yield step
        live = step.live


def _describe(live: LiveTensor) -> str:
    return f"{live.name}: {'x'.join(str(size) for size in live.shape) or 'scalar'}"


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
