"""Guarantees: a budget or an accuracy that holds on fresh data with a given probability, or on average over the draws.

Policies are tried on calibration samples in a fixed order, from the safest; of those before the first that fails one is
taken. Testing in a fixed order needs no correction for trying many. A score that is not fitted has an order that no
sample has a part in, so that all samples test it; what is fitted is fitted on one half and tested on the other.
Source: Angelopoulos, Bates, Candes, Jordan and Lei, "Learn then Test" (2021), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError, InfeasibleError, InvalidInputError
from eenet.records import ExitRecords, require_same_network
from eenet.scheduler._abstention import NOTHING, Abstention, abstained, abstaining, certainties, possible
from eenet.scheduler._bounds import (
    BOLDEST,
    MEAN,
    ROWS,
    Path,
    TablePath,
    Tested,
    cost_limits,
    count_within,
    first_within,
    mean_is_below,
    threshold_paths,
    upper_limits,
)
from eenet.scheduler._fitted import Fitted, PlannedPolicy, PolicyTable, fold_numbers, policy_table
from eenet.scheduler._policy import Bools, Floats, Score
from eenet.scheduler._replay import replay
from eenet.scheduler._thresholds import ScoreTable, within
from eenet.tasks import LOG_ODDS_LIMIT

_COARSE, _FINE = 21, 201
"""A finer table wastes less of the budget between two policies, where planning one is quick."""

_ABSTAIN_AT = tuple(math.log(p / (1 - p)) for p in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99))
"""The thresholds, as log odds, below which samples may be handed back where an error is promised."""

_OF_ACCURACY = 0.8
"""Of the error, where a budget and an accuracy are promised together: an accuracy takes more samples to show."""

_CLEARLY = 3.0  # standard errors that the path of a single exit must be ahead


class GuaranteedFit(Fitted):
    """Paths of policies and the samples that test them: the policy whose mean cost is promised to be within a budget.

    `error` is the probability with which the promise may be broken; None for a promise in the mean. Of it, `of_cost`
    is for the budget and `of_accuracy` for an accuracy.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        tested: Tested,
        error: float | None,
        of_cost: float = 1.0,
        of_accuracy: float = 1.0,
    ) -> None:
        self._paths = paths
        self._tested = tested
        self._error = None if error is None else error * of_cost
        self._of_accuracy = of_accuracy / of_cost
        self._at = " in the mean" if error is None else f" at {1 - error:.6g}"
        self.costs = tested.costs

    def plan(self, budget: float) -> PlannedPolicy:
        """The most expensive policy that keeps the budget; of several paths that of the first, unless it is worse."""
        return self._planned(*self._best(budget))

    def _best(self, budget: float) -> tuple[Path, int]:
        best: tuple[Path, int] | None = None
        for path in self._paths:
            if best is not None and not self._may_be_better(path, best):
                continue
            row = self._first_within(path, budget)
            if row is not None and (best is None or self._is_clearly_better((path, row), best)):
                best = path, row
        if best is None:
            smallest = min(self._in_unit(self._limit(path)) for path in self._paths)
            raise InfeasibleBudgetError(
                f"budget {budget:.6g} {self.costs.unit} cannot be guaranteed{self._at} by the "
                f"{self._tested.samples} samples that test it; the smallest that can is {smallest:.6g} "
                f"{self.costs.unit}, and more samples, unlabeled ones too, bring it down",
                smallest=smallest,
            )
        return best

    @cached_property
    def table(self) -> PolicyTable:
        """Policies for budgets evenly spaced from the smallest that can be promised to the last exit's cost."""
        self._limits = [cost_limits(path, self._tested, self._error_on(path)) for path in self._paths]
        return policy_table(self, self.points)

    _limits: list[Floats] | None = None

    def _first_within(self, path: Path, budget: float) -> int | None:
        """The most expensive usable policy of a path that keeps the budget, as all cheaper ones do."""
        limit = (within(budget) - self.costs[0]) / (self.costs[-1] - self.costs[0])
        if self._limits is None:
            first = first_within(path, self._tested, limit, self._error_on(path))
        else:
            first = int(np.searchsorted(-self._limits[self._paths.index(path)], -limit))
        usable = np.flatnonzero(path.usable[first:])
        return first + int(usable[0]) if len(usable) else None

    def _limit(self, path: Path) -> float:
        """The smallest budget that the cheapest policy of a path keeps, as a share of the way to the last exit."""
        exits = path.exits(len(path) - 1, len(path))
        return float(upper_limits(self._tested.share_spent(exits), self._error_on(path))[0])

    def _in_unit(self, share: float) -> float:
        return self.costs[0] + share * (self.costs[-1] - self.costs[0])

    def _error_on(self, path: Path) -> float | None:
        return None if self._error is None else self._error * path.share

    def _count_within(self, path: Path, drop: float) -> int:
        """How many policies of a path, from the most expensive, keep the accuracy."""
        error = self._error_on(path)
        return count_within(path, self._tested, drop, None if error is None else error * self._of_accuracy)

    def _is_clearly_better(self, one: tuple[Path, int], other: tuple[Path, int]) -> bool:
        if self._tested.answered is None:
            return False
        worth = [self._tested.gained(path.exits(row, row + 1))[0] for path, row in (one, other)]
        ahead = worth[0] - worth[1]
        return bool(ahead.mean() > _CLEARLY * ahead.std() / math.sqrt(len(ahead)))

    def _may_be_better(self, path: Path, other: tuple[Path, int]) -> bool:
        """Whether any policy of a path is more accurate on the samples: otherwise none need be tested."""
        if self._tested.answered is None:
            return False
        accuracy = float(self._tested.gained(other[0].exits(other[1], other[1] + 1)).mean())
        return any(bool((self._tested.gained(exits).mean(axis=1) > accuracy).any()) for _, exits in path.chunks())

    def _planned(self, path: Path, row: int) -> PlannedPolicy:
        exits = path.exits(row, row + 1)
        spent = float(self.costs.values[exits].mean())
        accuracy = None if self._tested.answered is None else float(self._tested.gained(exits).mean())
        shares = np.bincount(exits[0], minlength=len(self.costs)) / exits.size
        planned = path.planned_cost(row) or spent
        taken = path.fallback(row)
        return PlannedPolicy(path.policy(row), planned, spent, accuracy, None, shares, exits.size, taken)

    def cheapest_within(self, drop: float) -> PlannedPolicy:
        """The cheapest policy whose accuracy is within `drop` of the last exit's.

        Raises `InfeasibleError` where the samples cannot show it for any policy, naming about how many could.
        """
        found = []
        for path in self._paths:
            count = self._count_within(path, drop)
            found += [self._planned(path, row) for row in np.flatnonzero(path.usable[:count])[-1:].tolist()]
        found = [plan for plan in found if plan.calibration_cost < self.costs[-1]]
        if not found:
            raise self._none_within(drop)
        chosen = min(found, key=lambda plan: plan.calibration_cost)
        # On the tested samples it may cost more than on those it was fitted on; planned is the larger of the two.
        planned = max(chosen.calibration_cost, chosen.planned_cost)
        return replace(chosen, planned_cost=planned)

    def within_both(self, budget: float, drop: float) -> PlannedPolicy:
        """The most accurate policy that keeps the budget and is within `drop` of the last exit's accuracy.

        Raises `InfeasibleBudgetError` with the smallest budget for which both can be promised, and `InfeasibleError`
        where the drop cannot be at all.
        """
        best: tuple[Path, int] | None = None
        counts = []
        for path in self._paths:
            if best is not None and not self._may_be_better(path, best):
                continue
            row = self._first_within(path, budget)
            counts.append((path, self._count_within(path, drop)))
            if row is not None and row < counts[-1][1] and (best is None or self._is_clearly_better((path, row), best)):
                best = path, row
        if best is not None:
            return self._planned(*best)
        smallest = math.inf
        for path, count in counts:
            for row in np.flatnonzero(path.usable[:count])[-1:].tolist():
                if self._planned(path, row).calibration_cost < self.costs[-1]:
                    limits = cost_limits(path, self._tested, self._error_on(path))
                    smallest = min(smallest, self._in_unit(float(limits[row])))
        if smallest == math.inf:
            raise self._none_within(drop)
        raise InfeasibleBudgetError(
            f"budget {budget:.6g} {self.costs.unit} and max_accuracy_drop={drop:g} cannot both be guaranteed"
            f"{self._at} by the {self._tested.samples} samples that test them; with this drop the smallest "
            f"budget that can is {smallest:.6g} {self.costs.unit}: raise one of them, or give more samples",
            smallest=smallest,
        )

    def _none_within(self, drop: float) -> InfeasibleError:
        least = 1 / drop if self._error is None else 4 * math.log(1 / (self._error * self._of_accuracy)) / drop
        needed = math.ceil(max(least, 2 * self._tested.samples))
        return InfeasibleError(
            f"max_accuracy_drop={drop:g} cannot be guaranteed{self._at} by the {self._tested.samples} samples "
            f"that test it, for any policy that is cheaper than the last exit; that takes about {needed} of them, "
            "or allow a larger drop or a smaller guarantee"
        )


