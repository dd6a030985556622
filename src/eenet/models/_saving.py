"""Models to their folders and back: what describes one, and what it is made of again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eenet._pretrained import find_model
from eenet._version import __version__
from eenet.errors import FileFormatError, InvalidInputError, kind_of
from eenet.models._backbones import Backbone, describe_backbone, difference, missing, pretrained, require_same
from eenet.models._cascade_network import CascadeNetwork, InputMap, Member
from eenet.models._first_exits import FirstExits
from eenet.models._folder import read_folder, tensor_names, write_folder
from eenet.models._heads import HEADS, describe_head
from eenet.models._io import inferring, logits_in, moved
from eenet.models._networks import CASCADE, FIRST_EXITS, Source, known, make_heads
from eenet.models._ties import tie, ties
from eenet.stages import StagedModel
from eenet.tasks import Task, describe_task, task_from


class Model(Protocol):
    """What of a `MultiExitModel` is written."""

    staged: StagedModel
    heads: nn.ModuleList
    num_classes: int
    source: Source | None
    task: Task

    @property
    def backbone(self) -> nn.Module:
        """The network the exits were attached to."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The logits of every exit."""
        ...


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a saved model is made of again, without its weights; `given` are those that its file does not have.

    `answers` (K, n, classes) are the logits that it gave for the example, where its network is not in the file.
    """

    root: Path
    network: nn.Module
    exits: list[str]
    num_classes: int
    example: tuple[tuple[Any, ...], dict[str, Any]]
    heads: Sequence[nn.Module]
    dynamic: dict[Any, Any]
    source: Source
    task: Task
    given: list[str]
    answers: Tensor | None


def write_model(folder: str | Path, model: Model, backbone: bool | Backbone) -> None:
    """Write a model, with its network or what of it is not in `backbone`; see `MultiExitModel.save_pretrained`."""
    whole = backbone is True
    if not whole and any(isinstance(module, FirstExits) for module in model.backbone.modules()):
        raise InvalidInputError(
            "the network ends at an exit, whose head is part of it and would not be written; save it whole, or "
            "save the model that keep_exits was called on, and call keep_exits after loading"
        )
    source = _proved_source(model) if whole or model.source is not None else Source("")
    stored = model.backbone.state_dict()
    if not whole:
        stored = difference(model.backbone, None if isinstance(backbone, bool) else pretrained(source, backbone))
    tensors = {f"backbone.{name}": tensor for name, tensor in stored.items()}
    tensors |= {f"heads.{name}": tensor for name, tensor in model.heads.state_dict().items()}
    dtype = _dtype_of(model.backbone)
    description = {
        "eenet": __version__,
        "source": source.to_dict(),
        "exits": list(model.staged.at),
        "num_classes": model.num_classes,
        "dynamic": {
            str(key): value if isinstance(value, str) else {str(dim): name for dim, name in value.items()}
            for key, value in model.staged.dynamic.items()
        },
        "heads": [describe_head(head) for head in model.heads],
        "task": describe_task(model.task),
        "dtype": str(dtype).removeprefix("torch."),
    }
    shared = ties(model.backbone, model.heads)
    if shared:
        description["ties"] = shared
    if not whole:
        description["backbone"] = describe_backbone(model.backbone, stored, backbone, dtype)
    write_folder(folder, description, tensors, model.staged.example, None if whole else _answers(model))


def read_model(
    folder: str | Path, *, allow: list[str], heads: Sequence[nn.Module] | None, backbone: Backbone | None
) -> Loaded:
    """What a folder's model is made of; see `MultiExitModel.from_pretrained`."""
    root = find_model(folder)
    saved = read_folder(root)
    description = saved.found
    source = Source(description["source"]["name"], description["source"]["options"])
    described, dtype = description.get("backbone"), getattr(torch, description["dtype"])
    if described is None and backbone is not None:
        raise InvalidInputError(f"{str(root)!r} holds the whole model; leave backbone out")
    if described is not None and backbone is None:
        raise missing(root, source, described)
    with torch.random.fork_rng(devices=[]):
        made_of = source.build(allow=allow) if backbone is None else pretrained(source, backbone, allow=allow)
        stored = [name.removeprefix("backbone.") for name in tensor_names(root) if name.startswith("backbone.")]
        if isinstance(backbone, nn.Module) and (stored or _dtype_of(backbone) != dtype):
            made_of = copy.deepcopy(made_of)  # it is the caller's, and stays as it is
        network = made_of.to(dtype).eval()
        made = heads if heads is not None else _described_heads(description, source, network)
    given: list[str] = []
    if described is not None:
        require_same(network, stored, described, dtype)
        given = [f"staged.backbone.{name}" for name in network.state_dict() if name not in set(stored)]
    made = [head.to(dtype) if isinstance(head, nn.Module) else head for head in made]
    tie(network, made, description.get("ties", []))  # after the check of what was given, before it is cut
    try:
        task = task_from(description["task"])
    except InvalidInputError as error:
        raise FileFormatError(f"{str(root)!r} is of a task that cannot be made here: {error}") from error
    return Loaded(
        root,
        network,
        description["exits"],
        description["num_classes"],
        saved.example,
        made,
        {
            key if isinstance(value, dict) else int(key): (
                {int(dim): name for dim, name in value.items()} if isinstance(value, dict) else value
            )
            for key, value in description["dynamic"].items()
        },
        source,
        task,
        given,
        saved.answers,
    )


