"""Assignments: how many samples should leave at each exit, turned into thresholds on a score."""

from __future__ import annotations

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

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:
        """The plan for one budget, in the unit of the costs."""
        ...


@dataclass(frozen=True)
class GeometricAssignment:
    """p_k proportional to a power of k, the power chosen to meet the budget (MSDNet, and BranchyNet's successors)."""

    name: str = "geometric"
    table_points: int = 101

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

    def fit(self, calibration: Calibration, budget: float, seed: int) -> Plan:
        """The plan for one budget."""
        score, table, costs = calibration.score, calibration.table, calibration.costs
        if isinstance(score, LearnedScore) and score.shares is not None:
            shares = score.shares
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
