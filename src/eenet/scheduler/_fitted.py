"""What a fit gives: the policy for every budget, and a table of policies to keep in a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InfeasibleBudgetError
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Assignment, Calibration
from eenet.scheduler._policy import Floats, Ints, Score, ThresholdPolicy, replay, score_from_arrays
from eenet.scheduler._thresholds import Thresholds, within


@array_value
@dataclass(frozen=True)
class PlannedPolicy:
    """A policy, the mean cost per sample planned for it, and that on the calibration records."""

    policy: ThresholdPolicy
    planned_cost: float
    calibration_cost: float
    accuracy: float | None
    note: str | None = None
    """Why much of the budget is left unspent, where it is."""

    shares: Floats | None = None
    """What part of the calibration records exited at each exit, (K,); None where that is not known."""

    samples: int = 0
    """How many calibration records those were."""


@dataclass(frozen=True)
class FrontierPoint:
    """A budget, the mean cost per sample on the calibration records within it, and their accuracy (None unlabeled)."""

    budget: float
    planned_cost: float
    accuracy: float | None


class Fitted(ABC):
    """A fitted method: the policy for every budget."""

    costs: ExitCosts
    points: int = 101
    """How many budgets its table has."""

    @abstractmethod
    def plan(self, budget: float) -> PlannedPolicy:
        """The policy for a budget in the unit of the costs; raises `InfeasibleBudgetError` where there is none."""

    @cached_property
    def table(self) -> PolicyTable:
        """Policies for budgets evenly spaced from the smallest feasible one to the last exit's cost."""
        return policy_table(self, self.points)


class ThresholdFit(Fitted):
    """Scores and an assignment: of several scores, each budget takes the most accurate on the calibration records."""

    def __init__(self, scores: Sequence[Score], assignment: Assignment, records: ExitRecords, costs: ExitCosts) -> None:
        self.calibrations = tuple(Calibration(score, records, costs) for score in scores)
        self.assignment = assignment
        self.costs = costs
        self.points = assignment.table_points

    def plan(self, budget: float) -> PlannedPolicy:
        """The policy for a budget."""
        policies = [assigned(self.assignment, calibration, budget) for calibration in self.calibrations]
        return max(policies, key=lambda planned: planned.accuracy or 0.0)


def assigned(assignment: Assignment, calibration: Calibration, budget: float) -> PlannedPolicy:
    """The policy that an assignment gives for a budget: under a ceiling where later exits are worse, with a note."""
    ceiling, costs = calibration.ceiling, calibration.costs
    if ceiling == len(costs) - 1 or assignment.unspent is None:
        plan = assignment.fit(calibration, budget)
        policy = planned(calibration, plan.thresholds, plan.cost)
        # A sample or so that might have gone from the first exit to the last is left by chance, where samples are few.
        left = (min(budget, costs[-1]) - policy.calibration_cost) * policy.samples
        return replace(policy, note=assignment.unspent) if left > 3 * (costs[-1] - costs[0]) else policy
    note = f"on the calibration records exit {ceiling} is clearly better than the last, so no sample goes beyond it"
    if ceiling == 0:
        return planned(calibration, calibration.table.cheapest(), costs[0], note)
    plan = assignment.fit(calibration.worthwhile, min(budget, costs[ceiling]))
    if budget < costs[ceiling]:
        note = assignment.unspent
    return planned(calibration, calibration.whole(plan.thresholds), plan.cost, note)


def planned(calibration: Calibration, thresholds: Thresholds, cost: float, note: str | None = None) -> PlannedPolicy:
    """The policy of such thresholds, tried on the calibration records."""
    records, costs, table = calibration.records, calibration.costs, calibration.table
    policy = ThresholdPolicy(calibration.score, thresholds.values, thresholds.enabled, records.num_classes)
    # Where an exit is off its output is not read, so that a sample that is not finite there may still exit later.
    exits = table.exits(thresholds) if table.finite.all() else replay(policy, records, costs).exits
    counts = np.bincount(exits, minlength=len(costs))
    spent = float(counts @ costs.values / len(exits))
    accuracy = None
    if records.utility is not None:
        accuracy = float(records.utility[exits, np.arange(len(exits))].mean(dtype=np.float64))
    return PlannedPolicy(policy, cost, spent, accuracy, note, counts / len(exits), len(exits))


