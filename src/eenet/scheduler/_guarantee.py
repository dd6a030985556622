"""Guarantees: a budget or an accuracy that holds on fresh data with a given probability, not only on average.

The policies of a fit on one part of the records are tried on another part in a fixed order, from the safest; the last
one before the first that fails is taken. Testing in a fixed order needs no correction for trying many.
Source: Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test" (2021), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, InvalidInputError
from eenet.records import ExitRecords
from eenet.scheduler._fitted import Fitted, PlannedPolicy, PolicyTable, fold_numbers, policy_table
from eenet.scheduler._policy import Bools, Floats, Ints, as_answered, replay

_BOLDNESS = 0.9
"""The largest bet, as a share of the one that could lose the whole capital."""

_COARSE, _FINE = 21, 201
"""A finer table wastes less of the budget between two policies, where planning one is quick."""


class GuaranteedFit(Fitted):
    """The policies of a fit whose mean cost on fresh data is within the budget with a given probability."""

    def __init__(self, fitted: Fitted, tested: ExitRecords, guarantee: float) -> None:
        self._base = fitted
        self._tested = tested
        self._error = 1 - guarantee
        self.costs = fitted.costs

    @cached_property
    def _policies(self) -> PolicyTable:
        return policy_table(self._base, _FINE) if self._base.points > _COARSE else self._base.table

    @cached_property
    def _exits(self) -> Ints:
        """The exits of the tested samples under each policy of the table, (G, n)."""
        policies = self._policies.policies
        return np.stack([replay(policy, self._tested, self.costs).exits for policy in policies])

    @cached_property
    def _values(self) -> Floats:
        """What they cost, from 0 at the first exit to 1 at the last, (G, n)."""
        c = self.costs.values
        values: Floats = ((c - c[0]) / (c[-1] - c[0]))[self._exits]
        return values

    def plan(self, budget: float) -> PlannedPolicy:
        """The most expensive policy that keeps the budget with the probability asked for."""
        first, last = self.costs[0], self.costs[-1]
        below = mean_is_below(self._values, (budget - first) / (last - first), self._error)
        count = len(below) if below.all() else int(below.argmin())
        if count == 0:
            smallest = first + smallest_limit(self._values[0], self._error) * (last - first)
            raise InfeasibleBudgetError(
                f"budget {budget:.6g} {self.costs.unit} cannot be guaranteed at {1 - self._error:.6g} by the "
                f"{len(self._tested)} samples kept to test it; the smallest that can is {smallest:.6g} "
                f"{self.costs.unit}, and more samples, unlabeled ones too, bring it down",
                smallest=smallest,
            )
        table = self._policies
        return _planned(table, count - 1, self._exits[count - 1], self._tested, self.costs)


def _planned(table: PolicyTable, row: int, exits: Ints, tested: ExitRecords, costs: ExitCosts) -> PlannedPolicy:
    spent = float(costs.values[exits].mean())
    utility = as_answered(table.policies[row].score, tested).utility
    accuracy = None if utility is None else float(utility[exits, np.arange(len(exits))].mean(dtype=np.float64))
    shares = np.bincount(exits, minlength=len(costs)) / len(exits)
    return PlannedPolicy(
        table.policies[row], float(table.planned_costs[row]), spent, accuracy, shares=shares, samples=len(exits)
    )


def cheapest_within(
    fitted: Fitted, tested: ExitRecords, drop: float, guarantee: float
) -> tuple[PlannedPolicy, PolicyTable]:
    """The cheapest policy whose accuracy on fresh data is within `drop` of the last exit's, with that probability.

    Raises `InvalidInputError` where the samples cannot show it for any policy, naming about how many could.
    """
    utility = tested.require_utility().astype(np.float64)
    table, costs, error = fitted.table, fitted.costs, 1 - guarantee
    answered = as_answered(table.policies[0].score, tested).require_utility().astype(np.float64)
    samples = np.arange(len(tested))
    best: tuple[int, Ints] | None = None
    lost: Floats = np.zeros(len(tested))
    for row in reversed(range(len(table))):
        exits = replay(table.policies[row], tested, costs).exits
        lost = utility[-1] - answered[exits, samples]
        if not mean_is_below((lost[None] + 1) / 2, (drop + 1) / 2, error)[0]:
            break
        best = row, exits
    if best is None:
        spread = max(float(np.square(lost).mean()), drop)
        needed = math.ceil(4 * math.log(1 / error) * spread / drop**2)
        raise InvalidInputError(
            f"max_accuracy_drop={drop:g} cannot be guaranteed at {guarantee:g} by the {len(tested)} samples kept to "
            f"test it, for any policy; that takes about {needed} of them, or allow a larger drop or a smaller guarantee"
        )
    row, exits = best
    chosen = _planned(table, row, exits, tested, costs)
    # On the tested samples it may cost more than on those it was fitted on; what is planned is the larger of the two.
    chosen = replace(chosen, planned_cost=max(chosen.calibration_cost, chosen.planned_cost))
    as_planned = replace(chosen, calibration_cost=chosen.planned_cost)
    return chosen, PolicyTable.of(np.array([chosen.planned_cost]), [as_planned], costs)


@array_value
@dataclass(frozen=True)
class Guarantee:
    """What a user asks to be guaranteed: the budget or the accuracy."""

    guarantee: float | None = None
    max_accuracy_drop: float | None = None
    unlabeled: ExitRecords | None = None

    @property
    def promises(self) -> dict[str, float]:
        """What is promised, by name."""
        named = {"guarantee": self._probability, "max_accuracy_drop": self.max_accuracy_drop}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def _probability(self) -> float | None:
        return 0.95 if self.guarantee is None and self.max_accuracy_drop is not None else self.guarantee

    def require_possible(self, records: ExitRecords, budget: object) -> None:
        """Raise `InvalidInputError` for what cannot be asked, or not together."""
        level, drop, extra = self.guarantee, self.max_accuracy_drop, self.unlabeled
        if level is not None and not (_is_number(level) and 0 < level < 1):
            raise InvalidInputError(f"guarantee={level!r}: expected a probability between 0 and 1, such as 0.95")
        if drop is not None:
            if not (_is_number(drop) and 0 < drop < 1):
                raise InvalidInputError(f"max_accuracy_drop={drop!r}: expected a share between 0 and 1, such as 0.01")
            if budget is not None:
                raise InvalidInputError(
                    f"budget={budget!r} and max_accuracy_drop={drop:g}: give one of them; the drop finds its own budget"
                )
        if extra is not None:
            if level is None or drop is not None:
                raise InvalidInputError(
                    "unlabeled records are for a guaranteed budget: give guarantee=0.95 too, and no max_accuracy_drop"
                )
            if (extra.num_exits, extra.num_classes) != (records.num_exits, records.num_classes):
                raise InvalidInputError(
                    f"the unlabeled records have {extra.num_exits} exits and {extra.num_classes} classes, the "
                    f"labeled ones {records.num_exits} and {records.num_classes}; collect both from one network"
                )

    def fit(
        self, fit: Callable[[ExitRecords, ExitCosts], Fitted], records: ExitRecords, costs: ExitCosts, seed: int
    ) -> tuple[Fitted, PlannedPolicy | None]:
        """The guaranteed fit, and the policy where the accuracy chooses it."""
        level = self._probability
        assert level is not None, "require_possible was called"
        if self.unlabeled is not None:
            order = np.random.default_rng([seed, 1]).permutation(len(self.unlabeled))
            calibration, tested = records, self.unlabeled.subset(order)
        else:
            calibration, tested = _halves(records, seed)
        fitted = fit(calibration, costs)
        if self.max_accuracy_drop is None:
            return GuaranteedFit(fitted, tested, level), None
        chosen, only = cheapest_within(fitted, tested, self.max_accuracy_drop, level)
        return only, chosen


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _halves(records: ExitRecords, seed: int) -> tuple[ExitRecords, ExitRecords]:
    """Two halves at random, one to fit on and one to test on; equal samples are never divided."""
    half = fold_numbers(records, seed, 2)
    if half.max() == 0:
        raise InvalidInputError(
            f"all {len(records)} calibration samples are the same sample, so that none is left to test a guarantee on; "
            "give records of different samples"
        )
    # The order in which samples are tested must not depend on them.
    order = np.random.default_rng([seed, 1]).permutation(len(records))
    return records.subset(np.flatnonzero(half == 0)), records.subset(order[half[order] == 1])


def mean_is_below(values: Floats, limit: float, error: float) -> Bools:
    """For each row of values in [0, 1], (G, n), whether its mean in the population is below the limit.

    A row whose population mean is at the limit or above it is called below with probability `error` at most, whatever
    the distribution. The rows' samples must be independent draws, in an order that was not chosen by their values.
    Source: the capital process of Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
    Journal of the Royal Statistical Society B 86 (2024), with their predictable plug-in bets.
    """
    samples = values.shape[1]
    if limit >= 1:
        return np.ones(len(values), dtype=np.bool_)
    if limit <= 0 or samples == 0:
        return np.zeros(len(values), dtype=np.bool_)
    return np.asarray(log_capital(values, limit, error).max(axis=1) >= math.log(1 / error))


def log_capital(values: Floats, limit: float, error: float) -> Floats:
    """The logarithm of the capital after each sample, (G, n), of a bettor on a mean below the limit."""
    samples = values.shape[1]
    seen = np.arange(1, samples + 1)
    means = (0.5 + np.cumsum(values, axis=1)) / (seen + 1)
    variances = (0.25 + np.cumsum(np.square(values - means), axis=1)) / (seen + 1)
    # Each bet is made before its sample is seen.
    before = np.concatenate([np.full((len(values), 1), 0.25), variances[:, :-1]], axis=1)
    bets = np.minimum(np.sqrt(2 * math.log(1 / error) / (samples * before)), _BOLDNESS / (1 - limit))
    capital: Floats = np.cumsum(np.log1p(bets * (limit - values)), axis=1)
    return capital


def smallest_limit(values: Floats, error: float) -> float:
    """The smallest limit that the mean of the values (n,) is below, by the test; 1 where there is none below 1."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if mean_is_below(values[None], middle, error)[0]:
            high = middle
        else:
            low = middle
    return high
