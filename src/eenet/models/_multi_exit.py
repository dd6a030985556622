"""MultiExitModel: a cut network with an exit head at the end of each stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet.errors import InvalidInputError
from eenet.models._heads import head_for
from eenet.models._modes import inferring
from eenet.models._outputs import logits_in
from eenet.models._placement import place_exits
from eenet.models._sources import Source, source_of
from eenet.stages import Example, StagedModel, cut
from eenet.tasks import Classification, Segmentation, Task


class MultiExitModel(nn.Module):
    """A network with K exits; calling it gives the logits of all of them, a list of K tensors (N, C).

    Where the network gives every pixel a class they are (N, C, H, W). `staged` is the cut backbone, whose weights are
    those of the network it was made from; `heads` are the K-1 early exit heads; `source` says how the network can be
    built again, where that is known. Made by `attach` or `from_pretrained`.
    """

    def __init__(
        self,
        staged: StagedModel,
        heads: Sequence[nn.Module],
        num_classes: int,
        *,
        source: Source | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.staged = staged
        self.heads = nn.ModuleList(heads)
        self.num_classes = num_classes
        self.source = source
        self.task: Task = task or Classification()

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
        steps = self.staged.walk(self.staged.flatten_inputs(*args, **kwargs))
        logits = [head(next(steps).feature) for head in self.heads]
        return [*logits, self.final_logits(next(steps).outputs)]

    def final_logits(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """The logits (N, C) in the tensors that the last stage gives."""
        return logits_in(self.staged.unflatten_output(outputs), self.num_classes)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole model to a folder of JSON and safetensors files, nothing that runs code.

        The network must be one that can be built again from a name: made by `build_network`, given `source` in
        `attach`, or a Hugging Face model. The example that the model was cut with is stored too, two samples of it. The
        folder appears whole or not at all. Raises InvalidInputError where the model cannot be described or the folder
        cannot be written.
        """
        from eenet.models._pretrained import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, allow: Iterable[str] = (), heads: Sequence[nn.Module] | None = None
    ) -> MultiExitModel:
        """The model that `save_pretrained` wrote, in inference mode.

        A network of torchvision, timm, Hugging Face or eenet is built by its name. `allow` lists the import paths, such
        as "mypackage.networks:make", that may be called for any other; `heads` are the exit heads where they were the
        caller's own. Raises FileFormatError where the folder is damaged or its weights are of another architecture (the
        message lists the first names that differ), InvalidInputError where something has to be allowed or given.
        """
        from eenet.models._pretrained import from_pretrained

        return from_pretrained(folder, allow=allow, heads=heads)