class AbstainingGuarantee(GuaranteedFit):
    """The same with a threshold below which samples of the last exit are handed back.

    Each of the budget, the share handed back and the error of the others has a part of the error that may be made. The
    share is tested as that of all samples of which the last exit is not sure, wherever they exit: it is then the same
    for all policies, and no smaller than the true one. The error is tested at a few thresholds, which no sample has a
    part in, each with its part; along the path, from the most expensive policy down to the one that the budget chose.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        tested: Tested,
        error: float | None,
        parts: int,
        records: ExitRecords,
        asked: Abstention,
    ) -> None:
        super().__init__(paths, tested, error, 1 / parts)
        self._records = records
        self._asked = asked
        if asked.max_error is not None:  # each budget takes as many tests as there are policies
            self.points = _COARSE

    @cached_property
    def table(self) -> PolicyTable:
        """The policies of all budgets for which it can be promised."""
        self._limits = [cost_limits(path, self._tested, self._error_on(path)) for path in self._paths]
        return possible(self, np.linspace(self.costs[0], self.costs[-1], self.points))

    def plan(self, budget: float) -> PlannedPolicy:
        """The policy of the budget; raises `InfeasibleError` where what is asked cannot be promised with it."""
        path, row = self._best(budget)
        plan = self._planned(path, row)
        odds = certainties(plan.policy.score, self._records)
        if self._asked.max_error is None:
            below = self._for_share(odds)
        else:
            below = self._for_error(path, row, odds, self._asked.max_error)
        return abstained(plan, below, replay(plan.policy, self._records, self.costs), odds)

    def _for_share(self, odds: Floats) -> float:
        """The highest threshold at which the share handed back is promised, tested from the lowest on."""
        share = self._asked.share
        assert share is not None
        ascending = np.argsort(odds, kind="stable")
        counts, thresholds = abstaining(odds[ascending])
        rank = np.argsort(ascending, kind="stable")
        best = None
        for first in range(0, len(counts), ROWS):
            back = (rank[None] < counts[first : first + ROWS, None]).astype(np.float64)
            if self._error is None:
                kept = upper_limits(back, None) <= share
            else:
                kept = mean_is_below(back, share, self._error, boldest=BOLDEST)
            passed = len(kept) if kept.all() else int(kept.argmin())
            best = best if passed == 0 else float(thresholds[first + passed - 1])
            if passed < len(kept):
                break
        if best is None:
            smallest = float(upper_limits((rank[None] < counts[:1, None]).astype(np.float64), self._error)[0])
            raise self._too_small(smallest)
        return best

    def _for_error(self, path: Path, row: int, odds: Floats, most: float) -> float:
        """The lowest threshold at which the error of those that are answered is promised."""
        thresholds = np.array([-LOG_ODDS_LIMIT - 1, *_ABSTAIN_AT])
        error = None if self._error is None else self._error / len(thresholds)
        assert error is not None, "require_possible was called"
        largest = 0.0
        for threshold in thresholds.tolist():
            unsure = odds < threshold
            largest = max(largest, float(upper_limits(unsure[None].astype(np.float64), self._error)[0]))
            if self._keeps_error(path, row, unsure, most, error):
                if self._asked.share is not None and largest > self._asked.share:
                    raise self._too_small(largest)
                return float(threshold)
        raise InfeasibleError(
            f"max_error={most:g} cannot be guaranteed{self._at} at this budget by the {self._tested.samples} samples "
            "that test it, however many are handed back: allow a larger error, or a larger budget, since samples that "
            "exit early are not handed back, or give more samples"
        )

    def _keeps_error(self, path: Path, row: int, unsure: Bools, most: float, error: float) -> bool:
        last = len(self.costs) - 1
        for first in range(0, row + 1, ROWS):
            exits = path.exits(first, min(first + ROWS, row + 1))
            # A sample that is handed back counts as the error allowed, so that the mean is below it where that of the
            # others is.
            lost = np.where((exits == last) & unsure, most, 1 - self._tested.gained(exits))
            new = np.concatenate([[True], (lost[1:] != lost[:-1]).any(axis=1)])
            if not mean_is_below(lost[new], most, error).all():
                return False
        return True

    def _too_small(self, smallest: float) -> InfeasibleError:
        share, most = self._asked.share, self._asked.max_error
        what = "" if most is None else f" with max_error={most:g}"
        return InfeasibleError(
            f"abstain={share:g} cannot be guaranteed{self._at}{what} by the {self._tested.samples} samples that test "
            f"it; the smallest that can is abstain={math.ceil(smallest * 1e6) / 1e6:g}, and more samples bring it down"
        )


@array_value
@dataclass(frozen=True)
class Guarantee:
    """What a user asks to be guaranteed: the budget, the accuracy, or both."""

    guarantee: float | str | None = None
    max_accuracy_drop: float | None = None
    unlabeled: ExitRecords | None = None
    abstention: Abstention = NOTHING

    @property
    def promises(self) -> dict[str, float | str]:
        """What is promised, by name."""
        named = {"guarantee": self._level, "max_accuracy_drop": self.max_accuracy_drop}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def _level(self) -> float | str | None:
        return 0.95 if self.guarantee is None and self.max_accuracy_drop is not None else self.guarantee

    def require_possible(self, records: ExitRecords) -> None:
        """Raise `InvalidInputError` for what cannot be asked, or not together."""
        level, drop, extra = self.guarantee, self.max_accuracy_drop, self.unlabeled
        if level is not None and level != MEAN and not (_is_number(level) and 0 < float(level) < 1):
            raise InvalidInputError(
                f"guarantee={level!r}: expected a probability between 0 and 1, such as 0.95, or {MEAN!r}"
            )
        if drop is not None:
            if not (_is_number(drop) and 0 < drop < 1):
                raise InvalidInputError(f"max_accuracy_drop={drop!r}: expected a share between 0 and 1, such as 0.01")
            records.require_utility()
        if extra is not None:
            if level is None or drop is not None or self.abstention.asked:
                raise InvalidInputError(
                    "unlabeled records are for a guaranteed budget: give guarantee=0.95 too, and no max_accuracy_drop, "
                    "abstain or max_error"
                )
            if (extra.num_exits, extra.num_classes) != (records.num_exits, records.num_classes):
                raise InvalidInputError(
                    f"the unlabeled records have {extra.num_exits} exits and {extra.num_classes} classes, the "
                    f"labeled ones {records.num_exits} and {records.num_classes}; collect both from one network"
                )
            require_same_network("the labeled records are", records.network, extra.network, "the unlabeled ones have")

    def fit(
        self,
        fit: Callable[[ExitRecords, ExitCosts], Fitted],
        score: Score | None,
        records: ExitRecords,
        costs: ExitCosts,
        *,
        budget: float | None,
        seed: int,
    ) -> tuple[Fitted, PlannedPolicy | None]:
        """The guaranteed fit, and the policy where the accuracy has a part in choosing it.

        `score` is that of a method that fits nothing: then all records test it. Otherwise `fit` gets half of them.
        """
        level = self._level
        assert level is not None, "require_possible was called"
        error = None if isinstance(level, str) else 1 - level
        drop, asked = self.max_accuracy_drop, self.abstention
        if score is None:
            paths, tested, records = self._fitted(fit, records, costs, seed)
        else:
            paths, tested, records = self._not_fitted(score, records, costs, error, seed)
        if asked.asked:
            return AbstainingGuarantee(paths[:1], tested, error, 1 + len(asked.asked), records, asked), None
        if drop is None:
            return GuaranteedFit(paths, tested, error), None
        both = budget is not None
        promised = GuaranteedFit(paths, tested, error, 1 - _OF_ACCURACY if both else 1.0, _OF_ACCURACY if both else 1.0)
        chosen = promised.cheapest_within(drop) if budget is None else promised.within_both(budget, drop)
        as_planned = replace(chosen, calibration_cost=chosen.planned_cost)
        limit = chosen.planned_cost if budget is None else budget
        return PolicyTable.of(np.array([limit]), [as_planned], costs), chosen

    def _not_fitted(
        self, score: Score, records: ExitRecords, costs: ExitCosts, error: float | None, seed: int
    ) -> tuple[Sequence[Path], Tested, ExitRecords]:
        """The paths of a score that is not fitted, and the samples that test them, in their order."""
        if fold_numbers(records, seed, 2).max() == 0 and len(records) > 1:
            raise _same_sample(records)
        shuffled = _shuffled(records, seed)
        tables = [ScoreTable.of(score, shuffled, costs)]
        tested = Tested.of(score, shuffled, costs)
        if self.unlabeled is not None:
            tables.append(ScoreTable.of(score, _shuffled(self.unlabeled, seed), costs))
            tested = Tested(costs, len(records) + len(self.unlabeled), None, None)
        # A choice between paths by accuracy takes labels, and would spoil a promise in the mean.
        each = error is not None and tested.answered is not None and not self.abstention.asked
        return threshold_paths(score, tables, costs, records.num_classes, each=each), tested, shuffled

    def _fitted(
        self,
        fit: Callable[[ExitRecords, ExitCosts], Fitted],
        records: ExitRecords,
        costs: ExitCosts,
        seed: int,
    ) -> tuple[Sequence[Path], Tested, ExitRecords]:
        """The path of what is fitted to some of the samples, and the others, which test it."""
        if self.unlabeled is not None:
            calibration, extra = records, _shuffled(self.unlabeled, seed)
        else:
            calibration, extra = _halves(records, seed)
        fitted = fit(calibration, costs)
        fine = self.max_accuracy_drop is None and fitted.points > _COARSE
        table = policy_table(fitted, _FINE) if fine else fitted.table
        tested = Tested.of(table.policies[0].score, extra, costs)
        return [TablePath(table, extra)], tested, extra


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shuffled(records: ExitRecords, seed: int) -> ExitRecords:
    """In a random order: that in which samples are tested must not depend on them."""
    return records.subset(np.random.default_rng([seed, 1]).permutation(len(records)))


def _halves(records: ExitRecords, seed: int) -> tuple[ExitRecords, ExitRecords]:
    """Two halves at random, one to fit on and one to test on; equal samples are never divided."""
    half = fold_numbers(records, seed, 2)
    if half.max() == 0:
        raise _same_sample(records)
    order = np.random.default_rng([seed, 1]).permutation(len(records))
    return records.subset(np.flatnonzero(half == 0)), records.subset(order[half[order] == 1])


def _same_sample(records: ExitRecords) -> InvalidInputError:
    return InvalidInputError(
        f"all {len(records)} calibration samples are the same sample, so that none is left to test a guarantee on; "
        "give records of different samples"
    )
