"""Never worse than the obvious: exits that say nothing are left out, and a simple rule that is better is taken.

A fit is compared with what needs no fitting: one exit for all samples, max probability with geometric shares, and
searched thresholds. All are compared on the same samples, and what was learned or searched on samples that it was not
learned or searched on.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from eenet.costs import ExitCosts
from eenet.errors import InfeasibleBudgetError
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Calibration, Geometric
from eenet.scheduler._fitted import Fitted, Outcome, PlannedPolicy, ThresholdFit, assigned, exits_of, planned
from eenet.scheduler._policy import Bools, Floats, score_class
from eenet.scheduler._reports import CERTAIN, Cheaper, DeadExit, Fallback
from eenet.scheduler._search import search_thresholds
from eenet.scheduler._thresholds import Thresholds, within

_SAVES = 0.9
"""A rule that costs at most this part of the policy's cost is taken where it is as accurate, too."""

_AS_CHEAP = 1.02
"""The part of the policy's cost up to which a rule costs the same: one that spends more should be more accurate."""

_WORTH = 0.02
"""The accuracy that the whole cost must be worth: a rule that saves a half of it may be behind by half of this, within
the certainty of the records, as long as it is not behind on the records themselves."""

_BEYOND_DOUBT = 3.0
"""Standard errors by which leaving at an exit must lose, for the exit to be left out."""

_FEWEST = 100
"""Samples below which no exit is called dead: the most common class of so few is not that of others."""

_KNOTS = 12
_SEARCHED, _GEOMETRIC = "SearchedThresholds", "MaxProbability"
_NO_THRESHOLD = -1000.0  # below all log odds


def dead_exits(records: ExitRecords, costs: ExitCosts | None = None) -> tuple[DeadExit, ...]:
    """The early exits at which samples that exit lose beyond chance.

    An exit says nothing where it is right no more often than naming the most common class would be, also on the
    samples that it is surest of, and a later exit is better. With costs an exit also counts that does worse than two
    others drawn by lot at its cost, whether all samples exit or only those that it is surest of. Of fewer than 100
    samples nothing is said.

    Parameters
    ----------
    records : ExitRecords
        Records with labels.
    costs : ExitCosts, optional
        The costs of the exits.

    Returns
    -------
    tuple of DeadExit

    Examples
    --------
    >>> from eenet.testing import toy_records
    >>> dead_exits(toy_records())
    ()
    """
    if records.utility is None or len(records) < _FEWEST:
        return ()
    utility = records.utility.astype(np.float64)
    found = []
    for k in range(records.num_exits - 1):
        dead = _says_nothing(records, utility, k)
        if dead is None and costs is not None:
            dead = _does_not_pay(records, utility, costs.values, k)
        if dead is not None:
            found.append(dead)
    return tuple(found)


def _says_nothing(records: ExitRecords, utility: Floats, k: int) -> DeadExit | None:
    if records.labels is None:
        return None
    later = k + 1 + int(utility[k + 1 :].mean(axis=1).argmax())
    if not _ahead(utility[later] - utility[k], _BEYOND_DOUBT):
        return None
    counts = np.bincount(records.labels)
    common = float(counts.max() / len(records))
    surest = _surest(records, k, 1 / 3)
    over_all, over_surest = utility[k] - (records.labels == counts.argmax()), utility[k, surest] - common
    if _ahead(over_all, 2.0) or _ahead(over_surest, 2.0):
        return None
    accuracy = utility.mean(axis=1).tolist()
    return DeadExit(k, accuracy[k], common, accuracy[later], (later,), len(records))


def _does_not_pay(records: ExitRecords, utility: Floats, costs: Floats, k: int) -> DeadExit | None:
    subsets = [_surest(records, k, share) for share in (1 / 6, 1 / 3, 2 / 3, 1)]
    found = None
    for low in range(k):
        for high in range(k + 1, len(costs)):
            share = (costs[k] - costs[low]) / (costs[high] - costs[low])
            mixed = (1 - share) * utility[low] + share * utility[high]
            better = float(mixed.mean())
            if all(_ahead((mixed - utility[k])[rows], _BEYOND_DOUBT) for rows in subsets) and (
                found is None or better > found.better
            ):
                found = DeadExit(k, float(utility[k].mean()), None, better, (low, high), len(records))
    return found


def _surest(records: ExitRecords, k: int, share: float) -> Any:
    """The numbers of the samples that exit k is surest of."""
    sureness = np.nan_to_num(records.probabilities[k].max(axis=1), nan=-1.0)
    return np.argsort(-sureness, kind="stable")[: max(1, round(share * len(records)))]


def standard_error(differences: Floats) -> float:
    """Of the mean of paired differences (N,) in [-1, 1]; one more that is 1 keeps it above 0 where all are equal."""
    centered = differences - differences.mean()
    return float(np.sqrt(centered @ centered + 1) / len(differences))


def _ahead(differences: Floats, errors: float) -> bool:
    return bool(differences.mean() > errors * standard_error(differences))


