"""Exits judged by the frontier they give: accuracy under a budget, not one exit at a time.

An exit that is better by itself may be worse for a scheduler, if it is right on the samples that the exits before it
have taken already. So what counts is the accuracy at a few budgets under searched thresholds, on samples that the
thresholds were not searched on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler import SearchedThresholds


@dataclass(frozen=True)
class Frontier:
    """Accuracy and realized cost on held-out samples at several budgets; costs and budgets are in `unit`."""

    budgets: tuple[float, ...]
    accuracies: tuple[float, ...]
    costs: tuple[float, ...]
    unit: str

    @property
    def mean(self) -> float:
        """The mean accuracy over the budgets: what checkpoints are selected by."""
        return float(np.mean(self.accuracies))


def frontier(
    calibration: ExitRecords,
    test: ExitRecords,
    costs: ExitCosts,
    budgets: int | Sequence[float] = 3,
    *,
    score: str = "max_prob",
) -> Frontier:
    """Accuracy on `test` at budgets evenly between the first and the last exit's cost, or at those given.

    The thresholds on `score` are searched on `calibration` alone. Three budgets lie at 25, 50 and 75 % of the way;
    models whose heads cost differently are compared at budgets that are given, in the unit of the costs. The realized
    costs can differ from the budgets, since the test samples are other samples. Raises `InfeasibleBudgetError` for one
    below the first exit's cost.
    """
    costs.require_exits(calibration.num_exits)
    if isinstance(budgets, int):
        if budgets < 1:
            raise InvalidInputError(f"budgets is {budgets}, expected at least 1")
        limits: list[float] = np.linspace(costs[0], costs[-1], budgets + 2)[1:-1].tolist()
    else:
        limits = [float(budget) for budget in budgets]
    if not limits:
        raise InvalidInputError("budgets is empty, expected at least one amount")
    replayed = [SearchedThresholds(score).fit(calibration, costs, limit).replay(test) for limit in limits]
    return Frontier(
        tuple(limits),
        tuple(decisions.accuracy for decisions in replayed),
        tuple(decisions.mean_cost for decisions in replayed),
        costs.unit,
    )


def two_fold_frontier(
    records: ExitRecords,
    costs: ExitCosts,
    budgets: int | Sequence[float] = 3,
    *,
    score: str = "max_prob",
    seed: int = 0,
) -> Frontier:
    """The frontier of each half of some records under thresholds searched on the other half, averaged."""
    if len(records) < 2:
        raise InvalidInputError(
            f"the validation data has {len(records)} sample, expected at least 2: thresholds are searched on one half "
            "and judged on the other"
        )
    halves = records.split(0.5, seed=seed)
    one, other = (frontier(a, b, costs, budgets, score=score) for a, b in (halves, halves[::-1]))
    shares = [len(halves[1]) / len(records), len(halves[0]) / len(records)]
    return Frontier(
        one.budgets,
        tuple(np.average([one.accuracies, other.accuracies], axis=0, weights=shares).tolist()),
        tuple(np.average([one.costs, other.costs], axis=0, weights=shares).tolist()),
        one.unit,
    )
