"""What a search found: the best system for each budget, its numbers, and a scheduler that is ready to use."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet._values import array_value
from eenet.costs import Budget, ExitCosts, parse_budget
from eenet.errors import InfeasibleBudgetError, InvalidInputError, ReliabilityWarning
from eenet.evaluation._comparison import text_table
from eenet.evaluation._systems import STATIC, Judge, Judged, Member, Recipe, labeled
from eenet.records import ExitRecords
from eenet.scheduler import Decisions, Scheduler
from eenet.scheduler._fallback import standard_error
from eenet.scheduler._reports import CERTAIN

_SCHEMA = 1
_WIDTH = 80  # of a printed result, in characters
_TABLE = 1  # its place among the parts of the text
_OTHERS = ("runner_up", "static", "plain")


@dataclass(frozen=True)
class Gain:
    """How far a system is ahead of another one, in accuracy, with the standard error on the same samples."""

    other: str
    mean: float
    standard_error: float
    other_cost: float


@array_value
@dataclass(frozen=True)
class System:
    """The best system for a budget.

    Parameters
    ----------
    name : str
        In words, such as "small + big".
    kind : str
        "plain network", "one exit" (which all samples take), "exits" (of one network) or "cascade".
    members : tuple of str
        The candidates that it is made of, in the order in which they are asked.
    budget : float
        The mean cost per sample that may be spent, in the unit of the costs.
    cost, accuracy, accuracy_error : float
        What to expect on fresh samples: of what each third of the samples was answered by the systems that the others
        chose and were fitted to; with a standard error over the samples.
    gains : mapping of str to Gain
        How far it is ahead of the "runner_up", which is the best of other members; of the best "static" one, that
        computes the same for all samples, within the budget; and of the "plain" network, the most accurate candidate by
        itself at whatever cost. All are chosen as it is, so that a gain may be negative.
    certain : bool
        Whether it is ahead of the runner-up beyond chance.
    costs : ExitCosts
        Of its exits.
    scheduler : Scheduler or None
        Fitted to all samples, for the budget; None of a plain network, which needs none.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> best = eenet.search({"net": toy_records()}, {"net": toy_costs()}, [2.0]).at(2.0)
    >>> best.kind, best.members, best.costs
    ('exits', ('net',), ExitCosts([1, 2, 3], unit='ms'))
    """

    name: str
    kind: str
    members: tuple[str, ...]
    budget: float
    cost: float
    accuracy: float
    accuracy_error: float
    gains: Mapping[str, Gain]
    certain: bool
    costs: ExitCosts
    scheduler: Scheduler | None

    def records(self, candidates: Mapping[str, ExitRecords]) -> ExitRecords:
        """The records of this system, of those of its members on any samples; labels in one of all are enough."""
        missing = [name for name in self.members if name not in candidates]
        if missing:
            raise InvalidInputError(f"there are no records of {missing[0]!r}, which is a member of {self.name!r}")
        known = labeled(candidates)
        own = [known[name] for name in self.members]
        return own[0] if len(own) == 1 else ExitRecords.cascade(own)

    def replay(self, candidates: Mapping[str, ExitRecords]) -> Decisions:
        """What the system decides for its members' records, by their names."""
        records = self.records(candidates)
        if self.scheduler is not None:
            return self.scheduler.replay(records)
        utility = None if records.utility is None else records.utility[-1]
        counts = None if records.pixel_counts is None else records.pixel_counts[-1]
        exits = np.zeros(len(records), dtype=np.intp)
        return Decisions(exits, records.predictions[-1], utility, self.costs, counts)

    def save(self, path: str | Path) -> None:
        """Write the scheduler to one safetensors file; `InvalidInputError` for a plain network, which has none."""
        if self.scheduler is None:
            raise InvalidInputError(
                f"the best system for a budget of {self.budget:.6g} {self.costs.unit} is the plain network "
                f"{self.name!r}: there is no scheduler to save; run it as it is"
            )
        self.scheduler.save(path)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; the scheduler is saved by `save`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "members": list(self.members),
            "budget": self.budget,
            "cost": self.cost,
            "accuracy": self.accuracy,
            "accuracy_error": self.accuracy_error,
            "certain": self.certain,
            "gains": {name: asdict(gain) for name, gain in self.gains.items()},
            "costs": self.costs.to_dict(),
        }


