"""What a fit gives: the policy for every budget, and a table of policies to keep in a file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import FileFormatError, InfeasibleBudgetError
from eenet.scheduler._assignments import Assignment, Calibration
from eenet.scheduler._assignments import fold_numbers as fold_numbers
from eenet.scheduler._policy import Floats, Ints, ThresholdPolicy, score_from_arrays
from eenet.scheduler._replay import replay
from eenet.scheduler._reports import Cheaper, DeadExit, Fallback
from eenet.scheduler._thresholds import Thresholds, within

SIMPLE = -1
"""Stands for max probability in a table of another score's policies."""


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

    fallback: Fallback | None = None
    """The simple rule that it is, where it is not the method's own."""

    handed_back: float | None = None
    """The share of the calibration records that is handed back; None where it was not asked for, or is not known."""


@array_value
@dataclass(frozen=True)
class Outcome:
    """What a rule for a budget brings: the utility of each of the calibration samples, (N,), and their mean cost.

    Where anything was learned or searched, it was so on other samples.
    """

    utility: Floats
    cost: float

    @classmethod
    def of(cls, exits: Ints, utility: Floats, costs: ExitCosts) -> Outcome:
        """Of exits (N,) and the utility (K, N)."""
        return cls(utility[exits, np.arange(len(exits))], float(costs.values[exits].mean()))

    @property
    def accuracy(self) -> float:
        """The mean utility."""
        return float(self.utility.mean())

    def between(self, other: Outcome, share: float) -> Outcome:
        """The outcome that is `share` of the way to another."""
        utility = (1 - share) * self.utility + share * other.utility
        return Outcome(utility, (1 - share) * self.cost + share * other.cost)

    @staticmethod
    def spending(budget: float, points: Sequence[Outcome]) -> Outcome | None:
        """What may be had for a budget of points with rising costs: a mixture of the two around it, None below all."""
        above = bisect_right(points, within(budget), key=lambda point: point.cost)
        if above in (0, len(points)):
            return points[-1] if above else None
        low, high = points[above - 1], points[above]
        return low.between(high, max(0.0, (budget - low.cost) / (high.cost - low.cost)))


@dataclass(frozen=True)
class FrontierPoint:
    """A budget, the mean cost per sample on the calibration records within it, and their accuracy (None unlabeled).

    Where samples may be handed back, the accuracy is of the others, and `handed_back` the share that is.
    """

    budget: float
    planned_cost: float
    accuracy: float | None
    fallback: Fallback | None = None
    handed_back: float | None = None


class Fitted(ABC):
    """A fitted method: the policy for every budget."""

    costs: ExitCosts
    points: int = 101
    """How many budgets its table has."""
    replaced: str | None = None
    """Why the simple rule was fitted in place of the method, where it was."""
    dead: tuple[DeadExit, ...] = ()
    """The exits that are left out."""

    def outcome(self, budget: float) -> Outcome | None:  # noqa: ARG002 - for subclasses
        """What its policy for a budget brings on samples that nothing was learned on; None where that is not known."""
        return None

    def cheaper(self, budget: float) -> Cheaper | None:  # noqa: ARG002 - for subclasses
        """The smallest budget with a policy that is as accurate, within its error; None where that is not known."""
        return None

    @abstractmethod
    def plan(self, budget: float) -> PlannedPolicy:
        """The policy for a budget in the unit of the costs; raises `InfeasibleBudgetError` where there is none."""

    @cached_property
    def table(self) -> PolicyTable:
        """Policies for budgets evenly spaced from the smallest feasible one to the last exit's cost."""
        return policy_table(self, self.points)


class ThresholdFit(Fitted):
    """Scores and an assignment: of several scores, each budget takes the most accurate on the calibration records.

    `held_out` are scores of the same records that each came from a fit without the sample, if the scores are fitted; or
    a function that makes them when they are asked for.
    """

    def __init__(
        self,
        calibrations: Sequence[Calibration],
        assignment: Assignment,
        held_out: Calibration | Callable[[], Calibration] | None = None,
    ) -> None:
        self.calibrations = tuple(calibrations)
        self.assignment = assignment
        self.costs = self.calibrations[0].costs
        self.points = assignment.table_points
        self._held_out = held_out

    def plan(self, budget: float) -> PlannedPolicy:
        """The policy for a budget."""
        policies = [assigned(self.assignment, calibration, budget) for calibration in self.calibrations]
        return max(policies, key=lambda planned: planned.accuracy or 0.0)

    @cached_property
    def _tried(self) -> Calibration:
        if self._held_out is None:
            return self.calibrations[0]
        return self._held_out if isinstance(self._held_out, Calibration) else self._held_out()

    def outcome(self, budget: float) -> Outcome | None:
        """What its policy for a budget brings."""
        tried = self._tried
        if tried.records.utility is None:
            return None
        exits = exits_of(self.assignment, tried, budget)
        return Outcome.of(exits, tried.records.utility.astype(np.float64), self.costs)


