"""Toy back ends for the tests of serving: the logits of a request are its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import eenet
from eenet.errors import InvalidInputError
from eenet.runtime import Live
from eenet.scheduler import ThresholdPolicy
from eenet.scheduler._scores import PLAIN_SCORES

Array = NDArray[Any]


class TableBackend:
    """A back end whose input (n, K * C) is the logits of its K exits, side by side; keeps the sizes of its batches.

    An input that holds `poison` makes its batch fail.
    """

    poison = 1e30

    def __init__(self, exits: int, classes: int) -> None:
        self.num_exits = exits
        self.num_classes = classes
        self.calls: list[tuple[int, int]] = []

    def enter(self, inputs: Mapping[str, Array] | Array) -> Live:
        array = inputs["x"] if isinstance(inputs, Mapping) else inputs
        width = self.num_exits * self.num_classes
        if array.ndim != 2 or array.shape[1] != width or array.dtype != np.float32:
            raise InvalidInputError(f"input 'x' is {array.dtype} {array.shape}, expected float32 (n, {width})")
        return (array,)

    def run(self, k: int, live: Live, *, observe: bool) -> tuple[Live, NDArray[np.float32] | None]:
        (x,) = live
        self.calls.append((k, len(x)))
        if (x == self.poison).any():
            raise RuntimeError("a poisonous sample")
        last = k == self.num_exits - 1
        logits = x[:, k * self.num_classes : (k + 1) * self.num_classes] if observe or last else None
        return (() if last else (x,)), logits

    def size(self, k: int, live: Live) -> int:
        return len(live[0])

    def take(self, k: int, live: Live, rows: NDArray[np.intp]) -> Live:
        return tuple(tensor[rows] for tensor in live)

    def join(self, k: int, parts: Sequence[Live]) -> Live:
        return tuple(np.concatenate(tensors) for tensors in zip(*parts, strict=True))


def scripted_policy(exits: int) -> ThresholdPolicy:
    """Leaves where two classes' logits are far apart: see `scripted_logits`."""
    return ThresholdPolicy(
        PLAIN_SCORES["max_prob"], np.full(exits - 1, 5.0), np.ones(exits - 1, dtype=np.bool_), num_classes=2
    )


def scripted_logits(leave_at: Sequence[int], exits: int) -> NDArray[np.float32]:
    """Inputs (n, 2 K) of a `TableBackend` that leave at these exits under `scripted_policy`."""
    logits = np.zeros((len(leave_at), exits, 2), dtype=np.float32)
    for n, k in enumerate(leave_at):
        logits[n, k:, n % 2] = 10.0
    return logits.reshape(len(leave_at), -1)


def flat(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits (K, N, C) as inputs (N, K * C) of a `TableBackend`."""
    exits, samples, classes = logits.shape
    return np.ascontiguousarray(logits.transpose(1, 0, 2).reshape(samples, exits * classes))


def fitted(
    maker: Any, logits: NDArray[np.float32], labels: NDArray[np.intp], share: float
) -> tuple[eenet.Scheduler, eenet.ExitCosts]:
    """A scheduler with a budget at this share of the way from the first to the last exit's cost, or the smallest."""
    costs = eenet.ExitCosts(np.arange(1.0, len(logits) + 1))
    records = eenet.ExitRecords.from_logits(logits, labels)
    try:
        return maker().fit(records, costs, budget=costs[0] + share * (costs[-1] - costs[0])), costs
    except eenet.InfeasibleBudgetError as error:
        return maker().fit(records, costs, budget=error.smallest), costs
