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
