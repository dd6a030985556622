"""Tensors that a network takes, described; and which of their sizes it takes: found by running it on stand-ins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError

Array = NDArray[Any]
Inputs = dict[str, Array]

_SAVED = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor at a boundary: its name, dtype, shape (symbols by name) and the dimension the samples lie along.

    `batch_dim` is None for a constant: a tensor that is the same whatever the batch.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    batch_dim: int | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape), "batch_dim": self.batch_dim}

    @classmethod
    def from_dict(cls, data: Any) -> TensorSpec:
        """The tensor of what `to_dict` gave; raises ValueError for anything else."""
        spec = cls(str(data["name"]), data["dtype"], tuple(data["shape"]), data["batch_dim"])
        sizes = all(isinstance(size, str) or (type(size) is int and size >= 0) for size in spec.shape)
        if spec.dtype not in _SAVED or not sizes:
            raise ValueError(f"{dict(data)} describes no tensor")
        if spec.batch_dim is not None and spec.batch_dim not in range(len(spec.shape)):
            raise ValueError(f"{spec.name!r} has its samples along dimension {spec.batch_dim!r} of {len(spec.shape)}")
        return spec


_OUTSIDE = re.compile(r"indices element out of data bounds.*inclusive range \[-(\d+),")  # of ONNX Runtime
_OUTSIDE_IN_TORCH = "index out of range in self"


def outside_table(error: BaseException | None) -> str | None:
    """What to say where a network failed on a number that is no row of one of its tables; None of other errors."""
    found = _OUTSIDE.search(str(error))
    if found is None and str(error) != _OUTSIDE_IN_TORCH:
        return None
    rows = "" if found is None else f": its rows are 0 to {int(found[1]) - 1}"
    return (
        f"the inputs hold a number that is no row of the network's table (nn.Embedding){rows}; a value that is not "
        "known, such as the category -1, needs a row of its own when the network is trained"
    )


class _Described(Protocol):
    """A tensor at a boundary, as numpy or PyTorch describes it."""

    @property
    def shape(self) -> tuple[int | str, ...]: ...

    @property
    def batch_dim(self) -> int | None: ...


def dynamic_sizes(specs: Sequence[_Described], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The sizes in these shapes that may change, beside the batch, by their names: what a measurement was made at."""
    return {
        name: int(size)
        for spec, shape in zip(specs, shapes, strict=True)
        for dim, (name, size) in enumerate(zip(spec.shape, shape, strict=True))
        if isinstance(name, str) and dim != spec.batch_dim
    }


def stand_ins(specs: Sequence[TensorSpec], described: Sequence[Mapping[str, Any]], size: int) -> Inputs:
    """Inputs for a measurement: noise, or one value that is valid; times do not depend on it."""
    rng = np.random.default_rng(0)
    made: Inputs = {}
    for spec, known in zip(specs, described, strict=True):
        shape = [int(one) for one in known["shape"]]
        if spec.batch_dim is not None:
            shape[spec.batch_dim] = size
        if np.dtype(spec.dtype).kind == "f":
            made[spec.name] = rng.normal(known["mean"], known["std"], shape).astype(spec.dtype)
        else:
            made[spec.name] = np.full(shape, known["value"], dtype=spec.dtype)
    return made


def described(arrays: Sequence[Array]) -> list[dict[str, Any]]:
    """What `stand_ins` need to know of real inputs, none of which is kept."""
    known: list[dict[str, Any]] = []
    for array in arrays:
        one: dict[str, Any] = {"shape": list(array.shape)}
        if array.dtype.kind == "f":
            finite = array[np.isfinite(array)].astype(np.float64)
            one |= {"mean": float(finite.mean()) if finite.size else 0.0}
            one |= {"std": float(finite.std()) if finite.size else 1.0}
        else:
            one["value"] = int(array.max(initial=0))
        known.append(one)
    return known


def of_length(specs: Sequence[TensorSpec], described: Sequence[Mapping[str, Any]], length: int) -> list[dict[str, Any]]:
    """The same with this size in all dimensions that may change; raises `InvalidInputError` where none may."""
    names = dynamic_sizes(specs, [one["shape"] for one in described])
    if not names:
        raise InvalidInputError(
            f"length is {length}, and the network takes inputs of one size only: leave it out, or cut the network with "
            "dynamic={1: 'sequence'}"
        )
    return _of_sizes(specs, described, dict.fromkeys(names, length))


