"""The paper's networks by name, each with the exits and the heads that belong to it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eenet.errors import InvalidInputError
from eenet.models._multi_exit import MultiExitModel, attach
from eenet.models._sources import Source, remember
from eenet.networks._bert import bert, bert_exits, bert_heads, bert_options, minilm
from eenet.networks._densenet import densenet121
from eenet.networks._hrnet import hrnet
from eenet.networks._msdnet import msdnet35, msdnet_cifar
from eenet.networks._resnet import resnet20, resnet56

# Where weights come from is no part of an architecture.
_WEIGHTS = ("weights", "checkpoint")

Example = Tensor | dict[str, Tensor]


class _WithExits(Protocol):
    @property
    def exit_names(self) -> tuple[str, ...]: ...

    def make_heads(self) -> list[nn.Module]: ...


@dataclass(frozen=True)
class ModelSpec:
    """How a network that is known by name is made.

    `build` makes the backbone from `num_classes=` and further options; `num_classes` is what it has by default;
    `exits(backbone)` are the modules where its early exits stand and `heads(backbone, num_classes)` new heads for them;
    `example()` is an input it takes, whose size the stages are then made for, but for the `dynamic` dimensions;
    `settings(backbone)` are options that a checkpoint decided, for building the network again without it.
    """

    build: Callable[..., nn.Module]
    num_classes: int
    exits: Callable[[Any], tuple[str, ...]]
    heads: Callable[[Any, int], list[nn.Module]]
    example: Callable[[], Example]
    dynamic: Mapping[int, str] | None = None
    settings: Callable[[Any], dict[str, Any]] | None = None


def _own_exits(backbone: _WithExits) -> tuple[str, ...]:
    return backbone.exit_names


def _own_heads(backbone: _WithExits, _num_classes: int) -> list[nn.Module]:
    return backbone.make_heads()


def _images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def _sentences() -> dict[str, Tensor]:
    ids = torch.arange(1000, 1024).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _own(build: Callable[..., nn.Module], num_classes: int, height: int, width: int) -> ModelSpec:
    return ModelSpec(build, num_classes, _own_exits, _own_heads, partial(_images, height, width))


def _text(build: Callable[..., nn.Module], after: Sequence[int]) -> ModelSpec:
    names = bert_exits(after)
    heads = partial(bert_heads, exits=len(names))
    return ModelSpec(build, 2, lambda _: names, heads, _sentences, {1: "sequence"}, bert_options)


MODELS: dict[str, ModelSpec] = {
    "resnet56": _own(resnet56, 10, 32, 32),
    "resnet56-bottleneck": _own(partial(resnet56, bottleneck=True), 10, 32, 32),
    "resnet20": _own(resnet20, 10, 32, 32),
    "densenet121-cifar": _own(densenet121, 100, 32, 32),
    "msdnet35": _own(msdnet35, 1000, 224, 224),
    "msdnet-cifar": _own(msdnet_cifar, 100, 32, 32),
    **{
        f"hrnet-{variant}": _own(partial(hrnet, variant), 19, 64, 128)
        for variant in ("w18-small-v1", "w18-small-v2", "w18", "w32", "w48")
    },
    "bert-base": _text(bert, (3, 6, 9)),
    "minilm": _text(minilm, (2, 4)),
}


def spec(name: str) -> ModelSpec:
    """What is known of a network by its name; raises `InvalidInputError`, with the names there are."""
    found = MODELS.get(name)
    if found is None:
        near = difflib.get_close_matches(str(name), MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(one) for one in near)}? There are" if near else "there are"
        raise InvalidInputError(f"there is no network {name!r}; {hint} {', '.join(MODELS)}")
    return found


def build(name: str, *, num_classes: int | None = None, **options: Any) -> nn.Module:
    """A network of the paper by name, without exits; `options` are those of its function, such as `weights`.

    It remembers how it was built, so that a model made of it can be saved whole. Raises `InvalidInputError` for a name
    that is not in `MODELS`.
    """
    found = spec(name)
    classes = found.num_classes if num_classes is None else num_classes
    network = found.build(num_classes=classes, **options)
    kept = {key: value for key, value in options.items() if key not in _WEIGHTS}
    if found.settings is not None:
        kept |= found.settings(network)
    return remember(network, Source(f"eenet:{name}", {"num_classes": classes, **kept}))


def multi_exit(
    name: str, *, num_classes: int | None = None, example: Example | None = None, **options: Any
) -> MultiExitModel:
    """A network of the paper by name, with its exits and heads.

    Images must have the size of those in `example`, by default the size of the network's data set; texts may have any
    length. `options` are those of the network's function. Raises `InvalidInputError` for an unknown name.
    """
    found = spec(name)
    classes = found.num_classes if num_classes is None else num_classes
    backbone = build(name, num_classes=classes, **options)
    return attach(
        backbone,
        found.exits(backbone),
        classes,
        found.example() if example is None else example,
        heads=found.heads(backbone, classes),
        dynamic=found.dynamic,
    )
