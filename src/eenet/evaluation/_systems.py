"""The systems of a search, judged out of fold, and how the best are chosen and grown from any part of the samples."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._cascades import labels_and_utility, require_same_task
from eenet._values import array_value
from eenet.costs import ExitCosts
from eenet.errors import InvalidInputError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler import Scheduler, Static
from eenet.scheduler._fallback import standard_error
from eenet.scheduler._fitted import Outcome
from eenet.scheduler._out_of_fold import folds_of, out_of_fold
from eenet.scheduler._reports import CERTAIN
from eenet.tasks import UnknownVotesError

Floats = NDArray[np.float64]

_ROUNDING = 1e-9
_NAMED = 3  # systems that are left out, in a note
PLAIN, EXIT, EXITS, CASCADE = "plain network", "one exit", "exits", "cascade"
STATIC = (PLAIN, EXIT)
"""The kinds of systems that compute the same for all samples."""


class PlainCosts(ExitCosts):
    """What a plain network costs: one exit, so that there is no choice to make."""

    def __init__(self, cost: float, unit: str = "ms") -> None:
        super().__init__([cost, 2 * cost], unit, plain=cost)
        values = self.values[:1].copy()
        values.setflags(write=False)
        object.__setattr__(self, "values", values)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlainCosts, (self[0], self.unit)


@array_value
@dataclass(frozen=True)
class Member:
    """A candidate: its records with labels, and what it costs by itself."""

    name: str
    records: ExitRecords
    costs: ExitCosts

    @property
    def reference(self) -> float:
        """What it costs as a plain network."""
        return self.costs.reference

    @property
    def most(self) -> float:
        """What it costs by itself, whichever way it is run."""
        return max(self.costs[-1], self.reference)

    @cached_property
    def accuracy(self) -> float:
        """Of its last exit."""
        return float(self.records.accuracies[-1])


def labeled(candidates: Mapping[str, ExitRecords]) -> dict[str, ExitRecords]:
    """Records of the same samples, all with the labels that one has; raises `InvalidInputError` for other samples."""
    names, records = list(candidates), list(candidates.values())
    try:
        for number, one in enumerate(records):
            require_same_task(records[0], one, number)
        labels, utility = labels_and_utility(records)
    except InvalidInputError as error:
        named = re.sub(r"\bmember (\d+)", lambda found: f"candidate {names[int(found[1])]!r}", str(error))
        raise InvalidInputError(named) from error
    made = {name: copy.copy(one) for name, one in candidates.items()}
    for number, one in enumerate(made.values()):
        one.labels, one.utility = labels, None if utility is None else utility[number]
    return made


@dataclass(frozen=True)
class Recipe:
    """What a system is made of: members in the order in which they are asked, and of one exit alone its number."""

    members: tuple[str, ...]
    kind: str
    exit_index: int | None = None

    @property
    def name(self) -> str:
        """For tables."""
        name = " + ".join(self.members)
        if self.kind == EXIT:
            return f"{name}, exit {self.exit_index}"
        return f"{name}, with exits" if self.kind == EXITS else name

    @property
    def static(self) -> bool:
        """Whether all samples are answered by the same computation."""
        return self.kind in STATIC


@array_value
@dataclass(frozen=True)
class Judged:
    """What a system brings out of fold: for each fold outcomes with rising realized costs.

    What is in between is interpolated, so that systems are compared at equal realized cost.
    """

    recipe: Recipe
    points: tuple[list[Outcome], ...]

    def at(self, budget: float, fold: int) -> Outcome | None:
        """The outcome in one fold, where at most the budget is spent; None where that cannot be."""
        return Outcome.spending(budget, self.points[fold])


@dataclass(frozen=True)
class Dropped:
    """A candidate that is less accurate than others at no lower cost, at every exit."""

    name: str
    other: str
    accuracy: float
    cost: float
    other_accuracy: float
    other_cost: float

    def __str__(self) -> str:
        if self.other_accuracy > self.accuracy:
            why = "less accurate at no lower cost"
        else:
            why = "the same answers at no lower cost"
        return (
            f"{self.name} is dropped: {why}, {100 * self.accuracy:.2f} % at {self.cost:.4g}, where {self.other} has "
            f"{100 * self.other_accuracy:.2f} % at {self.other_cost:.4g}"
        )


class Judge:
    """Judges systems out of fold, each once, and chooses among them by some folds alone."""

    def __init__(
        self,
        members: Mapping[str, Member],
        scheduler: Scheduler,
        budgets: Sequence[float],
        *,
        max_members: int,
        folds: int,
        seed: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.members = dict(members)
        self.scheduler, self.budgets, self.max_members = scheduler, list(budgets), max_members
        self.rows = folds_of(next(iter(members.values())).records, seed, folds)
        self._progress = progress
        self._judged: dict[Recipe, Judged] = {}
        self._left_out: list[Recipe] = []
        self._fitted: dict[Recipe, Scheduler] = {}
        self._wanted = 0
        self.all_folds = tuple(range(len(self.rows)))
        self._grown: dict[tuple[int, ...], list[Judged]] = {}
        for some in (self.all_folds, *map(self.others, self.all_folds)):
            self._grow(some)

    def others(self, fold: int) -> tuple[int, ...]:
        """The other folds."""
        return tuple(other for other in self.all_folds if other != fold) or self.all_folds

    @property
    def count(self) -> int:
        """How many systems were judged."""
        return len(self._judged)

    def dropped(self) -> list[Dropped]:
        """The candidates that are dropped by all folds."""
        return self._dropped(self.all_folds)

    def left_out(self) -> str:
        """Which systems the scheduler cannot be used with, and why; empty where there is none."""
        if not self._left_out:
            return ""
        names = [recipe.name for recipe in self._left_out]
        more = len(names) - _NAMED
        listed = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{listed} {'is' if len(names) == 1 else 'are'} left out: {self.scheduler.name} counts on how many pixels "
            "exits agree, which is not known for records that were joined or cut; MaxProbability (max_prob) does not "
            "count it"
        )

    def pool(self) -> list[Judged]:
        """The systems that were grown by all folds."""
        return self._grown[self.all_folds]

    # Choosing

    def ranked(self, budget: float, folds: tuple[int, ...], *, static: bool = False) -> list[Judged]:
        """The systems that these folds grew and that meet the budget in all folds, the most accurate there first.

        Of equal ones the first is that of fewer members and of less cost.
        """
        found: list[tuple[Any, ...]] = []
        for one in self._grown[folds]:
            if static and not one.recipe.static:
                continue
            parts = [one.at(budget, fold) for fold in self.all_folds]
            if any(part is None for part in parts):
                continue
            known = [parts[fold] for fold in folds]
            worth = sum(float(part.utility.sum()) for part in known if part is not None)
            cost = sum(part.cost for part in known if part is not None)
            found.append((-worth, len(one.recipe.members), not one.recipe.static, cost, len(found), one))
        return [entry[-1] for entry in sorted(found, key=lambda entry: entry[:-1])]

    def _grow(self, folds: tuple[int, ...]) -> None:
        """Systems by the utility in these folds alone: singles, and cascades of those that are best at a budget."""
        gone = {one.name for one in self._dropped(folds)}
        kept = [member for member in self.members.values() if member.name not in gone]
        pool = self._judge(recipe for member in kept for recipe in self._alone(member))
        self._grown[folds] = pool
        for size in range(2, min(self.max_members, len(kept)) + 1):
            seeds = [best for best in self._bests(folds) if len(best.members) == size - 1]
            larger = {
                self._cascade((*seed.members, m.name)) for seed in seeds for m in kept if m.name not in seed.members
            }
            if not larger:
                break
            pool.extend(self._judge(sorted(larger, key=lambda recipe: recipe.members)))

    def _bests(self, folds: tuple[int, ...]) -> list[Recipe]:
        """The best system of each budget."""
        ranked = [self.ranked(budget, folds)[:1] for budget in self.budgets]
        return list(dict.fromkeys(one.recipe for best in ranked for one in best))

    def _dropped(self, folds: tuple[int, ...]) -> list[Dropped]:
        """Of each candidate that another is better than at every exit, beyond chance, its last exit and that one's."""
        rows = np.concatenate([self.rows[fold] for fold in folds])
        kept, dropped = list(self.members.values()), []
        for member in sorted(self.members.values(), key=lambda m: m.accuracy):
            better = [
                self._better(member, k, [m for m in kept if m is not member], rows) for k in range(len(member.costs))
            ]
            if better and all(one is not None for one in better):
                assert better[-1] is not None
                dropped.append(better[-1])
                kept.remove(member)
        return dropped

    def _better(self, member: Member, k: int, others: Iterable[Member], rows: NDArray[np.intp]) -> Dropped | None:
        """An exit that is more accurate than exit k for no more, or the same answers for no more.

        The last exit of another network counts with the exits before it, as in a cascade: without them it may cost
        less, but then that network is a candidate of its own.
        """
        cost = member.reference if k == len(member.costs) - 1 else member.costs[k]
        mine = member.records.require_utility()[k, rows].astype(np.float64)
        found: Dropped | None = None
        for other in others:
            for j, theirs in enumerate(other.records.require_utility()[:, rows].astype(np.float64)):
                price = other.most if j == len(other.costs) - 1 else other.costs[j]
                ahead = theirs - mine
                better = ahead.mean() > CERTAIN * standard_error(ahead)
                if price > cost * (1 + _ROUNDING) or not (better or self._same(member, k, other, j)):
                    continue
                if found is None or theirs.mean() > found.other_accuracy:
                    found = Dropped(
                        member.name, other.name, float(mine.mean()), cost, float(theirs.mean()), float(price)
                    )
        return found

    @staticmethod
    def _same(one: Member, k: int, other: Member, j: int) -> bool:
        return np.array_equal(one.records.probabilities[k], other.records.probabilities[j], equal_nan=True)

    # Judging

    def _alone(self, member: Member) -> list[Recipe]:
        """What a candidate can be by itself."""
        exits = len(member.costs)
        alone = [Recipe((member.name,), PLAIN)] if exits == 1 or member.costs.plain is not None else []
        if exits > 1:
            alone += [Recipe((member.name,), EXIT, k) for k in range(exits)]
            alone.append(Recipe((member.name,), EXITS))
        return alone

    def _cascade(self, names: Iterable[str]) -> Recipe:
        """The cascade of these members, the cheapest first."""
        order = list(self.members)
        return Recipe(tuple(sorted(names, key=lambda name: (self.members[name].costs[-1], order.index(name)))), CASCADE)

    def _judge(self, recipes: Iterable[Recipe]) -> list[Judged]:
        listed = [recipe for recipe in recipes if recipe not in self._left_out]
        self._wanted += sum(recipe not in self._judged for recipe in listed)
        for recipe in listed:
            if recipe not in self._judged:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ReliabilityWarning)
                    try:
                        self._judged[recipe] = Judged(recipe, tuple(self._points(recipe)))
                    except UnknownVotesError:
                        self._left_out.append(recipe)
                if self._progress is not None:
                    self._progress(len(self._judged) + len(self._left_out), self._wanted)
        return [self._judged[recipe] for recipe in listed if recipe in self._judged]

    def records_and_costs(self, recipe: Recipe) -> tuple[ExitRecords, ExitCosts]:
        """The calibration records of a system, and what its exits cost."""
        members = [self.members[name] for name in recipe.members]
        if recipe.kind == PLAIN:
            member = members[0]
            return member.records, PlainCosts(member.reference, member.costs.unit)
        if len(members) == 1:
            return members[0].records, members[0].costs
        own = [member.costs if len(member.costs) > 1 else member.costs[0] for member in members]
        unit = None if any(isinstance(costs, ExitCosts) for costs in own) else members[0].costs.unit
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)
            costs = ExitCosts.cascade(own, unit)
        return ExitRecords.cascade([member.records for member in members]), costs

    def _points(self, recipe: Recipe) -> list[list[Outcome]]:
        """The points of each fold."""
        records, costs = self.records_and_costs(recipe)
        if recipe.static:
            k = -1 if recipe.exit_index is None else recipe.exit_index
            utility = records.require_utility()[k].astype(np.float64)
            return [[Outcome(utility[rows], costs[k])] for rows in self.rows]
        least, most = costs[0], costs[-1]
        budgets = [least, *(budget for budget in self.budgets if least < budget < most), most]
        # Of equal costs the last, which had the largest budget.
        return [
            list({point.cost: point for point in sorted(points, key=lambda point: point.cost)}.values())
            for points in out_of_fold(self.scheduler, records, costs, self.rows, budgets, lift=True)
        ]

    def ready(self, recipe: Recipe, budget: float) -> Scheduler | None:
        """The scheduler of a system, fitted to all samples; None of a plain network, which needs none.

        Raises `InfeasibleBudgetError` where that cannot meet the budget.
        """
        if recipe.kind == PLAIN:
            return None
        if recipe not in self._fitted:
            records, costs = self.records_and_costs(recipe)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReliabilityWarning)
                made = self.scheduler._copy() if recipe.exit_index is None else Static(recipe.exit_index)
                self._fitted[recipe] = made.fit(records, costs)
        fitted = self._fitted[recipe]
        if recipe.exit_index is not None:
            return fitted.at(fitted.costs[recipe.exit_index])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReliabilityWarning)
            return fitted.at(budget)
