"""StageBackend: what runs the stages of a multi-exit network, whatever it is made of; numpy in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.intp]
Live = tuple[Array, ...]
"""The live tensors before a stage: all that it and the stages after it still need of some samples."""


class StageBackend(Protocol):
    """Runs the stages of a multi-exit network on live tensors that the caller keeps, splits and joins.

    The caller decides which samples exit (`eenet.scheduler.DecisionState`); a backend only computes. It keeps no state,
    so calls may come from several threads and for several requests in turn.
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
