"""Models by name: the paper's networks with their exits, and trained ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from eenet.models._backbones import Backbone
from eenet.models._multi_exit import MultiExitModel, attach
from eenet.models._networks import build_network, known, make_heads
from eenet.stages import Example


def from_pretrained(
    name: str | Path,
    *,
    allow: Iterable[str] = (),
    heads: Sequence[nn.Module] | None = None,
    backbone: Backbone | None = None,
) -> MultiExitModel:
    """A trained model by its name or folder: `MultiExitModel.from_pretrained`.

    Parameters
    ----------
    name
        A model that ships, such as "digits", or one in a folder of the environment variable EENET_MODELS; an unknown
        name raises an error that lists them. Or the folder that `save_pretrained` wrote.
    allow
        The import paths that may be called to build a network of the caller's own.
    heads
        New heads of the same kind, where those of the model were the caller's own.
    backbone
        The network with its weights, for a model that was saved without it.

    Returns
    -------
    MultiExitModel
        The model on the CPU, in inference mode.

    Examples
    --------
    >>> import eenet
    >>> eenet.from_pretrained("digits").num_exits
    3
    """
    return MultiExitModel.from_pretrained(name, allow=allow, heads=heads, backbone=backbone)


def multi_exit(
    name: str, *, num_classes: int | None = None, example: Example | None = None, **options: Any
) -> MultiExitModel:
    """A network of the paper by name, with its exits and heads.

    Parameters
    ----------
    name
        One of `eenet.models.MODELS`.
    num_classes
        C, the classes, by default those of the network's data set.
    example
        An input; images must have its size, by default that of the network's data set. Texts may have any length.
    **options
        The keyword arguments of the network's function, such as `weights`.

    Returns
    -------
    MultiExitModel
        The model, with random weights unless the options say otherwise.

    Raises
    ------
    InvalidInputError
        For an unknown name.

    Examples
    --------
    >>> from eenet.models import multi_exit
    >>> multi_exit("resnet20", num_classes=4).exit_names
    ('layers.0', 'layers.1', 'output')
    """
    spec = known(name)
    backbone = build_network(f"eenet:{name}", num_classes=num_classes, **options)
    exits = spec.exits(backbone)
    given = spec.example() if example is None else example
    return attach(backbone, exits, num_classes, given, heads=make_heads(backbone, exits), dynamic=spec.dynamic)
