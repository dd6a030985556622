"""Checkpoints: tensors in safetensors, everything else as JSON in the same file's header. Nothing on disk runs code.

Lightning's own checkpoints are pickles, so they are not used. One file holds one state of the run; it is written
beside the old one, brought to disk, and then takes its place in one step. A process killed at any moment leaves
either the old checkpoint or the new one, never half of one and never two halves of different ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet._files import atomic_path, existing_file, require_safetensors
from eenet.errors import FileFormatError, InvalidInputError, OutOfSpaceError

_FORMAT = "eenet.checkpoint"
_SCHEMA = 1
_SHOWN = 5
# The spelling of schema 1, kept so that older checkpoints load.
_MODEL, _OPTIMIZER, _NUMBERS = "model.", "optimiser.", "optimiser_numbers"
_TRAINED = "trained."  # where the model's weights are averages: those that training goes on with


def save_checkpoint(
    path: Path,
    model: nn.Module,
    header: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None = None,
    trained: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the weights, and where given the optimizer's state, with a JSON-ready header; atomically.

    `trained` are the weights that training goes on with, where those of the model are averages.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
    tensors |= {_TRAINED + name: tensor for name, tensor in (trained or {}).items()}
    numbers: dict[str, dict[str, Any]] = {}
    if optimizer is not None:
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}{index}.{name}"] = value
                else:
                    numbers.setdefault(str(index), {})[name] = value
    text = json.dumps({**header, _NUMBERS: numbers}, allow_nan=False)
    metadata = {"format": _FORMAT, "schema": str(_SCHEMA), "header": text}
    with atomic_path(path) as temporary:
        try:
            save_file(_separate(tensors), str(temporary), metadata=metadata)
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
        except (OSError, SafetensorError) as error:
            raise OutOfSpaceError(
                f"cannot write the checkpoint {str(path)!r}: {error}; the one before it, if any, is kept: free some "
                "space and resume"
            ) from error


def load_checkpoint(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Load a checkpoint's weights into `model`; gives its header.

    Raises `FileFormatError` for a file that is no checkpoint, and `InvalidInputError`, which lists the first names
    that do not match, for a checkpoint of another architecture. The model is then left as it was.

    Parameters
    ----------
    model : Module
        A model of the same architecture.
    path : path
        `last.safetensors` or `best.safetensors` of a run.

    Examples
    --------
    >>> import eenet, torch
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    >>> from eenet.training import TrainConfig, load_checkpoint
    >>> model = eenet.attach(network, ["1"], example=torch.randn(2, 4))
    >>> batches = [(torch.randn(64, 4), torch.arange(64) % 3)]
    >>> config = TrainConfig(epochs=1, accelerator="cpu", progress=False, tensorboard=False)
    >>> result = eenet.train(model, batches, batches, config=config, out="checkpoints")
    >>> isinstance(load_checkpoint(model, result.best_checkpoint), dict)
    True
    """
    tensors, header = _read(path)
    _load_weights(model, path, tensors)
    return header


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> dict[str, Tensor]:
    """Load weights and the optimizer's state; gives the trained weights, where those of the model are averages."""
    tensors, header = _read(path)
    _load_weights(model, path, tensors)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in header[_NUMBERS].items()}
    for key, tensor in tensors.items():
        if key.startswith(_OPTIMIZER):
            index, name = key[len(_OPTIMIZER) :].split(".", 1)
            if int(index) >= len(parameters):
                raise InvalidInputError(
                    f"{str(path)!r} holds the optimizer's state of {int(index) + 1} parameters, the model has "
                    f"{len(parameters)} that learn; freeze the same ones as in the run to be resumed"
                )
            state.setdefault(int(index), {})[name] = _laid_out_as(parameters[int(index)], tensor)
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
    return {key[len(_TRAINED) :]: tensor for key, tensor in tensors.items() if key.startswith(_TRAINED)}


def read_header(path: Path) -> dict[str, Any]:
    """The header of a checkpoint alone."""
    return _open(path, tensors=False)[1]


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left half-written beside a checkpoint."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        left.unlink(missing_ok=True)


def not_finite(model: nn.Module) -> list[str]:
    """The names of the weights and buffers that hold NaN or an infinity."""
    return [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]


def _read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return _open(path, tensors=True)


def _open(path: str | Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    source = existing_file(path)
    require_safetensors(source)
    try:
        with safe_open(str(source), framework="pt") as handle:
            metadata = handle.metadata() or {}
            names = handle.keys() if tensors else []
            loaded = {name: handle.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise FileFormatError(
            f"{str(source)!r} is not a whole safetensors file ({error}); delete it and start the run again"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise FileFormatError(f"{str(source)!r} holds {metadata.get('format') or 'no eenet data'!r}, not {_FORMAT!r}")
    version = metadata.get("schema", "")
    if not version.isdecimal() or int(version) > _SCHEMA:
        raise FileFormatError(
            f"{str(source)!r} has schema {version!r}, this eenet reads up to {_SCHEMA}: upgrade eenet to read it"
        )
    try:
        header = json.loads(metadata["header"])
    except (KeyError, json.JSONDecodeError) as error:
        raise FileFormatError(f"{str(source)!r} has a damaged header ({error})") from error
    return loaded, dict(header)


def _load_weights(model: nn.Module, path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    theirs = {name[len(_MODEL) :]: tensor for name, tensor in tensors.items() if name.startswith(_MODEL)}
    mine = model.state_dict()
    shapes = [
        f"{name} {tuple(theirs[name].shape)} instead of {tuple(mine[name].shape)}"
        for name in mine
        if name in theirs and theirs[name].shape != mine[name].shape
    ]
    faults = [
        _listed("it lacks", [name for name in mine if name not in theirs]),
        _listed("it has besides", [name for name in theirs if name not in mine]),
        _listed("of other shapes are", shapes),
    ]
    if any(faults):
        raise InvalidInputError(
            f"{str(path)!r} is a checkpoint of another architecture: {'; '.join(filter(None, faults))}; build the "
            "model as it was for that run"
        )
    model.load_state_dict(theirs)


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}"


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the host, no two of which share memory: safetensors writes no others."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        on_host = tensor.detach().cpu().contiguous()
        if on_host.untyped_storage().nbytes() != on_host.nbytes or on_host.data_ptr() in seen:
            on_host = on_host.clone(memory_format=torch.contiguous_format)
        seen.add(on_host.data_ptr())
        separate[name] = on_host
    return separate


def _laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` with the memory layout of its parameter: another one could round differently."""
    if tensor.shape != parameter.shape:
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, device="cpu").copy_(tensor)
