"""Families: one fit, and from it the policy for every budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Assignment, Calibration
from eenet.scheduler._decisions import replay
from eenet.scheduler._ensembles import as_answered
from eenet.scheduler._policy import Ensemble, Floats, Score, ThresholdPolicy
from eenet.scheduler._table import PolicyTable
from eenet.scheduler._thresholds import Thresholds


@dataclass(frozen=True)
class Planned:
    """A policy, the mean cost per sample planned for it, and that on the calibration records."""

    policy: ThresholdPolicy
    planned_cost: float
    calibration_cost: float
    accuracy: float | None
    note: str | None = None
    """Why much of the budget is left unspent, where it is."""

    shares: Floats | None = None
    """What part of the calibration records left at each exit, (K,); None where that is not known."""

    samples: int = 0
    """How many calibration records those were."""


class Family(Protocol):
    """Fitted policies for every budget."""

    @property
    def costs(self) -> ExitCosts:
        """Of the exits."""
        ...

    @property
    def points(self) -> int:
        """How many budgets a table of the family has."""
        ...

    def plan(self, budget: float) -> Planned:
        """The policy for a budget in the unit of the costs; raises `InfeasibleBudgetError` where there is none."""
        ...


class Method(Protocol):
    """How a scheduler is fitted."""

    def fit(self, records: ExitRecords, costs: ExitCosts, seed: int) -> Family:
        """Fit to calibration records, for all budgets."""
        ...


@dataclass(frozen=True)
class ThresholdMethod:
    """A score that needs no fitting, or is fitted already, and an assignment."""

    score: Score
    assignment: Assignment

    @property
    def changes_predictions(self) -> bool:
        """Whether the score answers in place of the exits."""
        return isinstance(self.score, Ensemble)

    def fit(self, records: ExitRecords, costs: ExitCosts, seed: int) -> ThresholdFamily:
        """Score the records once."""
        return ThresholdFamily(Calibration(self.score, as_answered(self.score, records), costs), self.assignment, seed)


@dataclass(frozen=True)
class ThresholdFamily:
    """Thresholds that an assignment chooses for each budget."""

    calibration: Calibration
    assignment: Assignment
    seed: int

    @property
    def costs(self) -> ExitCosts:
        """Of the exits."""
        return self.calibration.costs

    @property
    def points(self) -> int:
        """How many budgets a table of the family has."""
        return self.assignment.table_points

    def plan(self, budget: float) -> Planned:
        """The policy for a budget."""
        return assigned(self.assignment, self.calibration, budget, self.seed)


def assigned(assignment: Assignment, calibration: Calibration, budget: float, seed: int) -> Planned:
    """The policy that an assignment gives for a budget: under a ceiling where later exits are worse, and it says so."""
    ceiling, costs = calibration.ceiling, calibration.costs
    if ceiling == len(costs) - 1 or assignment.unspent is None:
        plan = assignment.fit(calibration, budget, seed)
        found = planned(calibration, plan.thresholds, plan.cost)
        # A sample or so that might have gone from the first exit to the last is left by chance, where samples are few.
        left = (min(budget, costs[-1]) - found.calibration_cost) * found.samples
        return replace(found, note=assignment.unspent) if left > 3 * (costs[-1] - costs[0]) else found
    note = f"on the calibration records exit {ceiling} is clearly better than the last, so that nobody goes beyond it"
    if ceiling == 0:
        return planned(calibration, calibration.table.cheapest(), costs[0], note)
    plan = assignment.fit(calibration.worthwhile, min(budget, costs[ceiling]), seed)
    if budget < costs[ceiling]:
        note = assignment.unspent
    return planned(calibration, calibration.whole(plan.thresholds), plan.cost, note)


def planned(calibration: Calibration, thresholds: Thresholds, cost: float, note: str | None = None) -> Planned:
    """The policy of such thresholds, tried on the calibration records."""
    records, costs, table = calibration.records, calibration.costs, calibration.table
    policy = ThresholdPolicy(calibration.score, thresholds.values, thresholds.enabled, records.num_classes)
    # Where an exit is off its output is not looked at, so that a sample that is not finite there may still leave later.
    exits = table.exits(thresholds) if table.finite.all() else replay(policy, records, costs).exits
    counts = np.bincount(exits, minlength=len(costs))
    spent = float(counts @ costs.values / len(exits))
    accuracy = None
    if records.utility is not None:
        accuracy = float(records.utility[exits, np.arange(len(exits))].mean(dtype=np.float64))
    return Planned(policy, cost, spent, accuracy, note, counts / len(exits), len(exits))


@dataclass(frozen=True)
class TableFamily:
    """The family of a scheduler that was loaded from a file: one policy for each budget of a table."""

    table: PolicyTable
    costs: ExitCosts

    @property
    def points(self) -> int:
        """How many budgets the table has."""
        return len(self.table)

    def plan(self, budget: float) -> Planned:
        """The policy of the largest budget in the table that is not above this one."""
        row = self.table.index(budget)
        cost, accuracy = float(self.table.planned_costs[row]), float(self.table.accuracies[row])
        shares = None if self.table.shares is None else self.table.shares[row]
        known = None if np.isnan(accuracy) else accuracy
        return Planned(self.table.policies[row], cost, cost, known, shares=shares, samples=self.table.samples)


class Tabulated:
    """A family with its table, made when first asked for."""

    def __init__(self, family: Family, points: int | None = None) -> None:
        self.family = family
        self._points = points or family.points

    @cached_property
    def table(self) -> PolicyTable:
        """Policies for budgets evenly spaced from the smallest feasible one to the last exit's cost."""
        if isinstance(self.family, TableFamily):
            return self.family.table
        costs, points = self.family.costs, self._points
        low = costs[0]
        try:
            self.family.plan(low)
        except InfeasibleBudgetError as error:
            low = error.smallest
        budgets = np.unique(np.linspace(low, costs[-1], points)) if points > 1 else np.array([low])
        plans = [self.family.plan(budget) for budget in budgets.tolist()]
        accuracies = [np.nan if p.accuracy is None else p.accuracy for p in plans]
        spent = np.maximum.accumulate([p.calibration_cost for p in plans])
        known = [p.shares for p in plans if p.shares is not None]
        shares = np.stack(known) if len(known) == len(plans) else None
        policies = tuple(p.policy for p in plans)
        return PolicyTable(budgets, spent, np.array(accuracies), policies, costs.unit, shares, plans[0].samples)
