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
from eenet.models._heads import ConvHead, SegmentationHead, StackedConvHead, TokenHead
from eenet.models._multi_exit import MultiExitModel, attach
from eenet.models._sources import Source, remember
from eenet.networks import (
    CifarResNet,
    DenseNet,
    HRNet,
    MSDNet,
    MSDNetHead,
    bert,
    bert_exits,
    bert_options,
    densenet121,
    hrnet,
    minilm,
    msdnet35,
    msdnet_cifar,
    resnet20,
    resnet56,
)
from eenet.networks._bert import pooling_of

# Where weights come from is no part of an architecture.
_WEIGHTS = ("weights", "checkpoint")

Example = Tensor | dict[str, Tensor]


class _WithExits(Protocol):
    @property
    def exit_names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class ModelSpec:
    """How a network that is known by name is made.

    `build` makes the backbone from `num_classes=` and further options; `num_classes` is what it has by default;
    `exits(backbone)` are the modules where its early exits stand, for which `make_heads` gives the heads;
    `example()` is an input it takes, whose size the stages are then made for, but for the `dynamic` dimensions;
    `settings(backbone)` are options that a checkpoint decided, for building the network again without it.
    """

    build: Callable[..., nn.Module]
    num_classes: int
    exits: Callable[[Any], tuple[str, ...]]
    example: Callable[[], Example]
    dynamic: Mapping[int, str] | None = None
    settings: Callable[[Any], dict[str, Any]] | None = None


def _own_exits(backbone: _WithExits) -> tuple[str, ...]:
    return backbone.exit_names


def _images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def _sentences() -> dict[str, Tensor]:
    ids = torch.arange(1000, 1024).reshape(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _own(build: Callable[..., nn.Module], num_classes: int, height: int, width: int) -> ModelSpec:
    return ModelSpec(build, num_classes, _own_exits, partial(_images, height, width))


def _text(build: Callable[..., nn.Module], after: Sequence[int]) -> ModelSpec:
    names = bert_exits(after)
    return ModelSpec(build, 2, lambda _: names, _sentences, {1: "sequence"}, bert_options)


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


def make_heads(network: nn.Module, exits: Sequence[str] | None = None) -> list[nn.Module]:
    """New heads for exits of one of the paper's networks, of the design published with it.

    Parameters
    ----------
    network
        A `CifarResNet`, `DenseNet`, `MSDNet`, `HRNet`, or a network that `eenet.networks.bert` made.
    exits
        The modules that the exits stand at, by default `network.exit_names`. Needed for BERT.

    Returns
    -------
    list of nn.Module
        One head for each exit, with random weights, for the classes of the network.

    Raises
    ------
    InvalidInputError
        For another network, whose heads `attach` makes.
    """
    net: Any = network
    if hasattr(getattr(net, "config", None), "hidden_size") and hasattr(net, "bert") and exits is not None:
        width, classes, pool = net.config.hidden_size, net.config.num_labels, pooling_of(net)
        return [TokenHead(width, classes, pool=pool) for _ in exits]
    make: Callable[[int], nn.Module]
    if isinstance(net, MSDNet):
        make = partial(MSDNetHead, num_classes=net.num_classes, hidden=net.hidden)
    elif isinstance(net, DenseNet):
        make = partial(StackedConvHead, num_classes=net.num_classes)
    elif isinstance(net, HRNet):
        make = partial(SegmentationHead, num_classes=net.num_classes, stride=net.stride)
    elif isinstance(net, CifarResNet):
        make = partial(StackedConvHead if net.bottleneck else ConvHead, num_classes=net.linear.out_features)
    else:
        raise InvalidInputError(
            f"no heads were published for a {type(net).__name__}; leave heads out, then `attach` makes default heads"
        )
    widths = dict(zip(net.exit_names, net.exit_widths, strict=True))
    wanted = net.exit_names if exits is None else exits
    unknown = [name for name in wanted if name not in widths]
    if unknown:
        raise InvalidInputError(f"{unknown[0]!r} is no exit of this network; its exits are {list(widths)}")
    return [make(widths[name]) for name in wanted]


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
        heads=make_heads(backbone, found.exits(backbone)),
        dynamic=found.dynamic,
    )
