"""A whole multi-exit model in a folder: a description in JSON, weights in safetensors, no code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet._files import atomic_folder, existing_file, give_usual_mode, sha256_of, write_json
from eenet.errors import CutError, FileFormatError, InvalidInputError
from eenet.models._heads import HEADS
from eenet.models._modes import inferring
from eenet.models._multi_exit import MultiExitModel, attach
from eenet.models._outputs import logits_in
from eenet.models._sources import Source, rebuild
from eenet.networks._weights import load_weights
from eenet.tasks import Task, describe_task, task_from

DESCRIPTION, WEIGHTS, EXAMPLE = "model.json", "model.safetensors", "example.safetensors"
FORMAT, SCHEMA = "eenet.multi_exit_model", 1
_EXAMPLE_ROWS = 2


def save_pretrained(model: MultiExitModel, folder: str | Path) -> None:
    """Write a model to a folder; see `MultiExitModel.save_pretrained`."""
    from safetensors.torch import save_file

    from eenet._version import __version__

    source = _source(model)
    tensors = {f"backbone.{name}": tensor for name, tensor in model.backbone.state_dict().items()}
    tensors |= {f"heads.{name}": tensor for name, tensor in model.heads.state_dict().items()}
    args, kwargs = model.staged.example
    examples: list[Tensor] = []
    inputs = {
        "args": [_described(value, examples) for value in args],
        "kwargs": {name: _described(value, examples) for name, value in kwargs.items()},
    }
    # Copies: weights that are tied share memory, which safetensors refuses.
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    sample = {f"example.{number}": tensor.cpu().contiguous().clone() for number, tensor in enumerate(examples)}
    description = {
        "format": FORMAT,
        "schema": SCHEMA,
        "eenet": __version__,
        "source": source.to_dict(),
        "exits": list(model.staged.at),
        "num_classes": model.num_classes,
        "dynamic": {str(dim): name for dim, name in model.staged.dynamic.items()},
        "inputs": inputs,
        "heads": [_head(head) for head in model.heads],
        "task": describe_task(model.task),
        "dtype": _dtype_name(model.backbone),
    }
    with atomic_folder(folder, marker=DESCRIPTION, what="saved model") as temporary:
        metadata = {"format": FORMAT, "schema": str(SCHEMA)}
        save_file(stored, temporary / WEIGHTS, metadata=metadata)
        save_file(sample, temporary / EXAMPLE, metadata=metadata)
        for name in (WEIGHTS, EXAMPLE):
            give_usual_mode(temporary / name)  # safetensors makes its files private
        digests = {name: sha256_of(temporary / name) for name in (WEIGHTS, EXAMPLE)}
        write_json(temporary / DESCRIPTION, description | {"sha256": digests})


def from_pretrained(
    folder: str | Path, *, allow: Iterable[str] = (), heads: Sequence[nn.Module] | None = None
) -> MultiExitModel:
    """The model in a folder; see `MultiExitModel.from_pretrained`."""
    from safetensors import SafetensorError, safe_open

    root = Path(folder)
    found = _description(root)
    for name in (WEIGHTS, EXAMPLE):
        if sha256_of(existing_file(root / name)) != found["sha256"].get(name):
            raise FileFormatError(
                f"{str(root / name)!r} is damaged, or belongs to another model than the {DESCRIPTION} beside it: its "
                "SHA-256 is not the one that was written; get the folder again"
            )
    source = Source(found["source"]["name"], found["source"]["options"])
    with torch.random.fork_rng(devices=[]):
        backbone = rebuild(source, allow=list(allow)).to(getattr(torch, found["dtype"])).eval()
        made = heads if heads is not None else _heads(found, source, backbone)
    try:
        with safe_open(str(root / EXAMPLE), framework="pt") as handle:
            args = tuple(_value(value, handle) for value in found["inputs"]["args"])
            kwargs = {name: _value(value, handle) for name, value in found["inputs"]["kwargs"].items()}
    except (SafetensorError, KeyError, TypeError) as error:
        raise FileFormatError(f"the example in {str(root)!r} cannot be read ({error}); get the folder again") from error
    example: Any = kwargs if kwargs and not args else args
    try:
        model = attach(
            backbone,
            found["exits"],
            found["num_classes"],
            example,
            heads=made,
            dynamic={int(dim): name for dim, name in found["dynamic"].items()},
            source=source,
            task=_task(found["task"], root),
        )
    except CutError as error:
        raise FileFormatError(
            f"{str(root)!r} was saved with exits at {found['exits']}, but the network that {source.name!r} gives here "
            f"cannot be cut there ({error}); install the version of the library that it was saved with"
        ) from error
    load_weights(model, root / WEIGHTS, rename=_name_in_model)
    return model.eval()


def _task(found: dict[str, Any], root: Path) -> Task:
    try:
        return task_from(found)
    except InvalidInputError as error:
        raise FileFormatError(f"{str(root)!r} is of a task that cannot be made here: {error}") from error


def _name_in_model(name: str) -> str:
    return f"staged.{name}" if name.startswith("backbone.") else name


def _source(model: MultiExitModel) -> Source:
    """The model's source, after a proof that it gives this very network."""
    source = model.source
    if not model.staged.traced:
        raise InvalidInputError(
            "the stages of this model were written by hand, so it cannot be built again from a name; save its "
            "state_dict() with safetensors and build it in code"
        )
    if source is None:
        raise InvalidInputError(
            f"it is not known how this {type(model.backbone).__name__} is built; make it with eenet.build_network, or "
            "pass source='torchvision:resnet18' or the like to eenet.attach"
        )
    way_out = (
        "give the options it was built with, as in eenet.attach(..., source=eenet.Source('torchvision:resnet18', "
        "{'num_classes': 10})), or build it with eenet.build_network(...) and leave its modules as they are"
    )
    with torch.random.fork_rng(devices=[]):
        again = rebuild(source, allow=[source.name])
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


