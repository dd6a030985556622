"""Equality, hashing and short representations for classes that hold arrays, and which arrays are refused.

The methods that `dataclass` makes compare arrays with `==`, which raises, and print them in full. Write

    @array_value
    @dataclass(frozen=True)
    class Table: ...

A class that is no dataclass calls `equal`, `hash_of` and `short` in its own methods.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from eenet.errors import InvalidInputError

_Class = TypeVar("_Class", bound=type)

_HASHED = 64  # elements of an array that its hash reads
_SHOWN = 6  # elements of an array, entries of a tuple or mapping, that a representation shows


def array_value(cls: _Class) -> _Class:
    """Give a dataclass `__eq__`, `__hash__` and `__repr__` that are right for arrays, and short.

    Fields with `compare=False` are not compared, those with `repr=False` not shown. A dataclass made with `eq=False` or
    `repr=False` keeps its own methods. A subclass that is a dataclass needs the decorator again.
    """
    made = cls.__dataclass_params__  # type: ignore[attr-defined]
    methods: dict[str, Callable[..., Any]] = {}
    if made.eq:
        methods["__eq__"] = _eq
        if made.frozen:
            methods["__hash__"] = _hash
    if made.repr:
        methods["__repr__"] = _repr
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


def equal(one: object, other: object) -> bool:
    """Whether two values are equal: arrays (also torch's) by shape and elements, NaN equal to NaN.

    Dataclasses are compared by their fields, since the `==` of a user's own raises where they hold arrays.
    """
    if one is other:
        return True
    if _is_array(one) or _is_array(other):
        return _is_array(one) and _is_array(other) and _equal_arrays(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(value, other[name]) for name, value in one.items())
    if isinstance(one, tuple | list) and type(one) is type(other):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    made = getattr(one, "__dataclass_params__", None)
    if made is not None and made.eq and type(one) is type(other) and not isinstance(one, type):
        return all(equal(*pair) for pair in zip(_compared(one), _compared(other), strict=True))
    return bool(one == other)


def hash_of(value: Any) -> int:
    """A hash that is equal for values that are `equal`; of a large array it reads a few elements."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        flat = value.reshape(-1) if value.flags.c_contiguous else value.flatten()
        some = flat[:: max(1, len(flat) // _HASHED)].astype(np.float64) + 0.0  # 0.0 and -0.0 are equal
        some[np.isnan(some)] = np.nan
        return hash((value.shape, some.tobytes()))
    if _is_array(value):
        return hash(tuple(value.shape))
    if isinstance(value, Mapping):
        return hash(frozenset((name, hash_of(entry)) for name, entry in value.items()))
    if isinstance(value, tuple | list):
        return hash((type(value), *map(hash_of, value)))
    return hash("nan") if isinstance(value, float) and value != value else hash(value)


def require_no_mask(value: object, name: str) -> None:
    """Raise `InvalidInputError` for a masked array with masked values: converted, these are numbers like any other."""
    if isinstance(value, np.ma.MaskedArray) and np.any(value.mask):
        raise InvalidInputError(
            f"{name}: {int(np.sum(value.mask))} of {value.size} values are masked, and would be taken as "
            "numbers; give them values with .filled(...), or leave out their samples"
        )


def short(value: object) -> str:
    """A representation of at most a few hundred characters: of an array its dtype, shape, first and last elements."""
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxtuple = self.maxlist = self.maxdict = self.maxset = self.maxfrozenset = _SHOWN
        self.maxstring = self.maxother = 200

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, float | np.floating):
            return f"{x:.6g}"
        if isinstance(x, np.generic):
            return repr(x.item())
        if isinstance(x, bytes) and len(x) > self.maxlong:
            return f"<{len(x)} bytes>"
        if _is_array(x):
            return _short_array(x)
        return super().repr1(x, level)


def _short_array(array: Any) -> str:
    elements = (
        array.reshape(-1)[[*range(min(_SHOWN, array.size)), -1]].tolist() if _is_numpy(array) and array.size else []
    )
    if array.ndim == 1 and array.shape[0] < len(elements):
        return f"[{', '.join(map(short, elements[:-1]))}]"
    shape = "x".join(map(str, array.shape)) or "scalar"
    return f"<{array.dtype} {shape}{f': {short(elements[0])} .. {short(elements[-1])}' if elements else ''}>"


_SHORT = _Short()


def _is_numpy(value: object) -> bool:
    return isinstance(value, np.ndarray)


def _is_array(value: object) -> bool:
    of_torch = type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "ndim")
    return of_torch or _is_numpy(value)


def _equal_arrays(one: Any, other: Any) -> bool:
    if _is_numpy(one) != _is_numpy(other) or tuple(one.shape) != tuple(other.shape):
        return False
    if not _is_numpy(one):
        other = other.to(one.device)
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _compared(value: Any) -> tuple[Any, ...]:
    return tuple(getattr(value, field.name) for field in dataclasses.fields(value) if field.compare)


def _eq(self: Any, other: object) -> Any:
    if type(other) is not type(self):
        return NotImplemented
    return self is other or equal(_compared(self), _compared(other))


def _hash(self: Any) -> int:
    return hash((type(self), hash_of(_compared(self))))


def _repr(self: Any) -> str:
    shown = (f"{field.name}={short(getattr(self, field.name))}" for field in dataclasses.fields(self) if field.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"