def require_same_answers(model: Model, expected: Tensor | None) -> None:
    """Raise `InvalidInputError` where a model that was put together again gives other logits for its example."""
    if expected is None:
        return
    got = _answers(model)[:, : expected.shape[1]]
    coarse = _dtype_of(model.backbone).itemsize < 4
    # On a GPU convolutions round to TF32 by default, which moved logits by up to 1.1e-3 of the largest.
    allowed = (0.05 if coarse else 1e-2) * float(expected.abs().nan_to_num(0.0).max())
    if not torch.allclose(expected, got, rtol=0.0, atol=allowed + 1e-5, equal_nan=True):
        apart = float((expected - got).abs().max())
        raise InvalidInputError(
            f"the backbone, {kind_of(model.backbone)}, has the weights of the network that this model was "
            f"saved of, but gives other logits for its example, by up to {apart:.2g}: something that is no weight "
            "differs, such as an activation or the epsilon of a norm; give the network that it was trained with"
        )


def _answers(model: Model) -> Tensor:
    """The logits of every exit for the example, (K, n, classes) float32; of maps the means over their positions."""
    assert isinstance(model, nn.Module)
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    args, kwargs = moved(model.staged.example, device)
    with inferring(model):
        found = [one.float().flatten(2).mean(2) if one.ndim > 2 else one.float() for one in model(*args, **kwargs)]
    return torch.stack(found).cpu()


def _dtype_of(network: nn.Module) -> torch.dtype:
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def _proved_source(model: Model) -> Source:
    """The model's source, after a proof that it gives this very network."""
    source = model.source
    if not model.staged.traced:
        raise InvalidInputError(
            "the stages of this model were written by hand, so it cannot be built again from a name; save its "
            "state_dict() with safetensors and build it in code"
        )
    if source is None:
        raise InvalidInputError(_not_known(model.backbone))
    way_out = (
        "give the options it was built with, as in eenet.attach(..., source=eenet.Source('torchvision:resnet18', "
        "{'num_classes': 10})), or build it with eenet.build_network(...) and leave its modules as they are"
    )
    with torch.random.fork_rng(devices=[]):
        again = source.build(allow=source.paths)
    mine, other = model.backbone.state_dict(), again.state_dict()
    for name in [*mine, *other]:
        shapes = [tuple(state[name].shape) if name in state else "nothing" for state in (mine, other)]
        if shapes[0] != shapes[1]:
            raise InvalidInputError(
                f"the network is not the one that the source {source.name!r} gives: {name!r} has shape {shapes[0]} in "
                f"it and {shapes[1]} in that; {way_out}"
            )
    args, kwargs = model.staged.example
    parameter = next(model.backbone.parameters(), torch.empty(0))
    again.to(parameter.device, parameter.dtype).load_state_dict(mine)
    with inferring(model.backbone), inferring(again):
        expected, got = (logits_in(network(*args, **kwargs), model.num_classes) for network in (model.backbone, again))
    if not torch.allclose(expected, got, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise InvalidInputError(
            f"the network gives other logits than the one that the source {source.name!r} gives with the same weights, "
            f"by up to {(expected - got).abs().max().item():.2g}; {way_out}"
        )
    return source


def _not_known(network: nn.Module) -> str:
    """What keeps a network from being built again, and what to do about it."""
    for number, member in enumerate(network.members if isinstance(network, CascadeNetwork) else ()):
        assert isinstance(member, Member)
        name = f"member {number} of the cascade"
        if Source.of(member.network) is None:
            if isinstance(member.network, CascadeNetwork):
                return f"{name}: {_not_known(member.network)}"
            return (
                f"it is not known how {name}, {kind_of(member.network)}, is built; make it with "
                "eenet.build_network('mypackage.networks:make'), a function that builds it, or with another name such "
                "as 'torchvision:resnet18', and load its weights into that"
            )
        if member.inputs is not None and type(member.inputs) is not InputMap:
            return (
                f"the inputs of {name} are made by {kind_of(member.inputs)}, a module of your own, which "
                "cannot be described; give an InputMap or its options, or make them in the member, which a function "
                "builds: eenet.build_network('mypackage.networks:make')"
            )
    return (
        f"it is not known how this {type(network).__name__} is built; give eenet.attach "
        "source='mypackage.networks:make', a function that builds it, or 'torchvision:resnet18' or the like"
    )


def _described_heads(description: Mapping[str, Any], source: Source, backbone: nn.Module) -> list[nn.Module]:
    described = description["heads"]
    if all(isinstance(one, dict) and one.get("name") in HEADS for one in described):
        return [HEADS[one["name"]](**one["options"]) for one in described]
    if source.registry == "eenet" and source.name not in (CASCADE, FIRST_EXITS):
        return make_heads(backbone, known(source.name.partition(":")[2]).exits(backbone))
    raise InvalidInputError(
        "this model was saved with exit heads that are not eenet's own; pass heads=[...] with new modules of the same "
        "kind, whose weights are then loaded"
    )