def _of_sizes(
    specs: Sequence[TensorSpec], described: Sequence[Mapping[str, Any]], sizes: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The same with these sizes in the dimensions that may change, by their names."""
    shapes = [
        [sizes.get(of, size) if isinstance(of, str) and dim != spec.batch_dim else size for dim, (of, size) in pairs]
        for spec, known in zip(specs, described, strict=True)
        for pairs in [list(enumerate(zip(spec.shape, known["shape"], strict=True)))]
    ]
    return [{**known, "shape": shape} for known, shape in zip(described, shapes, strict=True)]


def not_of_length(length: int, usual: int, takes: Callable[[int], bool], why: str) -> str:
    """What to say where a network that takes inputs of the `usual` length fails on this one: the nearest it takes."""
    good, other = _nearest(length, usual, takes)
    return (
        f"length is {length}, expected {_allowed(length, good, other)}: give --length {good}, or length={good} in "
        f"Python (at {length} it says: {' '.join(why.split())[:200]})"
    )


def _nearest(length: int, usual: int, takes: Callable[[int], bool]) -> tuple[int, int | None]:
    """The nearest length on the way to the usual one that is taken, and one beyond `length` that is taken as well.

    There is one where lengths must be multiples of a number: then the nearest is neither longest nor shortest.
    """
    good, bad = usual, length
    while abs(bad - good) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if takes(middle) else (good, middle)
    beyond = (length // usual + 1) * usual
    if length < usual:
        beyond = usual
        while beyond >= max(length, 1):
            beyond //= 2
    return good, beyond if beyond and takes(beyond) else None


def _allowed(length: int, good: int, other: int | None) -> str:
    """The lengths to give in place of this one, in words, from what `_nearest` found."""
    if other is not None:
        return f"one such as {min(good, other)} or {max(good, other)}, which the network takes"
    limit = f"up to {good}, which is the longest" if length > good else f"from {good}, which is the shortest"
    return f"one {limit} that the network takes"


class Sizes:
    """Which sizes of its inputs a network takes, found by running it on stand-ins where it failed.

    `run` runs it on one sample, `described` says how inputs usually are, `failures` what the network raises.
    """

    def __init__(
        self,
        run: Callable[[Inputs], object],
        specs: Sequence[TensorSpec],
        described: Sequence[Mapping[str, Any]],
        failures: tuple[type[Exception], ...],
    ) -> None:
        self._run, self._specs, self._described, self._failures = run, specs, described, failures
        self.usual = dynamic_sizes(specs, [one["shape"] for one in described])
        self._nearest: dict[tuple[str, bool], int] = {}

    def failure(self, sizes: Mapping[str, int]) -> str | None:
        """What the network says of one sample with these sizes; None where it takes them."""
        try:
            self._run(stand_ins(self._specs, _of_sizes(self._specs, self._described, sizes), 1))
        except self._failures as error:
            return str(error)
        return None

    def refusal(self, inputs: Mapping[str, Any] | Any) -> str | None:
        """What to say of inputs that fit and on which the network failed; None where it was not for their sizes.

        A limit that was found is kept, so that inputs that fail again and again are not searched for each time.
        """
        arrays = [inputs[spec.name] for spec in self._specs] if isinstance(inputs, Mapping) else [inputs]
        for name, size in dynamic_sizes(self._specs, [array.shape for array in arrays]).items():
            usual = self.usual[name]
            if size == usual:
                continue
            longer, other = size > usual, None
            good = self._nearest.get((name, longer))
            if good is None:
                if not self._takes(name, usual) or self._takes(name, size):
                    continue
                good, other = _nearest(size, usual, partial(self._takes, name))
                if other is None:
                    self._nearest[name, longer] = good
            elif (size <= good) if longer else (size >= good):
                continue
            way = "bring them to one of these" if other else "cut them, or give their parts" if longer else "pad them"
            return f"the inputs have length {size} ({name}), expected {_allowed(size, good, other)}: {way}"
        return None

    def _takes(self, name: str, size: int) -> bool:
        return self.failure({name: size}) is None


def undescribed(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """The same for a bundle that was written before bundles said it; raises `InvalidInputError` for texts."""
    for spec in specs:
        sizes = [size for dim, size in enumerate(spec.shape) if dim != spec.batch_dim]
        if any(isinstance(size, str) for size in sizes):
            raise InvalidInputError(
                f"this bundle does not say how large its input {spec.name!r} of shape {list(spec.shape)} usually is; "
                "export it again to measure it"
            )
    return [
        {"shape": [size if isinstance(size, int) else 1 for size in spec.shape], "mean": 0.0, "std": 1.0, "value": 0}
        for spec in specs
    ]
