"""Two makes of one network, such as with other parts in int8: which is more accurate at equal cost, or faster.

Both are judged out of fold: a scheduler is fitted to two thirds of the samples and replayed on the others.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler import OptimalStopping, Scheduler
from eenet.scheduler._fallback import standard_error

_FOLDS, _BUDGETS, _COMPARED = 3, 9, 5
_ERRORS = 2.0

Floats = NDArray[np.float64]


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


class Frontier:
    """The accuracy of a make at several costs, from its records and what its exits cost."""

    def __init__(self, records: ExitRecords, costs: ExitCosts) -> None:
        points: dict[int, list[tuple[float, Floats]]] = {}
        folds = np.random.default_rng(0).permutation(len(records)) % _FOLDS
        budgets = np.linspace(costs[0], costs[-1], _BUDGETS).tolist()
        for fold in range(_FOLDS):
            judging = records.subset(np.flatnonzero(folds == fold))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReliabilityWarning)  # of the few samples of a fold: the error says it
                fitted = OptimalStopping().fit(records.subset(np.flatnonzero(folds != fold)), costs, fallback=False)
                for number, budget in enumerate(budgets):
                    points.setdefault(number, []).append(_outcome(fitted, budget, judging))
        back = np.argsort(np.argsort(folds, kind="stable"))
        sizes = [int((folds == fold).sum()) for fold in range(_FOLDS)]
        spent = np.array([np.average([cost for cost, _ in of], weights=sizes) for of in points.values()])
        utility = np.stack([np.concatenate([one for _, one in of])[back] for of in points.values()])
        # What costs more without being more accurate is no choice: a cheaper point is taken in its place.
        order = np.argsort(spent, kind="stable").tolist()
        kept = order[:1]
        for n in order[1:]:
            if utility[n].mean() > utility[kept[-1]].mean() and spent[n] > spent[kept[-1]]:
                kept.append(n)
        self.costs: Floats = spent[kept]
        self.utility: Floats = utility[kept]

    def at(self, cost: float) -> Floats:
        """The utility of each sample, (N,), where `cost` may be spent: a mixture of the points around it."""
        place = float(np.interp(cost, self.costs, np.arange(len(self.costs))))
        low = min(int(place), max(len(self.costs) - 2, 0))
        high = min(low + 1, len(self.costs) - 1)
        mixed: Floats = (1 - (place - low)) * self.utility[low] + (place - low) * self.utility[high]
        return mixed

    def cost_of(self, accuracy: float) -> float:
        """The least cost with this accuracy, which must be one between those of its ends."""
        return float(np.interp(accuracy, self.utility.mean(axis=1), self.costs))

    def ahead_of(self, other: Frontier) -> Ahead:
        """How far this is ahead of another make of the same samples."""
        low, high = max(self.costs[0], other.costs[0]), max(self.costs[-1], other.costs[-1])
        compared = np.linspace(low, high, _COMPARED).tolist()
        gained = np.mean([self.at(cost) - other.at(cost) for cost in compared], axis=0)
        mine, theirs = self.utility.mean(axis=1), other.utility.mean(axis=1)
        least, most = max(mine[0], theirs[0]), min(mine[-1], theirs[-1])
        speed = None
        if least <= most:
            wanted = np.linspace(least, most, _COMPARED).tolist()
            ratios = [other.cost_of(accuracy) / self.cost_of(accuracy) for accuracy in wanted]
            speed = float(np.exp(np.mean(np.log(ratios))))
        error = standard_error(gained) if gained.any() else 0.0
        return Ahead(float(gained.mean()), error, speed, (float(mine[-1]), float(theirs[-1])))


def _outcome(fitted: Scheduler, budget: float, judging: ExitRecords) -> tuple[float, Floats]:
    """The mean cost, and the utility of each sample."""
    try:
        decided = fitted.at(budget).replay(judging)
    except InfeasibleBudgetError as error:
        decided = fitted.at(error.smallest).replay(judging)
    assert decided.utility is not None, "all calibration batches have labels"
    return decided.mean_cost, decided.utility.astype(np.float64)
