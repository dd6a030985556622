"""Networks by name: the paper's own, those of other libraries, and sources, by which a network is built again.

A source is a name and options. No code is stored anywhere.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eenet._compat import attention_of, set_attention
from eenet._extras import importing, require
from eenet._values import array_value
from eenet.errors import InvalidInputError, kind_of
from eenet.models._cascade_network import CascadeNetwork
from eenet.models._first_exits import FirstExits
from eenet.models._heads import HEADS, GridHead, SegmentationHead, StackedConvHead, TokenHead, describe_head
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

CASCADE = "eenet:cascade"
"""The source of several networks that are asked one after another; its options have the sources of each."""
FIRST_EXITS = "eenet:first-exits"
"""The source of a network that ends at one of its exits; its options have the source of the whole network."""

REGISTRIES = ("torchvision", "timm", "hf", "eenet")

# Where weights come from is no part of an architecture; some of these would load a pickle.
_WEIGHTS = (
    "weights", "weights_backbone", "pretrained", "pretrained_backbone", "pretrained_cfg", "pretrained_cfg_overlay",
    "checkpoint", "checkpoint_path", "cache_dir",
)  # fmt: skip
_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Source:
    """How a network is built: by a name and options.

    Parameters
    ----------
    name
        "torchvision:resnet18", "timm:NAME", "hf:CLASS", "eenet:NAME", or an import path "mypackage.networks:make".
    options
        The keyword arguments, which must be what JSON can hold.

    Examples
    --------
    >>> import eenet
    >>> eenet.Source("eenet:resnet20", {"num_classes": 10}).build().__class__.__name__
    'CifarResNet'
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str) -> Source:
        """The source of this name, without options; raises InvalidInputError where it is no name of a source."""
        if not isinstance(name, str) or not re.fullmatch(r"[\w.]+:[\w.\-]+", name):
            raise InvalidInputError(
                f"source is {name!r}, expected 'torchvision:NAME', 'timm:NAME', 'hf:CLASS', 'eenet:NAME' or an import "
                "path such as 'mypackage.networks:make'"
            )
        return cls(name)

    @property
    def registry(self) -> str | None:
        """The library that knows the network by name; None for an import path."""
        prefix = self.name.partition(":")[0]
        return prefix if prefix in REGISTRIES else None

    @classmethod
    def of(cls, network: nn.Module) -> Source | None:
        """How a network was built, where that is known: it was made by `build_network`, or is of Hugging Face."""
        noted = getattr(network, "_eenet_source", None)
        if isinstance(noted, Source):
            return noted
        if isinstance(network, CascadeNetwork):
            sources = [cls.of(one) for one in network.networks()]
            known = [source.to_dict() for source in sources if source is not None]
            options = network.describe(known) if len(known) == len(sources) else None
            return None if options is None else cls(CASCADE, options)
        if isinstance(network, FirstExits):
            whole, head = cls.of(network.network), describe_head(network.head)
            return None if whole is None or head is None else cls(FIRST_EXITS, network.describe(whole.to_dict(), head))
        if type(network).__module__.startswith("transformers.") and hasattr(network, "config"):
            return cls(f"hf:{type(network).__name__}", _hf_options(network))
        return None

    def build(self, *, allow: Collection[str] = ()) -> nn.Module:
        """The network, with random weights, as it is built for a source that was read from a file.

        Import paths must be in `allow`; options that say where to load weights from are refused.
        """
        Source.parse(self.name)
        if self.registry is None and self.name not in allow:
            raise InvalidInputError(
                f"this model's network is built by calling {self.name!r}, which may be any code; if you trust it, pass "
                f"allow=[{self.name!r}], or --allow {self.name} on the command line"
            )
        refused = [key for key in self.options if key in _WEIGHTS]
        if refused:
            raise InvalidInputError(
                f"the source {self.name!r} has the option {refused[0]!r}, which says where to load weights from; a "
                "saved model has its weights beside it: remove the option"
            )
        if self.name == CASCADE:
            networks = [source.build(allow=allow) for source in self._members()]
            return remember(CascadeNetwork.of(self.options, networks), self)
        if self.name == FIRST_EXITS:
            return remember(self._first_exits(self._members()[0].build(allow=allow)), self)
        return remember(_build(self), self)

    @property
    def paths(self) -> tuple[str, ...]:
        """The import paths that building the network calls, those of a cascade's members among them."""
        if self.name in (CASCADE, FIRST_EXITS):
            return tuple(path for source in self._members() for path in source.paths)
        return (self.name,) if self.registry is None else ()

    def _members(self) -> list[Source]:
        try:
            return [Source(one["name"], one["options"]) for one in self.options["networks"]]
        except (KeyError, TypeError) as error:
            raise InvalidInputError(f"the source {self.name!r} names no networks ({error!r})") from error

    def _first_exits(self, network: nn.Module) -> FirstExits:
        try:
            head, options = self.options["head"], self.options
            made = HEADS[head["name"]](**head["options"])
            return FirstExits(network, str(options["stop"]), made, int(options["batch_dim"]), options["arguments"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InvalidInputError(f"the source {self.name!r} describes no exit ({error!r})") from error

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; raises InvalidInputError for options that JSON cannot hold."""
        try:
            options = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"the options of the source {self.name!r} cannot be written as JSON ({error}); give numbers, strings, "
                "lists and mappings only"
            ) from error
        return {"name": self.name, "options": options}


Example = Tensor | dict[str, Tensor]


class _WithExits(Protocol):
    @property
    def exit_names(self) -> tuple[str, ...]: ...


@array_value
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


def _images(height: int, width: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


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
    "resnet-digits": ModelSpec(
        partial(CifarResNet, blocks=(1, 1, 3), widths=(16, 64, 128), channels=1),
        10,
        _own_exits,
        partial(_images, 28, 28, 1),
    ),
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
    """New heads for exits of one of the paper's networks, of the design published with it, if there is one.

    Parameters
    ----------
    network
        A `CifarResNet`, `DenseNet`, `MSDNet`, `HRNet`, or a network that `eenet.networks.bert` made.
    exits
        The modules that the exits are at, by default `network.exit_names`. Needed for BERT.

    Returns
    -------
    list of nn.Module
        One head for each exit, with random weights, for the classes of the network.

    Raises
    ------
    InvalidInputError
        For another network, whose heads `attach` makes.

    Examples
    --------
    >>> import eenet
    >>> network = eenet.build_network("resnet20", num_classes=10)
    >>> [type(head).__name__ for head in eenet.models.make_heads(network)]
    ['GridHead', 'GridHead']
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
        make = partial(StackedConvHead, num_classes=net.linear.out_features)
        if not net.bottleneck:  # none were published
            make = partial(GridHead, num_classes=net.linear.out_features, grid=(8, 8))
    else:
        raise InvalidInputError(
            f"no heads were published for {kind_of(net)}; leave heads out, then `attach` makes default heads"
        )
    widths = dict(zip(net.exit_names, net.exit_widths, strict=True))
    names = net.exit_names if exits is None else exits
    unknown = [name for name in names if name not in widths]
    if unknown:
        raise InvalidInputError(f"{unknown[0]!r} is no exit of this network; its exits are {list(widths)}")
    return [make(widths[name]) for name in names]


def build_network(name: str, **options: Any) -> nn.Module:
    """A network by name, which remembers it, so that a model made of it can be saved whole.

    Parameters
    ----------
    name
        A network of the paper ("resnet56" or "eenet:resnet56", see `eenet.models.MODELS`), "torchvision:resnet50",
        "timm:NAME", "hf:CLASS" with the option `config` (a mapping or a configuration), or an import path
        "mypackage.networks:make" of a function that gives a module.
    **options
        The keyword arguments of the network's function, such as `num_classes`. Weights start at random unless the
        options say otherwise.

    Returns
    -------
    torch.nn.Module
        The network, without exits.

    Raises
    ------
    MissingExtraError
        Where the library is not installed.
    InvalidInputError
        For a name that the library does not know.

    Examples
    --------
    >>> import eenet
    >>> network = eenet.build_network("resnet20", num_classes=4)
    >>> network.exit_names
    ('layers.0', 'layers.1')
    """
    source = Source(Source.parse(name if ":" in str(name) else f"eenet:{name}").name, options)
    network = _build(source)
    if isinstance(getattr(network, "_eenet_source", None), Source):
        return network  # one of our own, which knows better: options that came from a checkpoint are noted too
    kept = {key: value for key, value in options.items() if key not in _WEIGHTS}
    if source.registry == "hf":
        kept = _hf_options(network)
    return remember(network, Source(source.name, kept))


def remember(network: nn.Module, source: Source) -> nn.Module:
    """Note on a network how it was built."""
    network._eenet_source = source  # type: ignore[assignment]
    return network


def _build(source: Source) -> nn.Module:
    prefix, _, name = source.name.partition(":")
    options = dict(source.options)
    if prefix == "torchvision":
        network = _torchvision(name, options)
    elif prefix == "timm":
        timm = require("timm", "train")
        if not timm.is_model(name):
            raise InvalidInputError(f"timm has no network {name!r}; see timm.list_models()")
        network = timm.create_model(name, **options)
    elif prefix == "hf":
        network = _hugging_face(name, options)
    elif prefix == "eenet":
        network = _own_network(name, options)
    else:
        network = _imported(prefix, name)(**options)
    if not isinstance(network, nn.Module):
        raise InvalidInputError(f"{source.name!r} gave {kind_of(network)}, expected a torch.nn.Module")
    return network


def known(name: str) -> ModelSpec:
    """What is known of a network of `MODELS`; raises `InvalidInputError`, with the names there are."""
    spec = MODELS.get(name)
    if spec is None:
        near = difflib.get_close_matches(str(name), MODELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(repr(one) for one in near)}? There are" if near else "there are"
        raise InvalidInputError(f"there is no network {name!r}; {hint} {', '.join(MODELS)}")
    return spec


def _own_network(name: str, options: dict[str, Any]) -> nn.Module:
    spec = known(name)
    classes = options.pop("num_classes", None) or spec.num_classes
    network = spec.build(num_classes=classes, **options)
    kept = {key: value for key, value in options.items() if key not in _WEIGHTS}
    if spec.settings is not None:
        kept |= spec.settings(network)
    return remember(network, Source(f"eenet:{name}", {"num_classes": classes, **kept}))


def _torchvision(name: str, options: dict[str, Any]) -> Any:
    models = require("torchvision.models", "train")
    if name not in models.list_models():
        raise InvalidInputError(f"torchvision has no network {name!r}; see torchvision.models.list_models()")
    # Segmentation networks fetch the weights of their backbone unless an option says otherwise.
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options.setdefault("weights_backbone", None)
    return models.get_model(name, **options)


def _hugging_face(name: str, options: dict[str, Any]) -> Any:
    transformers = require("transformers", "train")
    with importing("transformers", "train"):  # transformers loads its parts when they are first named
        known: Any = getattr(transformers, name, None)
    fits = inspect.isclass(known) and issubclass(known, transformers.PreTrainedModel)
    if not fits:
        raise InvalidInputError(
            f"transformers has no network {name!r}; expected a class such as 'BertForSequenceClassification'"
        )
    config = options.pop("config", None)
    attention = options.pop("attention", None)
    if options:
        raise InvalidInputError(f"the source 'hf:{name}' has the option {next(iter(options))!r}; it takes 'config'")
    if config is None:
        config = known.config_class()
    elif isinstance(config, Mapping):
        if "quantization_config" in config or "auto_map" in config:
            raise InvalidInputError(
                f"the configuration of 'hf:{name}' asks for quantization or for code of its own; build the network "
                "yourself and give it to eenet.attach"
            )
        config = known.config_class.from_dict(dict(config))
    if attention in _ATTENTION:
        set_attention(config, attention)
    return known(config)


def _hf_options(network: Any) -> dict[str, Any]:
    config = json.loads(network.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    attention = attention_of(network.config)
    return {"config": config} | ({"attention": attention} if attention in _ATTENTION else {})


def _imported(module: str, name: str) -> Any:
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"cannot import {module}:{name} ({error}); check the path, and that the module is on PYTHONPATH"
        ) from error
    return value