@dataclass(frozen=True)
class SearchResult:
    """What `search` found; printing it shows a table.

    Attributes
    ----------
    frontier : tuple of System
        The best system of each budget that was asked for.
    notes : tuple of str
        Which candidates were dropped and why, and what else a reader should know.
    samples : int
        How many there were.
    plain : str
        The most accurate candidate, which is the plain network of the percentages.

    Examples
    --------
    >>> import eenet
    >>> from eenet.testing import toy_costs, toy_records
    >>> found = eenet.search({"net": toy_records()}, {"net": toy_costs()}, [1.5, 2.0])
    >>> [system.kind for system in found.frontier], found.plain
    (['exits', 'exits'], 'net')
    >>> found.notes[0]
    'There is one candidate: the search is among its exits alone.'
    """

    frontier: tuple[System, ...]
    notes: tuple[str, ...]
    samples: int
    plain: str
    scale: ExitCosts
    """The cheapest exit, the most expensive candidate, and the plain network."""
    _judge: Judge
    _plain: Member

    @classmethod
    def of(cls, judge: Judge, budgets: Sequence[float], scale: ExitCosts, plain: Member) -> SearchResult:
        """The result for budgets."""
        notes = []
        if len(judge.members) == 1:
            exits = ": the search is among its exits alone"
            alone = exits if len(plain.costs) > 1 else ", a plain network: there is nothing to choose"
            notes.append(f"There is one candidate{alone}.")
        notes += [f"{one} {scale.unit}." for one in judge.dropped()]
        notes += [f"{judge.left_out()}."] if judge.left_out() else []
        empty = cls((), tuple(notes), len(plain.records), plain.name, scale, judge, plain)
        frontier = tuple(empty._system(budget) for budget in budgets)
        return cls(frontier, tuple(notes), len(plain.records), plain.name, scale, judge, plain)

    def at(self, budget: Budget) -> System:
        """The best system for a budget, with its scheduler; that of the most expensive candidate for any above.

        Parameters
        ----------
        budget : float or str
            The mean cost per sample; "60%" is of the most accurate candidate by itself.

        Raises
        ------
        InfeasibleBudgetError
            If it is below the cheapest exit of all candidates.
        """
        limit = budget_of(budget, self.scale, list(self._judge.members.values()))
        known = next((system for system in self.frontier if system.budget == limit), None)
        return known or self._system(limit)

    def _system(self, budget: float) -> System:
        judge = self._judge
        recipe, scheduler = self._winner(budget)
        names = ("best", *_OTHERS)
        utility: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
        spent: dict[str, float] = dict.fromkeys(names, 0.0)
        for fold in judge.all_folds:
            ranked = judge.ranked(budget, judge.others(fold))
            still = judge.ranked(budget, judge.others(fold), static=True)
            chosen = {"best": ranked[0], "runner_up": _other(ranked, ranked[0].recipe), "static": still[0]}
            rows = judge.rows[fold]
            for name, one in chosen.items():
                part = None if one is None else one.at(budget, fold)
                if part is not None:
                    utility[name].append(part.utility)
                    spent[name] += part.cost * len(rows)
            utility["plain"].append(self._plain.records.require_utility()[-1, rows].astype(np.float64))
            spent["plain"] += self._plain.reference * len(rows)
        mine = np.concatenate(utility["best"])
        ranked = judge.ranked(budget, judge.all_folds)
        second = _other(ranked, recipe)
        called = {
            "runner_up": "" if second is None else second.recipe.name,
            "static": judge.ranked(budget, judge.all_folds, static=True)[0].recipe.name,
            "plain": self.plain,
        }
        gains = {}
        for name, title in called.items():
            if sum(map(len, utility[name])) == len(mine) and title:
                ahead = mine - np.concatenate(utility[name])
                error = standard_error(ahead) if ahead.any() else 0.0
                gains[name] = Gain(title, float(ahead.mean()), error, spent[name] / self.samples)
        against = gains.get("runner_up")
        return System(
            recipe.name,
            recipe.kind,
            recipe.members,
            budget,
            spent["best"] / self.samples,
            float(mine.mean()),
            float(mine.std() / math.sqrt(len(mine))),
            gains,
            against is not None and _certain(asdict(against)),
            judge.records_and_costs(recipe)[1],
            scheduler,
        )

    def _winner(self, budget: float) -> tuple[Recipe, Scheduler | None]:
        """The most accurate system whose scheduler, fitted to all samples, can meet the budget."""
        ranked = iter(self._judge.ranked(budget, self._judge.all_folds))
        while True:
            one = next(ranked).recipe  # a static system meets any budget that is allowed
            with suppress(InfeasibleBudgetError):  # where an exit that was used in every fold is left out
                return one, self._judge.ready(one, budget)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description: the frontier, and the curve of every system that was grown, out of fold."""
        return {
            "schema": _SCHEMA,
            "unit": self.scale.unit,
            "samples": self.samples,
            "plain": {"name": self.plain, "cost": self._plain.reference, "accuracy": self._plain.accuracy},
            "candidates": list(self._judge.members),
            "dropped": [asdict(one) for one in self._judge.dropped()],
            "notes": list(self.notes),
            "frontier": [system.to_dict() for system in self.frontier],
            "systems": [_curve(one, self._judge) for one in self._judge.pool()],
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as a JSON file, atomically."""
        from eenet._files import write_json

        write_json(Path(path), json.loads(json.dumps(self.to_dict())))

    def to_text(self, *, width: int | None = None) -> str:
        """The table: for each budget the best system, its accuracy, and what it gains over others.

        With a `width`, a table of more characters is written in parts, and sentences in lines.
        """
        unit, plain = self.scale.unit, self._plain
        lines = [
            [
                f"budget\n{unit}",
                f"of\n{plain.name}",
                "best system",
                f"accuracy\n% of {self.samples:,}",
                f"spent\n{unit}",
            ]
        ]
        lines[0] += ["gain\npoints", "over the\nrunner-up", "gain\npoints", "over the\nbest static"]
        lines[0] += [f"gain over\n{plain.name}"]
        for system in self.frontier:
            row = [
                f"{system.budget:.4g}",
                f"{system.budget / plain.reference:.0%}",
                system.name,
                f"{100 * system.accuracy:.2f} ± {100 * system.accuracy_error:.2f}",
                f"{system.cost:.4g}",
            ]
            for name in ("runner_up", "static"):
                gain = system.gains.get(name)
                row += [_signed(gain), "-" if gain is None else gain.other]
            lines.append([*row, _signed(system.gains.get("plain"))])
        count, tried = len(self._judge.members), self._judge.count
        words = [
            f"{count} candidate{'' if count == 1 else 's'}: {', '.join(self._judge.members)}. "
            f"{tried} system{' was' if tried == 1 else 's were'} tried. Accuracies are of samples that a system was "
            f"neither fitted to nor chosen by. The plain network is the most accurate candidate by itself, "
            f"{plain.name}: {100 * plain.accuracy:.2f} % at {plain.reference:.4g} {unit}.",
            text_table(lines, width),
            "",
            "Runner-up: the best system of other members. Best static: the best that computes the same for all "
            "samples, within the budget. ±: one standard error.",
            *self.notes,
            *verdict([system.to_dict() for system in self.frontier], unit),
        ]
        if width is not None:
            words = [word if number == _TABLE else fill(word, width) for number, word in enumerate(words)]
        return "\n".join(words).rstrip()

    def __str__(self) -> str:
        return self.to_text(width=_WIDTH)

    def __repr__(self) -> str:
        candidates = ", ".join(self._judge.members)
        return f"SearchResult({candidates}; {len(self.frontier)} budgets, {self.samples} samples)"