def _head(head: nn.Module) -> dict[str, Any] | None:
    """How a head is made again; None for a module of the caller's own."""
    name, options = type(head).__name__, getattr(head, "options", None)
    if HEADS.get(name) is not type(head) or not isinstance(options, dict):
        return None
    return {"name": name, "options": options}


def _heads(found: Mapping[str, Any], source: Source, backbone: nn.Module) -> list[nn.Module]:
    described = found["heads"]
    if all(isinstance(one, dict) and one.get("name") in HEADS for one in described):
        return [HEADS[one["name"]](**one["options"]) for one in described]
    if source.registry == "eenet":
        from eenet.models._registry import make_heads, spec

        return make_heads(backbone, spec(source.name.partition(":")[2]).exits(backbone))
    raise InvalidInputError(
        "this model was saved with exit heads that are not eenet's own; pass heads=[...] with new modules of the same "
        "kind, whose weights are then loaded"
    )


def _described(value: Any, tensors: list[Tensor]) -> dict[str, Any]:
    """An argument of the example as JSON; its tensors are put in a list."""
    if isinstance(value, Tensor):
        tensors.append(value[:_EXAMPLE_ROWS])
        return {"tensor": f"example.{len(tensors) - 1}"}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _described(item, tensors) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_described(item, tensors) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise InvalidInputError(
        f"the example that the model was cut with holds a {type(value).__name__}, which cannot be written as JSON; cut "
        "it with tensors, numbers, strings, lists and mappings"
    )


def _value(described: Mapping[str, Any], handle: Any) -> Any:
    ((kind, content),) = described.items()
    if kind == "tensor":
        return handle.get_tensor(content)
    if kind == "mapping":
        return {key: _value(item, handle) for key, item in content.items()}
    if kind in ("list", "tuple"):
        items = [_value(item, handle) for item in content]
        return items if kind == "list" else tuple(items)
    return content


def _description(root: Path) -> dict[str, Any]:
    path = root / DESCRIPTION
    if not path.is_file():
        holds = ", ".join(sorted(file.name for file in root.iterdir())[:8]) if root.is_dir() else "no such folder"
        raise InvalidInputError(
            f"{str(root)!r} holds no {DESCRIPTION} ({holds or 'it is empty'}); expected a folder that save_pretrained "
            "wrote"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{str(path)!r} is damaged ({error}); get the folder again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FileFormatError(f"{str(path)!r} does not describe a model: expected the format {FORMAT!r}")
    schema = found.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise FileFormatError(
            f"{str(path)!r} has schema {schema!r}, this eenet reads up to {SCHEMA}: upgrade eenet to read it"
        )
    problem = _problem(found)
    if problem:
        raise FileFormatError(f"{str(path)!r} is damaged ({problem}); get the folder again")
    return found


def _problem(found: dict[str, Any]) -> str | None:
    """What of a description is not as `save_pretrained` writes it."""
    kinds: dict[str, type] = {
        "source": dict, "exits": list, "num_classes": int, "dynamic": dict, "inputs": dict, "heads": list,
        "task": dict, "dtype": str, "sha256": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(found.get(key), kind):
            return f"{key!r} is {found.get(key)!r}, expected a {kind.__name__}"
    source, inputs = found["source"], found["inputs"]
    if not isinstance(source.get("name"), str) or not isinstance(source.get("options"), dict):
        return "'source' has no name and options"
    if not isinstance(inputs.get("args"), list) or not isinstance(inputs.get("kwargs"), dict):
        return "'inputs' has no args and kwargs"
    if len(found["heads"]) != len(found["exits"]):
        return f"{len(found['heads'])} heads for {len(found['exits'])} exits"
    if not isinstance(getattr(torch, found["dtype"], None), torch.dtype):
        return f"'dtype' is {found['dtype']!r}"
    return None


def _dtype_name(network: nn.Module) -> str:
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    return str(dtype).removeprefix("torch.")