def exits_of(assignment: Assignment, calibration: Calibration, budget: float) -> Ints:
    """Where each sample exits, (N,), under the policy that an assignment gives for a budget.

    Where it searches and the calibration has folds, under that for the other folds.
    """
    if assignment.searches and calibration.folds is not None and calibration.grid is not None:
        return calibration.grid.out_of_fold(budget)
    return calibration.table.exits(_assigned(assignment, calibration, budget)[0])


def assigned(assignment: Assignment, calibration: Calibration, budget: float) -> PlannedPolicy:
    """The policy that an assignment gives for a budget: under a ceiling where later exits are worse, with a note."""
    thresholds, cost, note = _assigned(assignment, calibration, budget)
    policy = planned(calibration, thresholds, cost, note)
    if note is not None or assignment.unspent is None:
        return policy
    # A sample or so that might have gone from the first exit to the last is left by chance, where samples are few.
    costs = calibration.costs
    left = (min(budget, costs[-1]) - policy.calibration_cost) * policy.samples
    return replace(policy, note=assignment.unspent) if left > 3 * (costs[-1] - costs[0]) else policy


def _assigned(assignment: Assignment, calibration: Calibration, budget: float) -> tuple[Thresholds, float, str | None]:
    """Thresholds, their planned cost, and what is to be said of a ceiling."""
    ceiling, costs = calibration.ceiling, calibration.costs
    if ceiling == len(costs) - 1 or assignment.unspent is None:
        plan = assignment.fit(calibration, budget)
        return plan.thresholds, plan.cost, None
    note = f"on the calibration records exit {ceiling} is clearly better than the last, so no sample goes beyond it"
    if ceiling == 0:
        return calibration.table.cheapest(), costs[0], note
    plan = assignment.fit(calibration.worthwhile, min(budget, costs[ceiling]))
    return calibration.whole(plan.thresholds), plan.cost, assignment.unspent if budget < costs[ceiling] else note


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
    fallbacks: tuple[Fallback | None, ...] = ()
    """What each policy was taken in place of; of old files nothing is known, and there are none."""
    handed_back: Floats | None = None
    """The share (G,) of the calibration samples that is handed back; None where none may be, and in old files."""

    @classmethod
    def of(cls, budgets: Floats, plans: Sequence[PlannedPolicy], costs: ExitCosts) -> PolicyTable:
        """The table of plans for these budgets."""
        accuracies = np.array([np.nan if p.accuracy is None else p.accuracy for p in plans])
        spent: Floats = np.maximum.accumulate([p.calibration_cost for p in plans])
        known = [p.shares for p in plans if p.shares is not None]
        shares = np.stack(known) if len(known) == len(plans) else None
        fallbacks = tuple(p.fallback for p in plans) if any(p.fallback for p in plans) else ()
        policies = tuple(p.policy for p in plans)
        back = np.array([np.nan if p.handed_back is None else p.handed_back for p in plans])
        handed_back = None if np.isnan(back).all() else back
        return cls(budgets, spent, accuracies, policies, costs, shares, plans[0].samples, fallbacks, handed_back)

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
            feasible = f"the smallest feasible budget is {smallest:.6g} {self.costs.unit}"
            if len(self) == 1:  # such as one for which something was promised
                feasible = f"it is for {smallest:.6g} {self.costs.unit} alone; fit again for another"
            raise InfeasibleBudgetError(
                f"budget {budget:.6g} {self.costs.unit} is below the smallest of the scheduler's table; {feasible}",
                smallest=smallest,
            )
        return row

    def plan(self, budget: float) -> PlannedPolicy:
        """The policy of the largest budget in the table that is not above this one."""
        row = self.index(budget)
        cost, accuracy = self._spent(row), float(self.accuracies[row])
        shares = None if self.shares is None else self.shares[row]
        known = None if np.isnan(accuracy) else accuracy
        taken = self.fallback(row)
        back = self._back(row)
        return PlannedPolicy(self.policies[row], cost, cost, known, None, shares, self.samples, taken, back)

    def _back(self, row: int) -> float | None:
        known = math.nan if self.handed_back is None else float(self.handed_back[row])
        return None if math.isnan(known) else known

    def _spent(self, row: int) -> float:
        """What the policy of a row costs: less than planned where a row before it costs more."""
        cost = float(self.planned_costs[row])
        if self.shares is None or row == 0 or cost > self.planned_costs[row - 1]:
            return cost
        own = float(self.shares[row] @ self.costs.values)
        return own if own < cost * (1 - 1e-9) else cost

    def fallback(self, row: int) -> Fallback | None:
        """The simple rule of a row, where it is one in place of the method's own policy."""
        return self.fallbacks[row] if self.fallbacks else None

    @property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """The rows without their policies."""
        spent = [self._spent(row) for row in range(len(self))]
        rows = zip(self.budgets.tolist(), spent, self.accuracies.tolist(), strict=True)
        return tuple(
            FrontierPoint(b, c, None if np.isnan(a) else a, self.fallback(i), self._back(i))
            for i, (b, c, a) in enumerate(rows)
        )

    @property
    def score_name(self) -> str:
        """The name of the policies' score; of those that are simple rules in place of others it is max probability."""
        names = [policy.score.name for policy in self.policies]
        return next((name for name in names if name != "max_prob"), names[0])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but the fallbacks as arrays, to be saved; an array that is the same in every row is kept once."""
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
        if self.handed_back is not None:
            arrays["handed_back"] = self.handed_back
        if self.shares is not None:
            arrays |= {"shares": self.shares, "samples": np.array([self.samples], dtype=np.int64)}
        main = self.score_name
        distinct = {id(p.score): p.score for p in self.policies if p.score.name == main}
        numbers = {key: number for number, key in enumerate(distinct)}
        rows = [numbers.get(id(p.score), SIMPLE) for p in self.policies]
        arrays["score_rows"] = np.array(rows, dtype=np.int64)
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
        cls,
        arrays: Mapping[str, NDArray[Any]],
        *,
        score: str,
        num_classes: int,
        costs: ExitCosts,
        fallbacks: Sequence[Fallback | None] = (),
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
        back = arrays.get("handed_back")
        if back is not None and back.shape != (count,):
            raise FileFormatError(f"a table of {count} policies hands back {back.shape} shares; save it again")
        counted = arrays.get("samples", np.zeros(1, dtype=np.int64)).reshape(-1)
        if shares is not None and (shares.shape != (count, exits) or len(counted) != 1):
            raise FileFormatError(
                f"a table of {count} policies for {exits} exits has shares of shape {shares.shape}; save the "
                "scheduler again"
            )
        shared = {name.removeprefix("score."): a for name, a in arrays.items() if name.startswith("score.")}
        stacked = {name.removeprefix("scores."): a for name, a in arrays.items() if name.startswith("scores.")}
        last = int(rows.max())
        if rows.min() < SIMPLE or any(len(a) <= last for a in stacked.values()) or len(fallbacks) not in (0, count):
            raise FileFormatError("the rows of a table of policies point to scores that it lacks; save it again")
        scores = [score_from_arrays(score, shared | {n: a[i] for n, a in stacked.items()}) for i in range(last + 1)]
        scores.append(score_from_arrays("max_prob", {}))  # at -1, which stands for SIMPLE
        policies = tuple(
            ThresholdPolicy(scores[row], thresholds[i], enabled[i], num_classes, abstains_from(below[i : i + 1]))
            for i, row in enumerate(rows.tolist())
        )
        known, n = (columns[0], columns[1], columns[2], policies, costs, shares), int(counted[0])
        return cls(*known, n, tuple(fallbacks), back)


def abstains_from(saved: NDArray[Any] | None) -> float | None:
    """What `abstains_below` was, from the one number that is kept of it in files: NaN for none."""
    return None if saved is None or np.isnan(saved[0]) else float(saved[0])


@dataclass(frozen=True)
class State:
    """The result of `fit`."""

    fitted: Fitted
    policy: ThresholdPolicy | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    promises: Mapping[str, float | str] = field(default_factory=dict)
    fallback: Fallback | None = None
    left_out: tuple[DeadExit, ...] = ()
    as_it_is: bool = False
    """Whether it was fitted with `fallback=False`."""
    fitted_to: str | None = None
    """Of what was read from a file: the digest of the records that it was fitted to, where the file says it."""
    network: str | None = None
    """The digest of the network's weights that the records had."""

    @property
    def compared(self) -> tuple[Any, ...]:
        """What makes two fits equal: the policy for the budget, or without one the policies for all budgets."""
        what = self.fitted.table if self.policy is None else (self.policy, dict(self.numbers))
        return self.fitted.costs, what, dict(self.promises)
