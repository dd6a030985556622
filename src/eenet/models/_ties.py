"""Tensors that several modules of a model share: found, written down by name, and shared again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

Place = tuple[nn.Module, str]
"""A module and the name of a tensor that is its own."""


def ties(network: nn.Module, heads: Iterable[nn.Module]) -> list[list[str]]:
    """The names of tensors that are one and the same, each group in the order of the modules."""
    names: dict[int, list[str]] = {}
    for name, place in _named(network, heads):
        names.setdefault(id(getattr(*place)), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def tie(network: nn.Module, heads: Iterable[nn.Module], groups: Sequence[Sequence[str]]) -> None:
    """Share what `ties` found; names and shapes that do not fit are left to the check of the weights."""
    places = dict(_named(network, heads))
    for group in groups:
        _share([places[name] for name in group if name in places])


def shared_buffers(module: nn.Module) -> list[list[Place]]:
    """Where the same buffer is held by several modules."""
    places: dict[int, list[Place]] = {}
    for one in module.modules():
        for key, buffer in one.named_buffers(recurse=False, remove_duplicate=False):
            places.setdefault(id(buffer), []).append((one, key))
    return [group for group in places.values() if len(group) > 1]


def share_buffers(groups: Iterable[Sequence[Place]]) -> None:
    """Let each group hold one buffer again, after a conversion that gave every module one of its own."""
    for group in groups:
        _share(group)


def _share(places: Sequence[Place]) -> None:
    kept: Any = None
    for module, key in places:
        tensor: Tensor = getattr(module, key)
        if kept is None:
            kept = tensor
        elif tensor is not kept and type(tensor) is type(kept) and tensor.shape == kept.shape:
            setattr(module, key, kept)


def _named(network: nn.Module, heads: Iterable[nn.Module]) -> Iterator[tuple[str, Place]]:
    """The tensors by their names in the file; a head that comes again is a head of its own there."""
    for prefix, part in [("backbone", network), *((f"heads.{number}", head) for number, head in enumerate(heads))]:
        for path, module in part.named_modules(prefix=prefix):
            own = (module.named_parameters, module.named_buffers)
            for key, _ in (pair for find in own for pair in find(recurse=False, remove_duplicate=False)):
                yield f"{path}.{key}", (module, key)
