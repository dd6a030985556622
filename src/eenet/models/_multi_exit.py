"""MultiExitModel: a cut network with a classifier head at the end of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eenet.errors import InvalidInputError
from eenet.models._heads import head_for
from eenet.models._modes import inferring
from eenet.models._outputs import logits_in
from eenet.stages import Stage as Stage
from eenet.stages import StagedModel, cut


class MultiExitModel(nn.Module):
    """A network with K exits; calling it gives the logits of all of them, a list of K tensors (N, C).

    `staged` is the cut backbone, whose weights are those of the network it was made from; `heads` are the K-1 early
    exit heads. Made by `attach`.
    """

    def __init__(self, staged: StagedModel, heads: Sequence[nn.Module], num_classes: int) -> None:
        super().__init__()
        self.staged = staged
        self.heads = nn.ModuleList(heads)
        self.num_classes = num_classes

    @property
    def num_exits(self) -> int:
        """K, the last exit included."""
        return len(self.heads) + 1

    @property
    def backbone(self) -> nn.Module:
        """The network the exits were attached to."""
        return self.staged.backbone

    @property
    def exit_names(self) -> tuple[str, ...]:
        """The modules the exits stand at; the last is "output"."""
        return (*self.staged.at, "output")

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Logits of every exit, K tensors (N, C)."""
        stages = self.staged.stages
        live = self.staged.flatten_inputs(*args, **kwargs)
        logits = []
        for stage, head in zip(stages, self.heads, strict=False):
            outputs = stage(*live)
            logits.append(head(feature_of(stage, outputs)))
            live = tuple([outputs[i] for i in stage.passed])
        logits.append(self.final_logits(stages[-1](*live)))
        return logits

    def final_logits(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """The logits (N, C) in the tensors that the last stage gives."""
        return logits_in(self.staged.unflatten_output(outputs), self.num_classes)


def feature_of(stage: Stage, outputs: tuple[Tensor, ...]) -> Tensor:
    """The tensor an exit head looks at, among the outputs of its stage."""
    assert stage.feature_index is not None, f"stage {stage.name} has no exit"
    return outputs[stage.feature_index]


def attach(
    backbone: nn.Module,
    exits: Sequence[str],
    num_classes: int,
    example: Tensor | tuple[Any, ...] | Mapping[str, Any],
    *,
    heads: Sequence[nn.Module] | None = None,
    dynamic: Mapping[int, str] | None = None,
) -> MultiExitModel:
    """Give a network exits at the ends of the named modules; the network's weights are shared, not copied.

    `example` is an input the network takes: a tensor, a tuple of arguments or a mapping of keyword arguments, with the
    batch on dimension 0. `heads` replaces the default heads, one module for each name, feature in and logits
    (N, num_classes) out. `dynamic` names further dimensions whose size may change, such as `{1: "sequence"}`. Raises
    `CutError` where the network cannot be cut there, `InvalidInputError` where outputs or heads do not fit.
    """
    if isinstance(exits, str) or not exits:
        raise InvalidInputError(f"exits is {exits!r}, expected a list of module names such as ['layer1', 'layer2']")
    if num_classes < 2:
        raise InvalidInputError(f"num_classes is {num_classes}, expected at least 2")
    if heads is not None and len(heads) != len(exits):
        raise InvalidInputError(f"{len(heads)} heads for {len(exits)} exits; give one head for each name in exits")
    staged = cut(backbone, list(exits), (example,) if isinstance(example, Tensor) else example, dynamic=dynamic)
    inference = staged.inference_stages
    if heads is None:
        heads = []
        for stage in inference[:-1]:
            assert stage.feature_index is not None
            heads.append(head_for(stage.name, stage.outputs[stage.feature_index].shape, num_classes))
    reference = next(iter(backbone.parameters()), torch.empty(0))
    model = MultiExitModel(staged, [h.to(reference.device, reference.dtype) for h in heads], num_classes)
    model.training = backbone.training
    model.heads.train(backbone.training)
    with inferring(model):
        _dry_run(model, example)
    return model


def _dry_run(model: MultiExitModel, example: Tensor | tuple[Any, ...] | Mapping[str, Any]) -> None:
    """Run the example once, so that what does not fit is refused here and not in the middle of training."""
    if isinstance(example, Mapping):
        outputs = model(**example)
    else:
        outputs = model(*(example if isinstance(example, tuple) else (example,)))
    for name, logits in zip(model.exit_names, outputs, strict=True):
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != model.num_classes:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidInputError(
                f"the head at {name!r} gives {found}, expected logits of shape (batch, {model.num_classes})"
            )
