"""The example that a cut is traced with, and the form that every later call must have."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eenet._compat import pytree
from eenet.errors import InvalidInputError

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


@dataclass(frozen=True)
class _Expected:
    """What one tensor input must look like: its name for messages, kind of dtype, and sizes (None where dynamic)."""

    name: str
    dtype: torch.dtype
    kind: str
    sizes: tuple[int | None, ...]
    tail: tuple[int, ...] | None


class InputForm:
    """The structure of a model's inputs; flattens calls into tensors and refuses those that do not fit."""

    def __init__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Mapping[int, str], positional: Sequence[str]
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.dynamic = dict(dynamic)
        self._keys = tuple(kwargs)
        self.leaves, self._spec = pytree.tree_flatten((args, kwargs))
        # Nearly every model takes plain tensors; then flattening a call needs no pytree walk.
        plain = [*args, *kwargs.values()]
        self._plain = len(plain) == len(self.leaves) and all(a is b for a, b in zip(plain, self.leaves, strict=True))
        self._positional = tuple(positional)
        self.names = _leaf_names(args, kwargs, positional)
        self.is_tensor = tuple(isinstance(leaf, Tensor) for leaf in self.leaves)
        self._all_tensors = all(self.is_tensor)
        self._expected = tuple(
            _expected(name, leaf, self.dynamic)
            for name, leaf in zip(self.names, self.leaves, strict=True)
            if isinstance(leaf, Tensor)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> InputForm:
        # Nothing in it ever changes, so copies of a model share it.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # How trees are flattened is worked out again: its description is no stable format.
        return InputForm, (self.args, self.kwargs, self.dynamic, self._positional)

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensor inputs of the example, in the order of `flatten`."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Tensor))

    def with_tensors(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example's arguments with its tensors replaced: `(args, kwargs)` of a call."""
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return tuple(args), dict(kwargs)

    def moved(self, device: torch.device | None, old: torch.dtype | None, new: torch.dtype | None) -> InputForm:
        """The same form on another device, its tensors of dtype `old` turned into `new`."""
        tensors = [
            tensor.to(device=device, dtype=new if old is not None and tensor.dtype == old else tensor.dtype)
            for tensor in self.tensors()
        ]
        args, kwargs = self.with_tensors(tensors)
        return InputForm(args, kwargs, self.dynamic, self._positional)

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The tensors of a call, in order; raises InvalidInputError where they differ from the example."""
        if len(args) != len(self.args) or len(kwargs) != len(self._keys):
            args, kwargs = self._as_example(args, kwargs)
        try:
            values = [*args, *[kwargs[key] for key in self._keys]] if self._keys else list(args)
        except KeyError:
            raise self._wrong_arguments(args, kwargs) from None
        if not self._plain:
            values, spec = pytree.tree_flatten((args, {key: kwargs[key] for key in self._keys}))
            if spec != self._spec:
                raise InvalidInputError(
                    f"the inputs are nested as {spec}, but the example that the model was cut with as {self._spec}; "
                    "pass them in the structure of the example"
                )
        if not self._all_tensors:
            values = self._without_settings(values)
        batch = -1
        for tensor, expected in zip(values, self._expected, strict=True):
            if not isinstance(tensor, Tensor):
                raise InvalidInputError(f"input {expected.name!r} is a {type(tensor).__name__}, expected a tensor")
            shape = tensor.shape
            if (
                (tensor.dtype != expected.dtype and not _takes(expected, tensor))
                or len(shape) != len(expected.sizes)
                or (shape[1:] != expected.tail if expected.tail is not None else not _fits(shape, expected.sizes))
            ):
                raise self._misfit(tensor, expected)
            if batch < 0:
                batch = shape[0]
            elif shape[0] != batch:
                raise InvalidInputError(
                    f"input {expected.name!r} has batch size {shape[0]}, but {self._expected[0].name!r} has {batch}; "
                    "every tensor input needs the same number of samples on dimension 0"
                )
        return tuple(values)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments: the positional ones, then the keywords."""
        return (*self._positional, *self._keys)

    def _as_example(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call that names what the example gives by position, as the example gives it."""
        left = dict(kwargs)
        named = [left.pop(name) for name in self._positional[len(args) :] if name in left]
        if len(args) + len(named) != len(self.args) or sorted(left) != sorted(self._keys):
            raise self._wrong_arguments(args, kwargs)
        return (*args, *named), left

    def _without_settings(self, values: list[Any]) -> list[Any]:
        tensors = []
        for name, value, fixed, is_tensor in zip(self.names, values, self.leaves, self.is_tensor, strict=True):
            if is_tensor:
                tensors.append(value)
            elif isinstance(value, Tensor) or type(value) is not type(fixed) or value != fixed:
                shown = "a tensor" if isinstance(value, Tensor) else repr(value)
                raise InvalidInputError(
                    f"input {name!r} is {shown}, but the model was cut with {fixed!r}, which is fixed in its stages; "
                    "cut the model again with an example that has the value you need"
                )
        return tensors

    def _wrong_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> InvalidInputError:
        def shown(count: int, keys: Sequence[str]) -> str:
            return f"{count} positional and keywords [{', '.join(keys)}]"

        return InvalidInputError(
            f"got {shown(len(args), list(kwargs))} arguments, but the model was cut with an example of "
            f"{shown(len(self.args), self._keys)}; pass the arguments the way the example does"
        )

    @staticmethod
    def _misfit(tensor: Tensor, expected: _Expected) -> InvalidInputError:
        if _kind(tensor.dtype) != expected.kind:
            return InvalidInputError(
                f"input {expected.name!r} has dtype {tensor.dtype}, but the model was cut with {expected.dtype}; "
                f"pass a tensor of {expected.kind} dtype"
            )
        if tensor.dtype != expected.dtype and not _takes(expected, tensor):
            return InvalidInputError(
                f"input {expected.name!r} has dtype {tensor.dtype}, but the model works in {expected.dtype}; convert "
                f"the input with .to({expected.dtype}), or the model with .to({tensor.dtype})"
            )
        sizes = ", ".join("any" if size is None else str(size) for size in expected.sizes)
        return InvalidInputError(
            f"input {expected.name!r} has shape {tuple(tensor.shape)}, expected ({sizes}); "
            "cut the model again with an example of that shape, or name the dimension in `dynamic`"
        )


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
        f"the example is a {type(example).__name__}, expected a tensor, a tuple of positional arguments or a mapping "
        "of keyword arguments"
    )


def form_of(model: nn.Module, example: Example, dynamic: Mapping[int, str] | None) -> InputForm:
    """The form of a model's inputs, from an example: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Batch 1 is doubled, since torch.export treats a size of 1 as fixed. Raises InvalidInputError for inputs that no cut
    can use.
    """
    args, kwargs = arguments_of(example)
    dynamic = dict(dynamic or {})
    _check_dynamic(dynamic)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    positional = _positional_names(model, args, kwargs)
    _check_leaves(_leaf_names(args, kwargs, positional), leaves, dynamic)
    new_args, new_kwargs = pytree.tree_unflatten([_rows(leaf) for leaf in leaves], spec)
    return InputForm(tuple(new_args), dict(new_kwargs), dynamic, positional)


def _check_dynamic(dynamic: Mapping[int, str]) -> None:
    for dim, name in dynamic.items():
        if not isinstance(dim, int) or dim < 1:
            raise InvalidInputError(f"`dynamic` names dimension {dim!r}; expected 1 or more, since 0 is the batch")
        if not isinstance(name, str) or not name.isidentifier() or name == "batch":
            raise InvalidInputError(f"`dynamic` calls dimension {dim} {name!r}; expected an identifier, not 'batch'")


def _check_leaves(names: Sequence[str], leaves: Sequence[Any], dynamic: Mapping[int, str]) -> None:
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
        for dim, called in dynamic.items():
            if dim < leaf.ndim and leaf.shape[dim] < 2:
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


def _expected(name: str, leaf: Tensor, dynamic: Mapping[int, str]) -> _Expected:
    sizes = tuple(None if dim == 0 or dim in dynamic else size for dim, size in enumerate(leaf.shape))
    tail = tuple(leaf.shape[1:]) if None not in sizes[1:] else None
    return _Expected(name, leaf.dtype, _kind(leaf.dtype), sizes, tail)


def _fits(shape: Sequence[int], sizes: tuple[int | None, ...]) -> bool:
    return all(expected is None or size == expected for size, expected in zip(shape, sizes, strict=True))


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "floating-point"
    if dtype.is_complex:
        return "complex"
    return "boolean" if dtype == torch.bool else "integer"


def _takes(expected: _Expected, tensor: Tensor) -> bool:
    """Whether a dtype that differs from the expected one can stand in for it.

    Any integer can. A float of another precision fails in the first operator that meets a parameter, or makes numbers
    of two precisions where there is none; only autocast converts them, except to and from double.
    """
    if _kind(tensor.dtype) != expected.kind:
        return False
    if expected.kind != "floating-point":
        return True
    return torch.is_autocast_enabled(tensor.device.type) and torch.float64 not in (tensor.dtype, expected.dtype)


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


def _leaf_names(args: tuple[Any, ...], kwargs: dict[str, Any], positional: Sequence[str]) -> tuple[str, ...]:
    """What messages call each leaf: the name of its argument, and its place in it where that is nested."""
    roots = [*zip(positional, args, strict=True), *kwargs.items()]
    return tuple(
        name + pytree.keystr(path) for name, value in roots for path, _ in pytree.tree_flatten_with_path(value)[0]
    )
