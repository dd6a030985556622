"""What a preprocessing is, and the one of arrays, which are stacked as they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError

Array = NDArray[Any]
Inputs = dict[str, Array]
"""A network's inputs by name, each with the samples along dimension 0."""

Flags = dict[str, NDArray[np.bool_]]
"""What to know of raw inputs, by name: one value for each."""

EXTRA = "predict"
"""The extra that brings Pillow and tokenizers."""


class Input(Protocol):
    """An input of a network: its name, and its shape with the samples first; sizes that may change are names."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int | str, ...]: ...


class Preprocessing(ABC):
    """Turns raw inputs into a network's arrays.

    Attributes
    ----------
    kind
        What an item is: "array", "image" (the bytes or path of a file) or "text" (a string).

    Examples
    --------
    >>> from eenet.preprocessing import ImagePreprocessing, Preprocessing
    >>> isinstance(ImagePreprocessing((32, 32)), Preprocessing)
    True
    """

    kind: str

    @abstractmethod
    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The network's inputs for some raw inputs, in their order; raises `InvalidInputError` naming the item."""

    def with_flags(self, items: Sequence[Any]) -> tuple[Inputs, Flags]:
        """As a call, and what to know of each item: of texts "truncated" and "empty", nothing of others."""
        return self(items), {}

    @abstractmethod
    def fitted(self, inputs: Sequence[Input]) -> Preprocessing:
        """The same for a network with these inputs; raises `InvalidInputError` where it makes something else."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A JSON-ready description."""

    def files(self) -> dict[str, bytes]:
        """What is kept beside the description, by name in the bundle."""
        return {}


def require_names(made: Sequence[str], inputs: Sequence[Input]) -> None:
    expected = [one.name for one in inputs]
    if sorted(made) != sorted(expected):
        raise InvalidInputError(
            f"the preprocessing makes the inputs {list(made)}, the network takes {expected}; name them in it"
        )


def no_inputs(extra: Sequence[str]) -> str:
    """What to say of keys that a network has no inputs for, and how to drop them; nothing where there are none."""
    if not extra:
        return ""
    one, names = len(extra) == 1, ", ".join(map(repr, extra))
    drop = " and ".join(f"batch.pop({name!r})" for name in extra[:2])
    return (
        f"{names} {'is no input' if one else 'are no inputs'} of the network: take {'it' if one else 'them'} out, as "
        f"with {drop}, or of a data set of Hugging Face with remove_columns({list(extra)}); "
    )


def how_to_fit(shape: Sequence[int], expected: Sequence[int | str | None], *, floating: bool) -> str:
    """The way out where an input has another shape than a network takes: make it fit, or cut for sizes that change.

    Sizes that may change are names or None. What looks like images (N, C, H, W) or tokens (N, T) has its own words.
    """
    if len(shape) == len(expected) - 1 and not isinstance(expected[0], int):
        sizes = zip(shape, expected[1:], strict=True)
        if all(not isinstance(size, int) or here == size for here, size in sizes):
            return "the dimension of the batch is missing: give x[None] in place of x"
    other = [dim for dim, size in enumerate(expected) if isinstance(size, int) and dim]
    unlike = [dim for dim in other if dim < len(shape) and shape[dim] != expected[dim]]
    if len(shape) != len(expected) or not unlike:
        return "give it that shape, or cut the network again with an example of yours"
    if floating and len(shape) == 4 and unlike == [1]:
        return f"its images have {expected[1]} channels: give image files, and ImagePreprocessing that many means"
    if floating and len(shape) == 4 and other == [1, 2, 3]:
        height, width = expected[2:]
        asked = f"{height}" if height == width else f"{height}x{width}"
        gray, python = (" --mean 0.5 --std 0.5", ", mean=[0.5], std=[0.5]") if expected[1] == 1 else ("", "")
        return (
            f"resize the images to {height} x {width}: eenet collect and export do so for image files with "
            f"--image-size {asked}{gray}, predict and serve for a bundle that was exported with it, and in Python "
            f"eenet.preprocessing.ImagePreprocessing(({height}, {width}){python}). Or, where the network itself takes "
            "other sizes, cut it again with dynamic={2: 'height', 3: 'width'}"
        )
    if not floating and len(shape) == 2:
        return (
            f"pad or cut the texts to {expected[1]} tokens, as eenet.preprocessing.TextPreprocessing with "
            f"pad_to={expected[1]} does, or cut the network again with dynamic={{1: 'sequence'}}"
        )
    names = ", ".join(f"{dim}: 'size{dim}'" for dim in unlike)
    return f"give it that shape, or cut the network again with that dimension dynamic: dynamic={{{names}}}"


@dataclass(frozen=True)
class ArrayPreprocessing(Preprocessing):
    """None: an item is an array, or a mapping of arrays by the names `inputs`, without the batch dimension.

    Parameters
    ----------
    inputs : tuple of str
        The names of the network's inputs.

    Examples
    --------
    >>> from eenet.preprocessing import ArrayPreprocessing
    >>> prepare = ArrayPreprocessing(("x",))
    >>> prepare([np.zeros(3, dtype=np.float32)] * 2)["x"].shape
    (2, 3)
    """

    inputs: tuple[str, ...]
    kind: str = field(default="array", init=False)

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """The items stacked; raises `InvalidInputError` where they have different shapes or names."""
        rows = [dict(item) if isinstance(item, Mapping) else {self.inputs[0]: item} for item in items]
        for n, row in enumerate(rows):
            if set(row) != set(self.inputs):
                raise InvalidInputError(f"item {n} has the inputs {sorted(row)}, expected {sorted(self.inputs)}")
        try:
            return {name: np.stack([row[name] for row in rows]) for name in self.inputs}
        except ValueError as error:
            raise InvalidInputError(f"the items cannot be one batch ({error}); give arrays of one shape") from error

    def fitted(self, inputs: Sequence[Input]) -> ArrayPreprocessing:
        """Itself; raises `InvalidInputError` where the inputs have other names."""
        require_names(self.inputs, inputs)
        return self

    def describe(self) -> dict[str, Any]:
        """A JSON-ready description."""
        return {"kind": self.kind, "inputs": list(self.inputs)}
