"""Two makes of one network, such as with other parts in int8: which is more accurate at equal cost, or faster.

Both are judged out of fold: a scheduler is fitted to two thirds of the samples and replayed on the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts
from eenet.errors import ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler import OptimalStopping
from eenet.scheduler._fallback import standard_error
from eenet.scheduler._fitted import Outcome
from eenet.scheduler._out_of_fold import folds_of, out_of_fold, pooled

_FOLDS, _BUDGETS, _COMPARED = 3, 9, 5
_ERRORS = 2.0

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Ahead:
    """How far one make is ahead of another: points of accuracy as a share, at equal cost, and its standard error.

    `speed` is how many times as fast it is at equal accuracy, None where their accuracies have nothing in common;
    `most` are the highest accuracies of both.
    """

    mean: float
    error: float
    speed: float | None
    most: tuple[float, float]

    @property
    def certain(self) -> bool:
        """Whether it is ahead beyond chance."""
        return self.mean > _ERRORS * self.error

    @property
    def behind(self) -> bool:
        """Whether it is behind beyond chance."""
        return self.mean < -_ERRORS * self.error


def folded(records: ExitRecords) -> list[Ints]:
    """The folds of records."""
    return folds_of(records, 0, _FOLDS)


class Frontier:
    """The accuracy of a make at several costs, from its records and what its exits cost.

    `folds` are the numbers of the samples of each, the same for makes that are compared; by default those of `folded`.
    """

    def __init__(self, records: ExitRecords, costs: ExitCosts, folds: Sequence[Ints] | None = None) -> None:
        parts = folded(records) if folds is None else folds
        budgets = np.linspace(costs[0], costs[-1], _BUDGETS).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)  # of the few samples of a fold: the error says it
            found = out_of_fold(OptimalStopping(), records, costs, parts, budgets, fallback=False, lift=True)
        # What costs more without being more accurate is no choice: a cheaper point is taken in its place.
        self.points: list[Outcome] = []
        for point in sorted(pooled(parts, found), key=lambda point: point.cost):
            last = self.points[-1] if self.points else None
            if last is None or (point.accuracy > last.accuracy and point.cost > last.cost):
                self.points.append(point)
        self.costs = [point.cost for point in self.points]
        self.accuracies = [point.accuracy for point in self.points]

    def at(self, cost: float) -> Floats:
        """The utility of each sample, (N,), where `cost` may be spent: a mixture of the points around it."""
        return (Outcome.spending(cost, self.points) or self.points[0]).utility

    def cost_of(self, accuracy: float) -> float:
        """The least cost with this accuracy, which must be one between those of its ends."""
        return float(np.interp(accuracy, self.accuracies, self.costs))

    def ahead_of(self, other: Frontier) -> Ahead:
        """How far this is ahead of another make of the same samples."""
        low, high = max(self.costs[0], other.costs[0]), max(self.costs[-1], other.costs[-1])
        compared = np.linspace(low, high, _COMPARED).tolist()
        gained = np.mean([self.at(cost) - other.at(cost) for cost in compared], axis=0)
        mine, theirs = self.accuracies, other.accuracies
        least, most = max(mine[0], theirs[0]), min(mine[-1], theirs[-1])
        speed = None
        if least <= most:
            wanted = np.linspace(least, most, _COMPARED).tolist()
            ratios = [other.cost_of(accuracy) / self.cost_of(accuracy) for accuracy in wanted]
            speed = float(np.exp(np.mean(np.log(ratios))))
        error = standard_error(gained) if gained.any() else 0.0
        return Ahead(float(gained.mean()), error, speed, (mine[-1], theirs[-1]))