class Rules:
    """The simple rules on calibration records, for any budget."""

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self.costs = calibration.costs
        self.utility: Floats = calibration.records.require_utility().astype(np.float64)

    @classmethod
    def of(cls, own: Fitted, records: ExitRecords, costs: ExitCosts, live: Bools, seed: int) -> Rules:
        """The rules to compare a fit with."""
        known = own.calibrations[0] if isinstance(own, ThresholdFit) else None
        if known is None or known.score.name != "max_prob":
            known = Calibration(score_class("max_prob")(), records, costs, live=live, seed=seed)
        return cls(known)

    @cached_property
    def smallest(self) -> float:
        """The smallest budget that can be met."""
        return self.calibration.table.mean_cost(self.calibration.table.cheapest())

    @cached_property
    def knots(self) -> Floats:
        """The budgets at which rules are compared: between them their outcomes are interpolated."""
        ends = np.unique([self.smallest, *self.costs.values[self.costs.values > self.smallest]])
        steps = max(2, round(_KNOTS / max(1, len(ends) - 1)))
        return np.unique(np.concatenate([np.linspace(a, b, steps + 1) for a, b in pairwise(ends)] or [ends]))

    @cached_property
    def statics(self) -> list[tuple[str, Thresholds, Outcome]]:
        """One exit for all samples, by the cost."""
        early = len(self.costs) - 1
        made = []
        for k in [*np.flatnonzero(self.calibration.table.live).tolist(), early]:
            thresholds = Thresholds(np.full(early, _NO_THRESHOLD), np.arange(early) == k)
            exits = self.calibration.table.exits(thresholds)
            made.append((f"Static({k})", thresholds, Outcome.of(exits, self.utility, self.costs)))
        return made

    def static(self, budget: float) -> tuple[str, Thresholds, Outcome] | None:
        """The most accurate exit that the budget allows."""
        affordable = [s for s in self.statics if s[2].cost <= within(budget)]
        return max(affordable, key=lambda s: s[2].accuracy, default=None)

    def outcomes(self, budget: float, geometric: Outcome | None) -> dict[str, Outcome]:
        """What the rules that can be planned for every budget bring, searched ones out of fold."""
        calibration = self.calibration
        if geometric is None:
            geometric = Outcome.of(exits_of(Geometric(), calibration, budget), self.utility, self.costs)
        found = {_GEOMETRIC: geometric}
        if calibration.folds is not None and calibration.grid is not None:
            found[_SEARCHED] = Outcome.of(calibration.grid.out_of_fold(budget), self.utility, self.costs)
        return found

    def plan(self, name: str, budget: float) -> PlannedPolicy:
        """The policy of a rule by its name."""
        calibration = self.calibration
        if name == _GEOMETRIC:
            return assigned(Geometric(), calibration, budget)
        if name == _SEARCHED:
            found = search_thresholds(calibration.table, self.utility, budget, calibration.grid, brief=True)
        else:
            found = next(thresholds for known, thresholds, _ in self.statics if known == name)
        return planned(calibration, found, calibration.table.mean_cost(found))


def simple_rule(records: ExitRecords, costs: ExitCosts, live: Bools | None, why: str) -> ThresholdFit:
    """Max probability with geometric shares, fitted in place of a method that cannot be."""
    fitted = ThresholdFit([Calibration(score_class("max_prob")(), records, costs, live=live)], Geometric())
    fitted.replaced = why
    return fitted