def policy_table(fitted: Fitted, points: int) -> PolicyTable:
    """The policies of a fit for as many budgets as `points`."""
    low = fitted.costs[0]
    try:
        fitted.plan(low)
    except InfeasibleBudgetError as error:
        low = error.smallest
    budgets = np.unique(np.linspace(low, fitted.costs[-1], points)) if points > 1 else np.array([low])
    return PolicyTable.of(budgets, [fitted.plan(budget) for budget in budgets.tolist()], fitted.costs)


@array_value
@dataclass(frozen=True, repr=False)
class PolicyTable(Fitted):
    """Policies for rising budgets, G of them; planned costs never fall.

    `budgets`, `planned_costs` and `accuracies` are (G,); an accuracy is NaN where the records had no labels. `shares`
    (G, K) says what part of the `samples` calibration samples exited at each exit; None in files that do not say.
    """

    budgets: Floats
    planned_costs: Floats
    accuracies: Floats
    policies: tuple[ThresholdPolicy, ...]
    costs: ExitCosts
    shares: Floats | None = None
    samples: int = 0

    @classmethod
    def of(cls, budgets: Floats, plans: Sequence[PlannedPolicy], costs: ExitCosts) -> PolicyTable:
        """The table of plans for these budgets."""
        accuracies = np.array([np.nan if p.accuracy is None else p.accuracy for p in plans])
        spent: Floats = np.maximum.accumulate([p.calibration_cost for p in plans])
        known = [p.shares for p in plans if p.shares is not None]
        shares = np.stack(known) if len(known) == len(plans) else None
        return cls(budgets, spent, accuracies, tuple(p.policy for p in plans), costs, shares, plans[0].samples)

    def __repr__(self) -> str:
        low, high = self.budgets[[0, -1]].tolist()
        return f"PolicyTable({len(self)} budgets, {low:.4g} to {high:.4g} {self.costs.unit})"

    def __len__(self) -> int:
        return len(self.policies)

    @property
    def table(self) -> PolicyTable:
        """Itself."""
        return self

    def index(self, budget: float) -> int:
        """The row for a budget: the largest that is not above it; raises `InfeasibleBudgetError` below the first."""
        row = int(np.searchsorted(self.budgets, within(budget), side="right")) - 1
        if row < 0:
            smallest = float(self.budgets[0])
            raise InfeasibleBudgetError(
                f"budget {budget:.6g} {self.costs.unit} is below the smallest of the scheduler's table; the smallest "
                f"feasible budget is {smallest:.6g} {self.costs.unit}",
                smallest=smallest,
            )
        return row

    def plan(self, budget: float) -> PlannedPolicy:
        """The policy of the largest budget in the table that is not above this one."""
        row = self.index(budget)
        cost, accuracy = float(self.planned_costs[row]), float(self.accuracies[row])
        shares = None if self.shares is None else self.shares[row]
        known = None if np.isnan(accuracy) else accuracy
        return PlannedPolicy(self.policies[row], cost, cost, known, shares=shares, samples=self.samples)

    @property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """The rows without their policies."""
        rows = zip(self.budgets.tolist(), self.planned_costs.tolist(), self.accuracies.tolist(), strict=True)
        return tuple(FrontierPoint(b, c, None if np.isnan(a) else a) for b, c, a in rows)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything as arrays, to be saved; an array that is the same in every row is kept once."""
        arrays: dict[str, NDArray[Any]] = {
            "budgets": self.budgets,
            "planned_costs": self.planned_costs,
            "accuracies": self.accuracies,
            "thresholds": np.stack([p.thresholds for p in self.policies]),
            "enabled": np.stack([p.enabled for p in self.policies]).astype(np.uint8),
        }
        if any(p.abstains_below is not None for p in self.policies):
            below = [np.nan if p.abstains_below is None else p.abstains_below for p in self.policies]
            arrays["abstains_below"] = np.array(below)
        if self.shares is not None:
            arrays |= {"shares": self.shares, "samples": np.array([self.samples], dtype=np.int64)}
        distinct = {id(p.score): p.score for p in self.policies}
        numbers = {key: number for number, key in enumerate(distinct)}
        arrays["score_rows"] = np.array([numbers[id(p.score)] for p in self.policies], dtype=np.int64)
        fitted = [score.to_arrays() for score in distinct.values()]
        for name in fitted[0]:
            values = [arrays_of_one[name] for arrays_of_one in fitted]
            if all(np.array_equal(values[0], other) for other in values[1:]):
                arrays[f"score.{name}"] = values[0]
            else:
                arrays[f"scores.{name}"] = np.stack(values)
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], *, score: str, num_classes: int, costs: ExitCosts
    ) -> PolicyTable:
        """The table of what `to_arrays` gave."""
        try:
            columns = [arrays[name].astype(np.float64) for name in ("budgets", "planned_costs", "accuracies")]
            thresholds, enabled = arrays["thresholds"], arrays["enabled"].astype(np.bool_)
            rows: Ints = arrays["score_rows"]
        except KeyError as error:
            raise FileFormatError(f"a table of policies needs {error.args[0]!r}; found {sorted(arrays)}") from error
        count, exits = len(rows), len(costs)
        fits = thresholds.shape == enabled.shape == (count, exits - 1)
        if not count or not fits or any(c.shape != (count,) for c in columns):
            raise FileFormatError(
                f"a table of {count} policies for {exits} exits has thresholds of shape {thresholds.shape}; save "
                "the scheduler again"
            )
        shares = arrays.get("shares")
        below = arrays.get("abstains_below", np.full(count, np.nan))
        if below.shape != (count,):
            raise FileFormatError(f"a table of {count} policies abstains below {below.shape} log odds; save it again")
        counted = arrays.get("samples", np.zeros(1, dtype=np.int64)).reshape(-1)
        if shares is not None and (shares.shape != (count, exits) or len(counted) != 1):
            raise FileFormatError(
                f"a table of {count} policies for {exits} exits has shares of shape {shares.shape}; save the "
                "scheduler again"
            )
        shared = {name.removeprefix("score."): a for name, a in arrays.items() if name.startswith("score.")}
        stacked = {name.removeprefix("scores."): a for name, a in arrays.items() if name.startswith("scores.")}
        last = int(rows.max())
        if rows.min() < 0 or any(len(a) <= last for a in stacked.values()):
            raise FileFormatError("the rows of a table of policies point to scores that it lacks; save it again")
        scores = [score_from_arrays(score, shared | {n: a[i] for n, a in stacked.items()}) for i in range(last + 1)]
        policies = tuple(
            ThresholdPolicy(scores[row], thresholds[i], enabled[i], num_classes, abstains_from(below[i : i + 1]))
            for i, row in enumerate(rows.tolist())
        )
        return cls(columns[0], columns[1], columns[2], policies, costs, shares, int(counted[0]))


def abstains_from(saved: NDArray[Any] | None) -> float | None:
    """What `abstains_below` was, from the one number that is kept of it in files: NaN for none."""
    return None if saved is None or np.isnan(saved[0]) else float(saved[0])


def fold_numbers(records: ExitRecords, seed: int, folds: int) -> Ints:
    """A fold for each sample, (N,), at random; samples with equal outputs at all exits share one."""
    _, group = np.unique(records.digests(), return_inverse=True)
    group = group.reshape(-1)
    order = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    numbers: Ints = order[group] % min(folds, len(order))
    return numbers
