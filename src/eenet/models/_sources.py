"""Sources: the names by which networks can be built again, without their code being stored anywhere."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from eenet._compat import attention_of, set_attention
from eenet._extras import require
from eenet.errors import InvalidInputError

REGISTRIES = ("torchvision", "timm", "hf", "eenet")

# Where weights come from is no part of an architecture; some of these would load a pickle.
_WEIGHTS = (
    "weights", "weights_backbone", "pretrained", "pretrained_backbone", "pretrained_cfg", "pretrained_cfg_overlay",
    "checkpoint", "checkpoint_path", "cache_dir",
)  # fmt: skip
_ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Source:
    """How a network is built: "torchvision:resnet18", "timm:NAME", "hf:CLASS", "eenet:NAME", or "module:function".

    `options` are the keyword arguments, which must be what JSON can hold.
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


def build_network(name: str, **options: Any) -> nn.Module:
    """A network by name, which remembers it, so that a model made of it can be saved whole.

    `name` is "torchvision:resnet50", "timm:NAME", "hf:CLASS" with `config` (a mapping or a configuration), "eenet:NAME"
    (see `eenet.models.build`), or an import path "mypackage.networks:make" of a function that gives a module. `options`
    are its keyword arguments; weights start at random unless they say otherwise. Raises `MissingExtraError` where the
    library is not installed, `InvalidInputError` for a name it does not know.
    """
    source = Source(Source.parse(name).name, options)
    network = _build(source)
    noted = getattr(network, "_eenet_source", None)
    if isinstance(noted, Source):
        return network  # one of our own, which knows better: options that came from a checkpoint are noted too
    kept = {key: value for key, value in options.items() if key not in _WEIGHTS}
    if source.registry == "hf":
        kept = _hf_options(network)
    return remember(network, Source(name, kept))


def rebuild(source: Source, *, allow: Collection[str] = ()) -> nn.Module:
    """The network of a source that was read from a file, with random weights; import paths must be in `allow`."""
    Source.parse(source.name)
    if source.registry is None and source.name not in allow:
        raise InvalidInputError(
            f"this model's network is built by calling {source.name!r}, which may be any code; if you trust it, pass "
            f"allow=[{source.name!r}], or --allow {source.name} on the command line"
        )
    refused = [key for key in source.options if key in _WEIGHTS]
    if refused:
        raise InvalidInputError(f"the source {source.name!r} has the option {refused[0]!r}, which says where to load "
                                "weights from; a saved model has its weights beside it: remove the option")  # fmt: skip
    return remember(_build(source), source)


def remember(network: nn.Module, source: Source) -> nn.Module:
    """Note on a network how it was built."""
    network._eenet_source = source  # type: ignore[assignment]
    return network


def source_of(network: nn.Module) -> Source | None:
    """How a network was built, where that is known: noted by `remember`, or a Hugging Face model."""
    known = getattr(network, "_eenet_source", None)
    if isinstance(known, Source):
        return known
    if type(network).__module__.startswith("transformers.") and hasattr(network, "config"):
        return Source(f"hf:{type(network).__name__}", _hf_options(network))
    return None


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
        from eenet.models._registry import build

        network = build(name, **options)
    else:
        network = _imported(prefix, name)(**options)
    if not isinstance(network, nn.Module):
        raise InvalidInputError(f"{source.name!r} gave a {type(network).__name__}, expected a torch.nn.Module")
    return network


def _torchvision(name: str, options: dict[str, Any]) -> Any:
    models = require("torchvision.models", "train")
    if name not in models.list_models():
        raise InvalidInputError(f"torchvision has no network {name!r}; see torchvision.models.list_models()")
    # Segmentation networks fetch the weights of their backbone unless they are told not to.
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        options.setdefault("weights_backbone", None)
    return models.get_model(name, **options)


def _hugging_face(name: str, options: dict[str, Any]) -> Any:
    transformers = require("transformers", "train")
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
                f"the configuration of 'hf:{name}' asks for quantisation or for code of its own; build the network "
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
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InvalidInputError(
            f"cannot import {module}:{name} ({error}); check the path, and that the module is on PYTHONPATH"
        ) from error
    return found