class NeverWorse(Fitted):
    """A fit whose policy for a budget is a simple rule's where that is better."""

    def __init__(self, own: Fitted, rules: Rules | None, dead: tuple[DeadExit, ...]) -> None:
        self.own = own
        self.rules = rules
        self.dead = dead
        self.replaced = own.replaced
        self.costs = own.costs
        self.points = own.points
        asked = None  # where it is no rule of max probability
        if rules is not None and isinstance(own, ThresholdFit) and own.calibrations[0] is rules.calibration:
            asked = own.assignment
        self._is_geometric = isinstance(asked, Geometric)
        self._needed = CERTAIN if self._is_geometric or (asked is not None and asked.searches) else 0.0
        self._at_knots: dict[int, dict[str, Outcome]] = {}

    def plan(self, budget: float) -> PlannedPolicy:
        """The policy for a budget."""
        self._require_live(budget)
        taken = None if self.rules is None else self._fallback(self.rules, budget)
        if taken is None or self.rules is None:
            return self.own.plan(budget)
        plan = self.own.plan(budget) if taken.reason == "fit" else self.rules.plan(taken.taken, budget)
        return replace(plan, note=None, fallback=taken)

    def _require_live(self, budget: float) -> None:
        """Raise `InfeasibleBudgetError` where the budget is below the first exit that is not left out."""
        costs, out = self.costs, {d.exit_index for d in self.dead}
        first = next(k for k in range(len(costs)) if k not in out)
        if costs[first] <= within(budget):
            return
        smallest = costs[first]
        try:
            self.own.plan(smallest)
        except InfeasibleBudgetError as error:  # some samples have to go further
            smallest = error.smallest
        raise InfeasibleBudgetError(
            f"budget {budget:.6g} {costs.unit} cannot be met: {'; '.join(map(str, self.dead[:first]))}. Samples that "
            f"exit there lose, so exit {first} is the first that is used, and the smallest feasible budget is "
            f"{smallest:.6g} {costs.unit}; train the heads of the others, or attach exits further on",
            smallest=smallest,
        )

    def _fallback(self, rules: Rules, budget: float) -> Fallback | None:
        if budget < rules.smallest:
            return None  # the method itself says why it cannot be met
        own, taken = self._taken(rules, budget)
        if own is None or taken is None:
            return None
        name, reason, other = taken
        return Fallback(
            name,
            reason,
            other.accuracy,
            other.cost,
            own.accuracy,
            own.cost,
            standard_error(other.utility - own.utility),
            len(own.utility),
            self.costs.unit,
            self.own.replaced if reason == "fit" and self.own.replaced else "",
        )

    def _taken(self, rules: Rules, budget: float) -> tuple[Outcome | None, tuple[str, str, Outcome] | None]:
        """What the method brings at a budget, where that is known, and the rule in its place: its name and why."""
        own, others = self._outcomes(rules, budget)
        if own is None:
            return None, None
        best: tuple[float, str, str, Outcome] | None = None
        for name, other in others.items():
            gained = other.utility - own.utility
            mean, error = float(gained.mean()), standard_error(gained)
            worth = _WORTH * (1 - other.cost / own.cost)
            saves = other.cost <= _SAVES * own.cost and mean >= 0 and mean + worth >= CERTAIN * error
            saves = saves and not self._does_as_well(rules, other)
            as_cheap = other.cost <= _AS_CHEAP * own.cost
            ahead = mean > CERTAIN * error or (mean > 0 and as_cheap and name in self._ahead_everywhere)
            if (ahead or saves) and (best is None or mean > best[0]):
                best = mean, name, "accuracy" if ahead else "cost", other
        if best is not None:
            return own, best[1:]
        return own, None if self.own.replaced is None else (_GEOMETRIC, "fit", own)

    def _does_as_well(self, rules: Rules, other: Outcome) -> bool:
        """Whether the method itself is as accurate at the cost of a rule: then a smaller budget saves as much."""
        own, _ = self._outcomes(rules, max(other.cost, rules.smallest))
        return own is not None and own.accuracy >= other.accuracy

    def cheaper(self, budget: float) -> Cheaper | None:
        """The smallest budget whose policy is as accurate as that for this one, within a standard error."""
        rules = self.rules
        if rules is None or budget < rules.smallest:
            return None
        here = self._brings(rules, budget)
        if here is None:
            return None
        for knot in rules.knots[rules.knots < budget].tolist():
            there = self._brings(rules, knot)
            if there is None or there.cost > _SAVES * here.cost:
                continue
            lost = here.utility - there.utility
            error = standard_error(lost)
            if lost.mean() <= error:
                smallest = max(knot, rules.smallest)
                return Cheaper(
                    smallest, there.cost, there.accuracy, here.cost, here.accuracy, error, self.costs.unit, len(lost)
                )
        return None

    def _brings(self, rules: Rules, budget: float) -> Outcome | None:
        """What the policy for a budget brings, the method's own or a rule's."""
        own, taken = self._taken(rules, budget)
        return own if taken is None else taken[2]

    @cached_property
    def _ahead_everywhere(self) -> set[str]:
        """The rules that are more accurate than the method in the mean over all budgets."""
        assert self.rules is not None
        gained: dict[str, list[Floats]] = {}
        for number in range(len(self.rules.knots)):
            outcomes = dict(self._at_knot(self.rules, number))
            own = outcomes.pop("", None)
            if own is not None:
                for name, other in outcomes.items():
                    gained.setdefault(name, []).append(other.utility - own.utility)
        means = {name: np.mean(parts, axis=0) for name, parts in gained.items()}
        return {name for name, mean in means.items() if _ahead(mean, self._needed)}

    def _outcomes(self, rules: Rules, budget: float) -> tuple[Outcome | None, dict[str, Outcome]]:
        """Of the method and of the rules, between those at the two nearest knots."""
        knots = rules.knots
        place = float(np.interp(budget, knots, np.arange(len(knots))))
        low = min(int(place), max(0, len(knots) - 2))
        one, two = self._at_knot(rules, low), self._at_knot(rules, min(low + 1, len(knots) - 1))
        mixed = {name: one[name].between(two[name], place - low) for name in one if name in two}
        own = mixed.pop("", None)
        others: dict[str, Outcome] = {}
        static = rules.static(budget)
        if static is not None:
            others[static[0]] = static[2]
        return own, others | mixed

    def _at_knot(self, rules: Rules, number: int) -> dict[str, Outcome]:
        if number not in self._at_knots:
            budget = float(rules.knots[number])
            own = self.own.outcome(budget)
            outcomes = rules.outcomes(budget, own if self._is_geometric else None)
            self._at_knots[number] = outcomes if own is None else outcomes | {"": own}
        return self._at_knots[number]