def attach(
    backbone: nn.Module,
    exits: Sequence[str] | str | None = None,
    num_classes: int | None = None,
    example: Example | None = None,
    *,
    heads: Sequence[nn.Module] | None = None,
    dynamic: Mapping[int, str] | None = None,
    source: str | Source | None = None,
    task: Task | None = None,
) -> MultiExitModel:
    """Give a network exits at the ends of the named modules; the network's weights are shared, not copied.

    `exits` is a list of module names, or "auto:3" for three exits in all, the network's own included: the early ones
    are placed at about equal FLOPs ("auto:3:ms": at about equal measured time) where little crosses the boundary.
    `num_classes` is read off the network's output where it is not given. `example` is an input the network takes: a
    tensor, a tuple of arguments or a mapping of keyword arguments, with the batch on dimension 0. A network that was
    cut already, or whose stages were written by hand (`StagedModel.from_stages`), needs neither `exits` nor `example`.

    `heads` replaces the default heads, one module for each early exit, feature in and logits (N, num_classes) out. The
    default head is made for the feature: vectors (N, D), tokens (N, T, D), maps (N, D, H, W) or (N, H, W, D), and maps
    for a network that gives every pixel a class. `dynamic` names further dimensions whose size may change, such as
    `{1: "sequence"}`. `source` says how the network can be built again, such as "torchvision:resnet18".

    `task` says what the logits mean, where not `eenet.tasks.Classification()` or, for a class per pixel,
    `Segmentation()`.

    Raises `CutError` where the network cannot be cut there, `InvalidInputError` where outputs or heads do not fit.
    """
    if num_classes is not None and num_classes < 2:
        raise InvalidInputError(f"num_classes is {num_classes}, expected at least 2")
    staged = _staged(backbone, exits, example, dynamic)
    args, kwargs = staged.example
    inference = staged.inference_stages
    with inferring(staged):
        *_, last = staged.walk(staged.flatten_inputs(*args, **kwargs), inference)
        outputs = last.outputs
        logits = logits_in(staged.unflatten_output(outputs), num_classes)
    answers = next((live for live, t in zip(inference[-1].outputs, outputs, strict=True) if t is logits), None)
    if answers is not None and answers.batch_dim != 0:
        raise InvalidInputError(
            f"the network gives logits of shape ({', '.join(map(str, answers.shape))}), expected (batch, "
            f"{', '.join(map(str, logits.shape[1:]))}): it drops, repeats or mixes samples; give one that answers each "
            "sample by itself"
        )
    num_classes = logits.shape[1]
    early = inference[:-1]
    if heads is not None and len(heads) != len(early):
        raise InvalidInputError(f"{len(heads)} heads for {len(early)} exits; give one head for each name in exits")
    if heads is None:
        image = next((tuple(t.shape[2:]) for t in staged.flatten_inputs(*args, **kwargs) if _is_image(t)), None)
        heads = [
            head_for(
                stage.name,
                stage.outputs[stage.feature_index or 0],
                num_classes,
                image=None if image is None else (image[0], image[1]),
                dense=None if logits.ndim == 2 else (logits.shape[2], logits.shape[3]),
            )
            for stage in early
        ]
    reference = next((p for p in staged.parameters() if p.is_floating_point()), torch.empty(0))
    known = Source.parse(source) if isinstance(source, str) else source or source_of(staged.backbone)
    heads = [head.to(reference.device, reference.dtype) for head in heads]
    dense = logits.ndim == 4
    if task is not None and isinstance(task, Segmentation) != dense:
        raise InvalidInputError(
            f"the task is {task.name}, but the network gives logits of shape {tuple(logits.shape)}; leave task out"
        )
    task = task or (Segmentation() if dense else Classification())
    model = MultiExitModel(staged, heads, num_classes, source=known, task=task)
    model.training = staged.training
    model.heads.train(staged.training)
    with inferring(model):
        _dry_run(model, args, kwargs, logits)
    return model


def _staged(
    backbone: nn.Module, exits: Sequence[str] | str | None, example: Example | None, dynamic: Mapping[int, str] | None
) -> StagedModel:
    if isinstance(backbone, StagedModel):
        if exits is not None and list(exits) != list(backbone.at):
            raise InvalidInputError(
                f"exits is {exits!r}, but the network is cut at {list(backbone.at)} already; leave exits out, or cut "
                "the network anew"
            )
        if not backbone.at:
            raise InvalidInputError("the network has one stage only, so there is no place for an early exit; cut it")
        return backbone
    if example is None:
        raise InvalidInputError("example is None, expected an input that the network takes")
    if isinstance(exits, str) and exits.startswith("auto"):
        exits = place_exits(backbone, exits, example, dynamic=dynamic)
    if isinstance(exits, str) or not exits:
        raise InvalidInputError(
            f"exits is {exits!r}, expected a list of module names such as ['layer1', 'layer2'], or 'auto:3'"
        )
    return cut(backbone, list(exits), example, dynamic=dynamic)


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_floating_point()


def _dry_run(model: MultiExitModel, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Tensor) -> None:
    """Run the example once, so that what does not fit is refused here and not in the middle of training."""
    sizes = ", ".join(str(size) for size in expected.shape[1:])
    for name, logits in zip(model.exit_names, model(*args, **kwargs), strict=True):
        if not isinstance(logits, Tensor) or logits.shape != expected.shape:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidInputError(
                f"the head at {name!r} gives {found} for {expected.shape[0]} samples, expected logits of shape (batch, "
                f"{sizes})"
            )
