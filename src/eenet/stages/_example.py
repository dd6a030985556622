"""From the example that a network is cut with to the form that every later call must have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eenet._compat import pytree
from eenet.errors import InvalidInputError, kind_of
from eenet.stages._stage import Dynamic, InputForm, dynamic_dims, leaf_names

# What the code of a network can raise when it is run.
MODEL_ERRORS = (
    RuntimeError, TypeError, ValueError, AssertionError, LookupError, AttributeError, NameError, ArithmeticError,
)  # fmt: skip

Example = Tensor | Sequence[Any] | Mapping[str, Any]

BATCH = 3
"""The samples that a network is traced and checked with, so that what one call keeps for a batch size is the same."""

# Rows of the example that are kept: two make a batch that torch.export does not specialize on, a third gives the
# self-check other values to permute; more would only hold memory for as long as the model lives.
_KEPT_ROWS = 3


def arguments_of(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a call, from an example; raises InvalidInputError for what is none."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        if not all(isinstance(key, str) for key in example):
            raise InvalidInputError(f"the example is a mapping with keys {list(example)}, expected argument names")
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise InvalidInputError(
        f"the example is {kind_of(example)}, expected a tensor, a tuple of positional arguments or a mapping "
        "of keyword arguments"
    )


def form_of(model: nn.Module, example: Example, dynamic: Dynamic | None) -> InputForm:
    """The form of a model's inputs, from an example: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Batch 1 is doubled, since torch.export treats a size of 1 as fixed. Raises InvalidInputError for inputs that no cut
    can use.
    """
    args, kwargs = arguments_of(example)
    wanted: dict[Any, Any] = dict(dynamic or {})
    leaves, spec = pytree.tree_flatten((args, kwargs))
    positional = _positional_names(model, args, kwargs)
    names = leaf_names(args, kwargs, positional)
    _check_dynamic(wanted, {n: leaf.ndim for n, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)})
    _check_leaves(names, leaves, wanted)
    new_args, new_kwargs = pytree.tree_unflatten([_rows(leaf) for leaf in leaves], spec)
    return InputForm(tuple(new_args), dict(new_kwargs), wanted, positional)


def _check_dynamic(dynamic: Mapping[Any, Any], inputs: Mapping[str, int]) -> None:
    """Raise InvalidInputError for what `dynamic` cannot be; `inputs` are the dimensions of each tensor by its name."""
    if any(isinstance(key, str) for key in dynamic):
        for name, own in dynamic.items():
            if name not in inputs:
                raise InvalidInputError(
                    f"`dynamic` names {name!r}, expected numbers of dimensions alone, which are those of all inputs, "
                    f"or names of inputs alone, among {list(inputs)}"
                )
            if not isinstance(own, Mapping):
                raise InvalidInputError(
                    f"`dynamic` has {own!r} for the input {name!r}, expected dimensions and their names: "
                    f"{{{name!r}: {{1: 'time'}}}}"
                )
            _check_dimensions(own)
            beyond = next((dim for dim in own if dim >= inputs[name]), None)
            if beyond is not None:
                raise InvalidInputError(
                    f"`dynamic` names dimension {beyond} of the input {name!r}, which has {inputs[name]} dimensions, "
                    "counted from 0"
                )
    else:
        _check_dimensions(dynamic)


def _check_dimensions(dynamic: Mapping[Any, Any]) -> None:
    for dim, name in dynamic.items():
        if not isinstance(dim, int) or dim < 1:
            raise InvalidInputError(f"`dynamic` names dimension {dim!r}; expected 1 or more, since 0 is the batch")
        if not isinstance(name, str) or not name.isidentifier() or name == "batch":
            raise InvalidInputError(f"`dynamic` calls dimension {dim} {name!r}; expected an identifier, not 'batch'")


def _check_leaves(names: Sequence[str], leaves: Sequence[Any], dynamic: Mapping[Any, Any]) -> None:
    first: tuple[str, int] | None = None
    for name, leaf in zip(names, leaves, strict=True):
        if not isinstance(leaf, Tensor):
            continue
        if leaf.ndim == 0:
            raise InvalidInputError(
                f"example input {name!r} is a scalar tensor; every tensor input needs the batch on dimension 0 "
                "(a setting that is not per sample can be a Python number)"
            )
        size = leaf.shape[0]
        if size == 0:
            raise InvalidInputError(f"example input {name!r} has batch size 0; give an example of at least one sample")
        if first is not None and size != first[1]:
            raise InvalidInputError(
                f"example input {name!r} has batch size {size}, but {first[0]!r} has {first[1]}; "
                "every tensor input needs the same number of samples on dimension 0"
            )
        first = first or (name, size)
        for dim, called in dynamic_dims(name, leaf.ndim, dynamic).items():
            if leaf.shape[dim] < 2:
                raise InvalidInputError(
                    f"example input {name!r} has size {leaf.shape[dim]} in the dynamic dimension {dim} ({called!r}); "
                    "give an example of size 2 or more there, since a size of 1 is traced as fixed"
                )
    if first is None:
        raise InvalidInputError("the example holds no tensor; expected at least one, with the batch on dimension 0")


def _rows(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    rows = leaf.detach()[:_KEPT_ROWS]
    # A copy: the caller may change their tensor, and a later capture in training mode uses this one.
    return torch.cat([rows, rows]) if rows.shape[0] == 1 else rows.clone()


def _positional_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """The names of the model's positional arguments; raises InvalidInputError where the model takes no such call."""
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        hint = ""
        if len(args) > 1:
            hint = "; a tuple or list holds the arguments of a call: of a batch (inputs, labels) give the inputs alone"
        raise InvalidInputError(f"the example does not fit {type(model).__name__}.forward: {error}{hint}") from error
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}[{position}]" for position in range(len(args) - len(names))]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return names[: len(args)]
