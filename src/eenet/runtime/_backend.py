"""What runs the stages of a network, numpy in and out: the protocol, and live tensors checked, selected and merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet._sizes import TensorSpec as TensorSpec
from eenet._values import require_no_mask
from eenet.errors import InvalidInputError, kind_of
from eenet.preprocessing._base import how_to_fit, no_inputs

Array = NDArray[Any]
Ints = NDArray[np.intp]
Live = tuple[Array, ...]
"""The live tensors before a stage: all that it and the stages after it still need of some samples."""


class StageBackend(Protocol):
    """Runs the stages of a multi-exit network on live tensors that the caller keeps, splits and joins.

    The caller decides which samples exit (`eenet.scheduler.DecisionState`); a backend only computes. It keeps no state,
    so calls may come from several threads and for several requests in turn.

    Examples
    --------
    >>> from eenet.runtime import StageBackend
    >>> sorted(name for name in vars(StageBackend) if not name.startswith("_"))
    ['enter', 'join', 'num_classes', 'num_exits', 'run', 'size', 'take']
    """

    @property
    def num_exits(self) -> int:
        """K, the last exit included; also the number of stages."""
        ...

    @property
    def num_classes(self) -> int:
        """C."""
        ...

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        """The live tensors before stage 0 of a network's inputs, by name, or of its only input.

        Raises `InvalidInputError`, which names the input, for another name, dtype or shape than the network takes.
        """
        ...

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        """Run stage k on n samples: the live tensors before stage k + 1, and the logits (n, C, ...) of exit k.

        After the last stage the live tensors are an empty tuple. The logits are None unless `observe`; the last stage
        always gives them.
        """
        ...

    def size(self, k: int, live: Live) -> int:
        """The number of samples in the live tensors before stage k."""
        ...

    def take(self, k: int, live: Live, rows: Ints) -> Live:
        """The samples `rows`, in that order, of the live tensors before stage k."""
        ...

    def join(self, k: int, parts: Sequence[Live]) -> Live:
        """The live tensors before stage k of several requests as those of one, in order."""
        ...


_KINDS = {"f": "floating-point", "i": "integer", "u": "integer", "b": "boolean"}


class Boundaries:
    """The tensors before each of K stages; everything of a `StageBackend` but running the stages."""

    def __init__(self, inputs: Sequence[Sequence[TensorSpec]]) -> None:
        self._specs = [tuple(specs) for specs in inputs]
        # For each boundary the first tensor that has samples, and the dimension they lie along.
        self._counted = [
            next((i, spec.batch_dim) for i, spec in enumerate(specs) if spec.batch_dim is not None)
            for specs in self._specs
        ]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The network's inputs."""
        return self._specs[0]

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        """The network's inputs in order, of the right dtype; see `StageBackend.enter`."""
        specs = self.inputs
        if not isinstance(inputs, Mapping):
            if len(specs) > 1:
                raise InvalidInputError(
                    f"got one {type(inputs).__name__}, but the network has {len(specs)} inputs; give a mapping with "
                    f"{', '.join(repr(spec.name) for spec in specs)}"
                )
            inputs = {specs[0].name: inputs}
        names = [spec.name for spec in specs]
        if set(inputs) != set(names):
            missing = ", ".join(f"{name!r} is missing" for name in names if name not in inputs)
            extra = [str(name) for name in inputs if name not in names]
            raise InvalidInputError(
                f"{no_inputs(extra)}the network takes the inputs {names}{f': {missing}' if missing else ''}"
            )
        sizes: dict[str, tuple[int, str]] = {}
        return tuple(_checked(inputs[spec.name], spec, sizes) for spec in specs)

    def size(self, k: int, live: Live) -> int:
        """The number of samples in the live tensors before stage k."""
        position, dim = self._counted[k]
        return int(live[position].shape[dim])

    def take(self, k: int, live: Live, rows: Ints) -> Live:
        """The samples `rows` of the live tensors before stage k; constants stay as they are."""
        return tuple(
            array if spec.batch_dim is None else array.take(rows, axis=spec.batch_dim)
            for array, spec in zip(live, self._specs[k], strict=True)
        )

    def join(self, k: int, parts: Sequence[Live]) -> Live:
        """The live tensors before stage k of several requests as one.

        Raises `InvalidInputError` where they cannot be merged: other sizes than the batch differ, or a constant does.
        """
        if not parts:
            raise InvalidInputError("there are no live tensors to join; give those of at least one request")
        if len(parts) == 1:
            return parts[0]
        return tuple(_joined([part[position] for part in parts], spec) for position, spec in enumerate(self._specs[k]))