def budget_of(budget: Budget, scale: ExitCosts, members: Sequence[Member]) -> float:
    """The mean cost per sample that a budget allows; raises where it is below what the cheapest system costs."""
    try:
        with warnings.catch_warnings():  # a cascade may cost more than its members by themselves
            warnings.simplefilter("ignore", ReliabilityWarning)
            return parse_budget(budget, scale)
    except InfeasibleBudgetError as error:
        least = min(members, key=lambda member: member.costs[0])
        cheapest = f"what the cheapest system costs, {least.name}{', exit 0' if len(least.costs) > 1 else ''}"
        message = str(error).replace("the first exit's cost", cheapest)
        raise InfeasibleBudgetError(message, smallest=error.smallest) from None


def verdict(frontier: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    """In words: at which budgets the best system, of `System.to_dict`, is no choice beyond chance, and what to run."""
    enough: dict[str, list[str]] = {}
    unsure: list[str] = []
    for row in frontier:
        static, second = (row["gains"].get(name) for name in ("static", "runner_up"))
        if row["kind"] not in STATIC and static is not None and not _certain(static):
            enough.setdefault(static["other"], []).append(f"{row['budget']:.4g}")
        elif second is not None and not row["certain"]:
            unsure.append(f"{row['budget']:.4g}")
    said = [
        f"At {', '.join(at)} {unit} the gain over {name} for all samples may be chance: run that, which needs no "
        "scheduler, or search with more samples."
        for name, at in enough.items()
    ]
    if unsure:
        said.append(
            f"At {', '.join(unsure)} {unit} the gain over the runner-up may be chance: take the simpler of the two, "
            "or search with more samples."
        )
    return said


def _certain(gain: Mapping[str, Any]) -> bool:
    return bool(gain["mean"] > CERTAIN * gain["standard_error"])


def _other(ranked: Sequence[Judged], best: Recipe) -> Judged | None:
    """The best system of other members; of one candidate alone, of another kind."""
    rest = [one for one in ranked if one.recipe != best]
    return next((one for one in rest if set(one.recipe.members) != set(best.members)), rest[0] if rest else None)


def _signed(gain: Gain | None) -> str:
    return "-" if gain is None else f"{100 * gain.mean + 0.0:+.2f} ± {100 * gain.standard_error:.2f}"


def _curve(one: Judged, judge: Judge) -> dict[str, Any]:
    """Costs and accuracies of a system at the budgets that every fold has in common."""
    least = max(points[0].cost for points in one.points)
    most = max(points[-1].cost for points in one.points)
    budgets = sorted({least, most, *(budget for budget in judge.budgets if least < budget < most)})
    costs, accuracies = [], []
    for budget in budgets:
        parts = [part for part in (one.at(budget, fold) for fold in judge.all_folds) if part is not None]
        count = sum(len(part.utility) for part in parts)
        costs.append(sum(part.cost * len(part.utility) for part in parts) / count)
        accuracies.append(sum(float(part.utility.sum()) for part in parts) / count)
    recipe = one.recipe
    return {
        "name": recipe.name,
        "kind": recipe.kind,
        "members": list(recipe.members),
        "costs": costs,
        "accuracies": accuracies,
    }
