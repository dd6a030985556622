"""The scheduler a user holds: a score and an assignment, fitted to records, costs and a budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from eenet._files import read_arrays, write_arrays
from eenet.costs import Budget, ExitCosts, parse_budget
from eenet.errors import FileFormatError, InvalidInputError, NotFittedError
from eenet.records import ExitRecords
from eenet.scheduler._assignments import Assignment
from eenet.scheduler._decisions import Decisions, replay
from eenet.scheduler._ensembles import as_answered
from eenet.scheduler._fitted_scores import ENSEMBLE_SCORES, FITTED_SCORE_READERS, FITTED_SCORES
from eenet.scheduler._learned import LearnedScore, LearningOptions
from eenet.scheduler._policy import Ensemble, Score, ThresholdPolicy
from eenet.scheduler._scores import PLAIN_SCORES

_SCHEMA = 1


class Scheduler:
    """Decides which sample leaves at which exit.

    `score` is "max_prob", "entropy", "patience", "learned" (EENet's exit scores) or a fitted score; `assignment`
    says how the budget is divided over the exits. Make the usual ones with `EENet`, `MaxProbability`, `Entropy`,
    `Patience`, `SearchedThresholds` and `Static`.
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
        known = {*PLAIN_SCORES, *FITTED_SCORES, "learned"}
        if isinstance(score, str) and score not in known:
            raise InvalidInputError(f"score {score!r} is not known; choose from {sorted(known)}")
        self.name = name
        self._score = score
        self._assignment: Assignment | None = assignment
        self._seed = seed
        self._options = options or LearningOptions()
        self._policy: ThresholdPolicy | None = None
        self._costs: ExitCosts | None = None
        self._numbers: dict[str, float] = {}

    def fit(self, records: ExitRecords, costs: ExitCosts, budget: Budget | None = None) -> Self:
        """Fit to calibration records so that the mean cost per sample stays within the budget; returns itself.

        `budget` is a number in the unit of the costs, "60%" of the last exit's cost, or like "3.5ms". Raises
        `InfeasibleBudgetError` when it cannot be met, naming the smallest that can.
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
        if self._assignment is None:
            raise InvalidInputError(f"{self!r} was loaded from a file and cannot be fitted again; make a new one")
        if budget is None:
            if self._assignment.name != "static":
                raise InvalidInputError(f"fit needs a budget, such as budget='60%' or {costs[-1] * 0.6:.4g}")
            budget = costs[-1]
        limit = parse_budget(budget, costs)
        score = self._fitted_score(records, costs, limit)
        plan = self._assignment.fit(score, as_answered(score, records), costs, limit, self._seed)
        policy = ThresholdPolicy(score, plan.thresholds.values, plan.thresholds.enabled, records.num_classes)
        realised = replay(policy, records, costs).mean_cost
        self._policy, self._costs = policy, costs
        self._numbers = {"budget": limit, "planned_cost": plan.cost, "calibration_cost": realised}
        return self

    def _fitted_score(self, records: ExitRecords, costs: ExitCosts, budget: float) -> Score:
        if not isinstance(self._score, str):
            return self._score
        if self._score == "learned":
            from eenet.scheduler._training import train_scores  # brings in torch, which deciding does not need

            return train_scores(records, costs, budget, self._options, self._seed)
        if self._score in FITTED_SCORES:
            return FITTED_SCORES[self._score](records)
        return PLAIN_SCORES[self._score]

    def replay(self, records: ExitRecords, costs: ExitCosts | None = None) -> Decisions:
        """What the scheduler decides for these records; costs default to those it was fitted with."""
        return replay(self.policy, records, costs or self.costs)

    @property
    def changes_predictions(self) -> bool:
        """Whether it answers with the exits so far combined, so that a prediction need not be the exit's own."""
        if isinstance(self._score, str):
            return self._score in ENSEMBLE_SCORES
        return isinstance(self._score, Ensemble)

    @property
    def policy(self) -> ThresholdPolicy:
        """The fitted decision rule."""
        if self._policy is None:
            raise NotFittedError(f"{self.name} is not fitted: call fit(records, costs, budget=...) first")
        return self._policy

    @property
    def costs(self) -> ExitCosts:
        """The costs it was fitted with."""
        if self._costs is None:
            raise NotFittedError(f"{self.name} is not fitted: call fit(records, costs, budget=...) first")
        return self._costs

    def _number(self, name: str) -> float:
        if name not in self._numbers:
            raise NotFittedError(f"{self.name} is not fitted: call fit(records, costs, budget=...) first")
        return self._numbers[name]

    @property
    def budget(self) -> float:
        """The budget per sample, in the unit of the costs."""
        return self._number("budget")

    @property
    def planned_cost(self) -> float:
        """The mean cost per sample the assignment aimed at."""
        return self._number("planned_cost")

    @property
    def calibration_cost(self) -> float:
        """The mean cost per sample on the records it was fitted to. On fresh data it will differ: see held-out cost."""
        return self._number("calibration_cost")

    def __repr__(self) -> str:
        if self._policy is None:
            return f"{self.name}(not fitted)"
        return f"{self.name}(budget={self.budget:.4g} {self.costs.unit}, {self.policy.num_exits} exits)"

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically; read it back with `load_scheduler`."""
        policy = self.policy
        arrays: dict[str, NDArray[Any]] = {"thresholds": policy.thresholds, "enabled": policy.enabled.astype(np.uint8)}
        arrays |= {f"score.{name}": array for name, array in policy.score.to_arrays().items()}
        header = {
            "name": self.name,
            "score": policy.score.name,
            "num_classes": policy.num_classes,
            "costs": self.costs.to_dict(),
            "numbers": self._numbers,
        }
        write_arrays(path, arrays, kind="scheduler", schema=_SCHEMA, header=header)


def load_scheduler(path: str | Path) -> Scheduler:
    """A fitted scheduler from what `Scheduler.save` wrote; raises `FileFormatError` for any other file."""
    arrays, header = read_arrays(path, kind="scheduler", schema=_SCHEMA)
    try:
        score = _score_from(header["score"], {n[6:]: a for n, a in arrays.items() if n.startswith("score.")})
        policy = ThresholdPolicy(score, arrays["thresholds"], arrays["enabled"].astype(np.bool_), header["num_classes"])
        costs = ExitCosts.from_dict(header["costs"])
        numbers, name = dict(header["numbers"]), str(header["name"])
    except KeyError as error:
        raise FileFormatError(f"{str(path)!r} lacks {error.args[0]!r}; save the scheduler again") from error
    except TypeError as error:
        raise FileFormatError(f"{str(path)!r} has a damaged header ({error}); save the scheduler again") from error
    if not (policy.thresholds.shape == policy.enabled.shape == (len(costs) - 1,)):
        raise FileFormatError(
            f"{str(path)!r} has {len(policy.thresholds)} thresholds for {len(costs)} exits; save the scheduler again"
        )
    scheduler = Scheduler.__new__(Scheduler)
    scheduler.name = name
    scheduler._score = score
    scheduler._assignment = None
    scheduler._seed = 0
    scheduler._options = LearningOptions()
    scheduler._policy, scheduler._costs, scheduler._numbers = policy, costs, numbers
    return scheduler


def _score_from(name: str, arrays: Mapping[str, NDArray[Any]]) -> Score:
    if name in PLAIN_SCORES:
        return PLAIN_SCORES[name]
    if name == "learned":
        return LearnedScore.from_arrays(arrays)
    if name in FITTED_SCORE_READERS:
        return FITTED_SCORE_READERS[name](arrays)
    raise FileFormatError(f"score {name!r} is not known to this eenet; upgrade it, or fit the scheduler again")
