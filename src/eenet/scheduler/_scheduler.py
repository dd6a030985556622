"""The scheduler a user holds: fitted once to records and costs, and from then on the policy for any budget."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eenet._files import read_arrays, write_arrays
from eenet.costs import Budget, ExitCosts, parse_budget
from eenet.errors import FileFormatError, InvalidInputError, NotFittedError, ReliabilityWarning
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Assignment
from eenet.scheduler._decisions import Decisions, replay
from eenet.scheduler._family import Method, Planned, TableFamily, Tabulated, ThresholdMethod
from eenet.scheduler._fitted_scores import FITTED_SCORES, FittedScoreMethod
from eenet.scheduler._guarantee import Wanted
from eenet.scheduler._learned import LearningOptions
from eenet.scheduler._policy import Score, ThresholdPolicy
from eenet.scheduler._score_files import score_from_arrays
from eenet.scheduler._scores import PLAIN_SCORES
from eenet.scheduler._table import FrontierPoint, PolicyTable

if TYPE_CHECKING:
    from typing_extensions import Self  # not installed beside a bundle without torch

_SCHEMA = 2
_TABLE = "table."
_UNSPENT = 0.01  # of the budget: what is worth a warning


class Scheduler:
    """Decides which sample leaves at which exit.

    `score` is "max_prob", "entropy", "patience", "learned" (EENet's exit scores) or a fitted score; `assignment`
    says how the budget is divided over the exits. Make the usual ones with `EENet`, `OptimalStopping`,
    `MaxProbability`, `Entropy`, `Patience`, `SearchedThresholds` and `Static`.
    """

    def __init__(
        self,
        score: str | Score,
        assignment: Assignment,
        *,
        name: str,
        seed: int = 0,
        options: LearningOptions | None = None,
    ) -> None:
        self._begin(_method(score, assignment, options or LearningOptions()), name, seed)
        self._default = assignment.name == "static"

    @classmethod
    def from_method(cls, method: Method, *, name: str, seed: int = 0) -> Scheduler:
        """A scheduler that is fitted by a method of its own, rather than a score and an assignment."""
        scheduler = cls.__new__(cls)
        scheduler._begin(method, name, seed)
        return scheduler

    def _begin(self, method: Method | None, name: str, seed: int) -> None:
        self.name = name
        self._method = method
        self._seed = seed
        self._default = False
        self._costs: ExitCosts | None = None
        self._tabulated: Tabulated | None = None
        self._policy: ThresholdPolicy | None = None
        self._numbers: dict[str, float] = {}
        self._promises: dict[str, float] = {}

    def fit(
        self,
        records: ExitRecords,
        costs: ExitCosts,
        budget: Budget | None = None,
        *,
        guarantee: float | None = None,
        max_accuracy_drop: float | None = None,
        unlabelled: ExitRecords | None = None,
    ) -> Self:
        """Fit to calibration records so that the mean cost per sample stays within the budget; returns itself.

        `budget` is a number in the unit of the costs, "60%" of the last exit's cost, or like "3.5ms". Without one it is
        fitted for all budgets: `at` then gives the scheduler for each. Raises `InfeasibleBudgetError` when the budget
        cannot be met, naming the smallest that can; warns (`ReliabilityWarning`) where much of it stays unspent.

        The budget is met on the calibration records. With `guarantee`, such as 0.95, the true mean cost is within it
        with at least that probability over the draw of the records: the scheduler is fitted on one half of them and
        tested on the other, or, where `unlabelled` records of the same population are given, fitted on all and tested
        on those. `max_accuracy_drop`, such as 0.01, in place of a budget: the cheapest policy whose true accuracy is at
        most so much below the last exit's, with probability `guarantee` (0.95 unless given).
        """
        if not isinstance(records, ExitRecords):
            raise InvalidInputError(
                f"records are a {type(records).__name__}, expected ExitRecords: see ExitRecords.from_probabilities"
            )
        if not isinstance(costs, ExitCosts):
            raise InvalidInputError(
                f"costs are a {type(costs).__name__}, expected ExitCosts: write ExitCosts([...], unit='ms')"
            )
        costs.require_exits(records.num_exits)
        if self._method is None:
            raise InvalidInputError(f"{self!r} was loaded from a file and cannot be fitted again; make a new one")
        wanted = Wanted(guarantee, max_accuracy_drop, unlabelled)
        wanted.require_possible(records, budget)
        limit = None if budget is None else parse_budget(budget, costs)
        family, chosen = wanted.fit(self._method, records, costs, self._seed)
        if chosen is not None:
            limit = chosen.planned_cost
        elif limit is None and self._default:
            limit = costs[-1]
        if chosen is None and limit is not None:
            chosen = family.plan(limit)
        self._costs, self._tabulated = costs, Tabulated(family)
        self._policy, self._numbers, self._promises = None, {}, wanted.promises
        if limit is not None and chosen is not None:
            self._take(chosen, limit)
        return self

    def at(self, budget: Budget) -> Scheduler:
        """The scheduler for another budget from the same fit: a new one, this one stays as it is.

        One that was loaded from a file has a table of budgets, and takes the largest there that is not above this one.
        Raises `InfeasibleBudgetError` as `fit` does.
        """
        family = self._fitted().family
        limit = parse_budget(budget, self.costs)
        other = Scheduler.__new__(Scheduler)
        other._begin(None if isinstance(family, TableFamily) else self._method, self.name, self._seed)
        other._default, other._costs, other._tabulated = self._default, self._costs, self._tabulated
        other._promises = self._promises
        other._take(family.plan(limit), limit)
        return other

    def frontier(self) -> tuple[FrontierPoint, ...]:
        """Budgets from the smallest feasible to the last exit's cost, with planned cost and accuracy."""
        return self.table.points

    @property
    def table(self) -> PolicyTable:
        """The policies of `frontier`, one for each budget; made when first asked for, and saved with the scheduler."""
        return self._fitted().table

    def _fitted(self) -> Tabulated:
        if self._tabulated is None:
            raise NotFittedError(f"{self.name} is not fitted: call fit(records, costs, budget=...) first")
        return self._tabulated

    def _take(self, chosen: Planned, limit: float) -> None:
        self._policy = chosen.policy
        self._numbers = {
            "budget": limit,
            "planned_cost": chosen.planned_cost,
            "calibration_cost": chosen.calibration_cost,
        }
        spendable = min(limit, self.costs[-1])
        if chosen.note is not None and chosen.calibration_cost < spendable * (1 - _UNSPENT):
            warnings.warn(
                f"{self.name}: of the budget of {limit:.6g} {self.costs.unit} only {chosen.calibration_cost:.6g} is "
                f"spent: {chosen.note}",
                ReliabilityWarning,
                stacklevel=3,
            )

    def replay(self, records: ExitRecords, costs: ExitCosts | None = None) -> Decisions:
        """What the scheduler decides for these records; costs default to those it was fitted with."""
        return replay(self.policy, records, costs or self.costs)

    @property
    def changes_predictions(self) -> bool:
        """Whether it answers with the exits so far combined, so that a prediction need not be the exit's own."""
        if self._policy is not None:
            return self._policy.ensemble is not None
        if self._method is None:
            return self.table.policies[0].ensemble is not None
        return bool(getattr(self._method, "changes_predictions", False))

    @property
    def policy(self) -> ThresholdPolicy:
        """The fitted decision rule."""
        if self._policy is None:
            raise NotFittedError(self._missing())
        return self._policy

    @property
    def costs(self) -> ExitCosts:
        """The costs it was fitted with."""
        if self._costs is None:
            raise NotFittedError(self._missing())
        return self._costs

    def _missing(self) -> str:
        if self._tabulated is not None:
            return f"{self.name} is fitted for all budgets: choose one with .at(budget), such as .at('60%')"
        return f"{self.name} is not fitted: call fit(records, costs, budget=...) first"

    def _number(self, name: str) -> float:
        if name not in self._numbers:
            raise NotFittedError(self._missing())
        return self._numbers[name]

    @property
    def budget(self) -> float:
        """The budget per sample, in the unit of the costs."""
        return self._number("budget")

    @property
    def planned_cost(self) -> float:
        """The mean cost per sample the method aimed at."""
        return self._number("planned_cost")

    @property
    def calibration_cost(self) -> float:
        """The mean cost per sample on the records it was fitted to, or with a guarantee on those it was tested on.

        On fresh data it will differ: see held-out cost.
        """
        return self._number("calibration_cost")

    @property
    def guarantee(self) -> float | None:
        """The probability with which the budget, or the accuracy, holds on fresh data, if that was asked for."""
        return self._promises.get("guarantee")

    @property
    def max_accuracy_drop(self) -> float | None:
        """How far below the last exit's the accuracy may be, where that was asked for in place of a budget."""
        return self._promises.get("max_accuracy_drop")

    def __repr__(self) -> str:
        if self._tabulated is None:
            return f"{self.name}(not fitted)"
        budget = "any" if self._policy is None else f"{self.budget:.4g} {self.costs.unit}"
        promised = "".join(f", {name}={value:g}" for name, value in self._promises.items())
        return f"{self.name}(budget={budget}, {len(self.costs)} exits{promised})"

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically; read it back with `load_scheduler`.

        The policy is kept exactly, and with it a table of policies for other budgets.
        """
        table = self.table
        first = table.policies[0]
        arrays: dict[str, NDArray[Any]] = {f"{_TABLE}{name}": a for name, a in table.to_arrays().items()}
        header = {
            "name": self.name,
            "score": first.score.name,
            "num_classes": first.num_classes,
            "costs": self.costs.to_dict(),
            "numbers": self._numbers,
            "promises": self._promises,
        }
        if self._policy is not None:
            policy = self._policy
            arrays |= {"thresholds": policy.thresholds, "enabled": policy.enabled.astype(np.uint8)}
            arrays |= {f"score.{name}": array for name, array in policy.score.to_arrays().items()}
        write_arrays(path, arrays, kind="scheduler", schema=_SCHEMA, header=header)


def _method(score: str | Score, assignment: Assignment, options: LearningOptions) -> Method:
    if not isinstance(score, str):
        return ThresholdMethod(score, assignment)
    if score == "learned":
        from eenet.scheduler._learning import LearnedMethod  # brings in torch, which deciding does not need

        return LearnedMethod(assignment, options)
    if score in FITTED_SCORES:
        return FittedScoreMethod(score, assignment)
    if score not in PLAIN_SCORES:
        known = sorted((*PLAIN_SCORES, *FITTED_SCORES, "learned"))
        raise InvalidInputError(f"score {score!r} is not known; choose from {known}")
    return ThresholdMethod(PLAIN_SCORES[score], assignment)


def load_scheduler(path: str | Path) -> Scheduler:
    """A fitted scheduler from what `Scheduler.save` wrote; raises `FileFormatError` for any other file."""
    arrays, header = read_arrays(path, kind="scheduler", schema=_SCHEMA)
    try:
        costs = ExitCosts.from_dict(header["costs"])
        numbers, name, score = dict(header["numbers"]), str(header["name"]), header["score"]
        if not isinstance(score, str):
            raise TypeError(f"the score is a {type(score).__name__}")
        classes = int(header["num_classes"])
        policy = _policy_from(arrays, score, classes, path, len(costs)) if numbers else None
    except KeyError as error:
        raise FileFormatError(f"{str(path)!r} lacks {error.args[0]!r}; save the scheduler again") from error
    except TypeError as error:
        raise FileFormatError(f"{str(path)!r} has a damaged header ({error}); save the scheduler again") from error
    parts = {n.removeprefix(_TABLE): a for n, a in arrays.items() if n.startswith(_TABLE)}
    if parts:
        table = PolicyTable.from_arrays(parts, score=score, num_classes=classes, unit=costs.unit, exits=len(costs))
    elif policy is not None:  # written before schedulers had tables: its one budget is all it knows
        table = PolicyTable(
            np.array([numbers["budget"]]),
            np.array([numbers["calibration_cost"]]),
            np.array([np.nan]),
            (policy,),
            costs.unit,
        )
    else:
        raise FileFormatError(f"{str(path)!r} holds neither a policy nor a table of them; save the scheduler again")
    scheduler = Scheduler.__new__(Scheduler)
    scheduler._begin(None, name, 0)
    scheduler._costs, scheduler._tabulated = costs, Tabulated(TableFamily(table, costs))
    scheduler._policy, scheduler._numbers = policy, numbers
    scheduler._promises = dict(header.get("promises", {}))
    return scheduler


def _policy_from(
    arrays: dict[str, NDArray[Any]], score: str, classes: int, path: str | Path, exits: int
) -> ThresholdPolicy:
    fitted = score_from_arrays(score, {n[6:]: a for n, a in arrays.items() if n.startswith("score.")})
    policy = ThresholdPolicy(fitted, arrays["thresholds"], arrays["enabled"].astype(np.bool_), classes)
    if not (policy.thresholds.shape == policy.enabled.shape == (exits - 1,)):
        raise FileFormatError(
            f"{str(path)!r} has {len(policy.thresholds)} thresholds for {exits} exits; save the scheduler again"
        )
    return policy