def _joined(arrays: Sequence[Array], spec: TensorSpec) -> Array:
    first, dim = arrays[0], spec.batch_dim
    for other in arrays[1:]:
        same = other.shape == first.shape if dim is None else _without(other, dim) == _without(first, dim)
        if not same:
            raise InvalidInputError(
                f"the live tensor {spec.name!r} has shape {first.shape} in one request and {other.shape} in another, "
                "which cannot be one batch; merge requests of the same sizes only"
            )
    return first if dim is None else np.concatenate(arrays, axis=dim)


def _without(array: Array, dim: int) -> tuple[int, ...]:
    return array.shape[:dim] + array.shape[dim + 1 :]


class NoStages(Boundaries):
    """A `StageBackend` that runs nothing: for a process that takes inputs in and has the stages run elsewhere."""

    def __init__(self, inputs: Sequence[Sequence[TensorSpec]], num_classes: int) -> None:
        super().__init__(inputs)
        self.num_exits = len(inputs)
        self.num_classes = num_classes

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:  # noqa: ARG002
        """Raises `InvalidInputError`."""
        raise InvalidInputError(f"stage {k} was not loaded; load the bundle with stages=None")


def _checked(value: Any, spec: TensorSpec, sizes: dict[str, tuple[int, str]]) -> Array:
    if not isinstance(value, np.ndarray):
        raise InvalidInputError(f"input {spec.name!r} is {kind_of(value)}, expected a numpy array")
    require_no_mask(value, f"input {spec.name!r}")
    expected = np.dtype(spec.dtype)
    if value.dtype.kind not in _KINDS or _KINDS[value.dtype.kind] != _KINDS[expected.kind]:
        raise InvalidInputError(
            f"input {spec.name!r} has dtype {value.dtype}, expected {expected}; convert it with "
            f".astype({str(expected)!r})"
        )
    fits = value.ndim == len(spec.shape) and all(
        isinstance(size, str) or size == size_here for size, size_here in zip(spec.shape, value.shape, strict=True)
    )
    if not fits:
        sizes_wanted = ", ".join(str(size) for size in spec.shape)
        raise InvalidInputError(
            f"input {spec.name!r} has shape {value.shape}, expected ({sizes_wanted}), where names stand for any size; "
            + how_to_fit(value.shape, spec.shape, floating=expected.kind == "f")
        )
    for symbol, size_here in zip(spec.shape, value.shape, strict=True):
        if isinstance(symbol, str):
            size, where = sizes.setdefault(symbol, (size_here, spec.name))
            if size != size_here:
                raise InvalidInputError(
                    f"input {spec.name!r} has {size_here} in the dimension {symbol!r}, but {where!r} has {size}; give "
                    "all inputs the same"
                )
    return np.ascontiguousarray(_converted(value, expected, spec.name))


def _converted(value: Array, expected: np.dtype[Any], name: str) -> NDArray[Any]:
    if value.dtype == expected:
        return value
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is for a network that runs in float32
        converted = value.astype(expected)
    if expected.kind in "iu" and not np.array_equal(converted, value):
        raise InvalidInputError(f"input {name!r} holds numbers that {expected} cannot: {value.min()} to {value.max()}")
    return converted
