"""The folder of a saved model: a description in JSON, weights and an example in safetensors, no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eenet._files import (
    atomic_folder,
    existing_file,
    give_usual_mode,
    left_aside,
    read_header,
    sha256_of,
    write_json,
    write_tensors,
)
from eenet._pretrained import DESCRIPTION
from eenet._values import array_value
from eenet.errors import FileFormatError, InvalidInputError, kind_of, with_article

WEIGHTS, EXAMPLE = "model.safetensors", "example.safetensors"
FORMAT, SCHEMA = "eenet.multi_exit_model", 2
_WITHOUT_BACKBONE = 2  # the schema of models whose network is not in the folder; others are written as 1
_EXAMPLE_ROWS = 2
_ANSWERS = "logits"


@array_value
@dataclass(frozen=True)
class SavedModel:
    """What a folder says: `found` is the description, as it was written; `example` the inputs (args, kwargs).

    `answers` (K, n, classes) are the logits of the exits for the example; None in folders that do not have them.
    """

    found: dict[str, Any]
    example: tuple[tuple[Any, ...], dict[str, Any]]
    answers: Tensor | None


def write_folder(
    folder: str | Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    example: tuple[tuple[Any, ...], dict[str, Any]],
    answers: Tensor | None = None,
) -> None:
    """Write a model's description, its tensors and two samples of its example; the folder appears whole or not.

    `answers` (K, n, classes) are the logits of the exits for the example, where they are to be kept.
    """
    args, kwargs = example
    examples: list[Tensor] = []
    inputs = {
        "args": [_described(value, examples) for value in args],
        "kwargs": {name: _described(value, examples) for name, value in kwargs.items()},
    }
    # Copies: weights that are tied share memory, which safetensors refuses.
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    sample = {f"example.{number}": tensor.cpu().contiguous().clone() for number, tensor in enumerate(examples)}
    if answers is not None:
        sample[_ANSWERS] = answers[:, :_EXAMPLE_ROWS].clone()
    with atomic_folder(folder, marker=DESCRIPTION, what="saved model") as temporary:
        schema = _WITHOUT_BACKBONE if "backbone" in description else 1
        metadata = {"format": FORMAT, "schema": str(schema)}
        write_tensors(temporary / WEIGHTS, stored, metadata)
        write_tensors(temporary / EXAMPLE, sample, metadata)
        for name in (WEIGHTS, EXAMPLE):
            give_usual_mode(temporary / name)  # safetensors makes its files private
        digests = {name: sha256_of(temporary / name) for name in (WEIGHTS, EXAMPLE)}
        whole = {"format": FORMAT, "schema": schema, **description, "inputs": inputs, "sha256": digests}
        write_json(temporary / DESCRIPTION, whole)


def tensor_names(root: Path) -> list[str]:
    """The names in the file of weights."""
    return read_header(root / WEIGHTS)[0]


def read_folder(root: Path) -> SavedModel:
    """The description and the example in a folder, after a check of its files; the weights are left to the caller."""
    from safetensors import SafetensorError, safe_open

    description = _description(root)
    for name in (WEIGHTS, EXAMPLE):
        if sha256_of(existing_file(root / name)) != description["sha256"].get(name):
            raise FileFormatError(
                f"{str(root / name)!r} is damaged, or belongs to another model than the {DESCRIPTION} beside it: its "
                "SHA-256 is not the one that was written; get the folder again"
            )
    try:
        with safe_open(str(root / EXAMPLE), framework="pt") as handle:
            args = tuple(_value(value, handle) for value in description["inputs"]["args"])
            kwargs = {name: _value(value, handle) for name, value in description["inputs"]["kwargs"].items()}
            answers = handle.get_tensor(_ANSWERS) if _ANSWERS in handle.keys() else None  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError) as error:
        raise FileFormatError(f"the example in {str(root)!r} cannot be read ({error}); get the folder again") from error
    return SavedModel(description, (args, kwargs), answers)


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
        f"the example that the model was cut with holds {kind_of(value)}, which cannot be written as JSON; cut "
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
        holds = f"no such folder{left_aside(root)}"
        if root.is_dir():
            holds = ", ".join(sorted(file.name for file in root.iterdir())[:8])
        raise InvalidInputError(
            f"{str(root)!r} holds no {DESCRIPTION} ({holds or 'it is empty'}); expected a folder that save_pretrained "
            "wrote"
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{str(path)!r} is damaged ({error}); get the folder again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise FileFormatError(f"{str(path)!r} does not describe a model: expected the format {FORMAT!r}")
    schema = description.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise FileFormatError(
            f"{str(path)!r} has schema {schema!r}, this eenet reads up to {SCHEMA}: upgrade eenet to read it"
        )
    problem = _problem(description)
    if problem:
        raise FileFormatError(f"{str(path)!r} is damaged ({problem}); get the folder again")
    return description


def _problem(description: dict[str, Any]) -> str | None:
    """What of a description is not as `write_folder` writes it."""
    kinds: dict[str, type] = {
        "source": dict, "exits": list, "num_classes": int, "dynamic": dict, "inputs": dict, "heads": list,
        "task": dict, "dtype": str, "sha256": dict,
    }  # fmt: skip
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            return f"{key!r} is {description.get(key)!r}, expected {with_article(kind.__name__)}"
    ties = description.get("ties", [])  # models in which nothing is shared have none
    if not isinstance(ties, list) or not all(isinstance(group, list) for group in ties):
        return f"'ties' is {ties!r}, expected lists of names"
    if not all(isinstance(name, str) for group in ties for name in group):
        return "'ties' holds what is no name"
    without = description.get("backbone")
    if without is not None and not (isinstance(without, dict) and isinstance(without.get("sha256"), str)):
        return f"'backbone' is {without!r}, expected a mapping with sha256"
    source, inputs = description["source"], description["inputs"]
    if not isinstance(source.get("name"), str) or not isinstance(source.get("options"), dict):
        return "'source' has no name and options"
    if not isinstance(inputs.get("args"), list) or not isinstance(inputs.get("kwargs"), dict):
        return "'inputs' has no args and kwargs"
    if len(description["heads"]) != len(description["exits"]):
        return f"{len(description['heads'])} heads for {len(description['exits'])} exits"
    if not isinstance(getattr(torch, description["dtype"], None), torch.dtype):
        return f"'dtype' is {description['dtype']!r}"
    return None
