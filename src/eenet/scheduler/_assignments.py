"""Assignments: how many samples should leave at each exit, turned into thresholds on a score."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._learned import LearnedScore, LearningOptions
from eenet.scheduler._policy import Score
from eenet.scheduler._search import search_thresholds
from eenet.scheduler._thresholds import ScoreTable, Thresholds, geometric_shares, tilted_shares, within


@dataclass(frozen=True)
class Plan:
    """Thresholds, and the mean cost per sample they were planned to have."""

    thresholds: Thresholds
    cost: float


@dataclass(frozen=True)
class Calibration:
    """A score on calibration records with the costs of the exits: what an assignment divides a budget over."""

    score: Score
    records: ExitRecords
    costs: ExitCosts

    known: ScoreTable | None = None
    """The scores of the records, where they have been computed already."""

    @cached_property
    def table(self) -> ScoreTable:
        """The scores of all records."""
        if self.known is not None:
            return self.known
        return ScoreTable.of(self.score, self.records, self.costs)

    @cached_property
    def ceiling(self) -> int:
        """The exit that nobody should go beyond: the last, or an earlier one where the last is clearly worse than it.

        Without labels nothing is known to be worse. Where outputs are not finite samples go on all the same.
        """
        last = len(self.costs) - 1
        if self.records.utility is None or not self.table.finite.all():
            return last
        utility = self.records.utility.astype(np.float64)
        best = int(utility.mean(axis=1).argmax())
        ahead = utility[best] - utility[last]
        return best if ahead.mean() > _CERTAIN * ahead.std() / math.sqrt(len(ahead)) else last

    @cached_property
    def worthwhile(self) -> Calibration:
        """The same without the exits beyond the ceiling, which must not be the first exit."""
        exits = self.ceiling + 1
        if exits == len(self.costs):
            return self
        costs = ExitCosts(self.costs.values[:exits].tolist(), unit=self.costs.unit)
        table = ScoreTable(self.table.scores[: exits - 1], self.table.finite[: exits - 1], costs)
        return Calibration(self.score, self.records.first_exits(exits), costs, table)

    def whole(self, thresholds: Thresholds) -> Thresholds:
        """Thresholds found for `worthwhile`, as thresholds of all exits: at the ceiling everybody leaves."""
        table = self.table
        missing = table.early - len(thresholds.values)
        if missing == 0:
            return thresholds
        lowest, _ = table.threshold(
            self.ceiling, table.ranked(self.ceiling, np.ones(table.samples, bool)), table.samples
        )
        values = np.concatenate([thresholds.values, [lowest], np.zeros(missing - 1)])
        enabled = np.concatenate([thresholds.enabled, [True], np.zeros(missing - 1, dtype=np.bool_)])
        return Thresholds(values, enabled)


class Assignment(Protocol):
    """Chooses the thresholds of a score on calibration records so that the mean cost stays within the budget."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def table_points(self) -> int:
        """How many budgets a table of its policies should have: few where planning one takes long."""
        ...

    @property
    def unspent(self) -> str | None:
        """Why much of a budget may be left unspent, as a user is told; None where leaving it is what was asked for.

        With None there is no ceiling either: the assignment itself sees which exits are worth going to.
        """
        ...

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:
        """The plan for one budget, in the unit of the costs."""
        ...


_CERTAIN = 3.0
"""Standard errors that the last exit must be below an earlier one to count as worse."""

TIES = "samples that the score cannot tell apart are never parted, and here they are many"


@dataclass(frozen=True)
class GeometricAssignment:
    """p_k proportional to a power of k, the power chosen to meet the budget (MSDNet, and BranchyNet's successors)."""

    name: str = "geometric"
    table_points: int = 101
    unspent: str | None = TIES

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:  # noqa: ARG002 - the protocol's
        """The plan for one budget."""
        costs = calibration.costs
        thresholds = calibration.table.meet(budget, geometric_shares(len(costs)))
        return Plan(thresholds, min(budget, costs[-1]))


@dataclass(frozen=True)
class SearchedAssignment:
    """The thresholds with the highest calibration accuracy under the budget; needs labels."""

    name: str = "searched"
    table_points: int = 21
    unspent: str | None = None

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:  # noqa: ARG002 - the protocol's
        """The plan for one budget."""
        table = calibration.table
        thresholds = search_thresholds(table, calibration.records.require_utility().astype(np.float64), budget)
        return Plan(thresholds, table.mean_cost(thresholds))


@dataclass(frozen=True)
class LearnedAssignment:
    """EENet's exit assignment: p_k is the mean of a learned softmax, tilted along the costs to meet the budget."""

    options: LearningOptions = field(default_factory=LearningOptions)
    name: str = "learned"
    table_points: int = 101
    unspent: str | None = TIES

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:
        """The plan for one budget."""
        score, table, costs = calibration.score, calibration.table, calibration.costs
        if isinstance(score, LearnedScore) and score.shares is not None:
            shares = score.shares[: len(costs)]
        else:
            from eenet.scheduler._training import train_shares  # brings in torch, which deciding does not need

            shares = train_shares(table, calibration.records, costs, budget, self.options, seed)
        return Plan(table.meet(budget, tilted_shares(shares, costs.values)), min(budget, costs[-1]))


@dataclass(frozen=True)
class StaticAssignment:
    """Everybody leaves at one exit; goes with the score "constant", which keeps nobody back."""

    exit_index: int
    name: str = "static"
    table_points: int = 1
    unspent: str | None = None

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:  # noqa: ARG002 - the protocol's
        """The plan; raises `InfeasibleBudgetError` when the exit costs more than the budget."""
        k, costs = self.exit_index, calibration.costs
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or not 0 <= k < len(costs):
            raise InvalidInputError(f"Static({k!r}): expected the number of an exit, 0 to {len(costs) - 1}")
        table = calibration.table
        thresholds = table.for_shares(np.eye(len(costs))[k])
        cost = table.mean_cost(thresholds)  # above costs[k] where evidence is not finite
        if cost > within(budget):
            raise InfeasibleBudgetError(
                f"Static({k}) costs {cost:.6g} {costs.unit} per sample, the budget is {budget:.6g}; the smallest "
                f"feasible budget is {cost:.6g} {costs.unit}",
                smallest=cost,
            )
        return Plan(thresholds, cost)
