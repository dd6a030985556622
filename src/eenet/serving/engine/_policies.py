"""Policies: the one of a fixed budget, the one without early exits, and names that other processes know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.costs import Budget
from eenet.errors import InvalidInputError
from eenet.scheduler import ExitHistory, Scheduler, Score, ThresholdPolicy


class FixedBudget:
    """A controller that keeps to the policy of a scheduler, whatever the traffic.

    Parameters
    ----------
    scheduler : Scheduler
        Gives the policy of its own budget, and of those that are set later.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.policy: ThresholdPolicy = scheduler.policy

    @property
    def budget(self) -> float:
        """The budget per sample, in the unit of the costs."""
        return self._scheduler.budget

    def observe(self, exits: Any, policy: ThresholdPolicy | None = None) -> None:
        """Do nothing: this controller learns nothing from traffic."""

    def set_budget(self, budget: Budget) -> None:
        """Take the scheduler's policy for another budget; raises `InfeasibleBudgetError` where there is none."""
        self._scheduler = self._scheduler.at(budget)
        self.policy = self._scheduler.policy


class _NoScore(Score):
    """The score of a policy whose early exits are off: no exit but the last is observed."""

    def __call__(self, history: ExitHistory) -> NDArray[np.float64]:
        return np.zeros(len(history.evidence[-1]))


_NO_SCORE = _NoScore()


class WholeNetwork:
    """The policy without early exits, whatever policy is in force.

    It is one object, since only requests of one policy object are decided together: a controller changes its policy
    with every few batches, and thresholds of exits that are off are not read.
    """

    def __init__(self) -> None:
        self._policy: ThresholdPolicy | None = None

    def of(self, policy: ThresholdPolicy) -> ThresholdPolicy:
        """The policy without early exits for the exits and classes of `policy`."""
        found = self._policy
        if found is None or (found.num_exits, found.num_classes) != (policy.num_exits, policy.num_classes):
            off = np.zeros_like(policy.enabled)
            found = self._policy = ThresholdPolicy(_NO_SCORE, np.zeros(len(off)), off, policy.num_classes)
        return found


@dataclass(frozen=True)
class PolicyName:
    """A policy as its thresholds and the number of its score among those of its scheduler; -1 for none."""

    score: int
    thresholds: tuple[float, ...]
    enabled: tuple[bool, ...]


class PolicyBook:
    """Policies to names and back. Processes that loaded one bundle agree on the names.

    The same policy object always gets the same name, and the same name gives the same policy object.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        policies = (*scheduler.table.policies, scheduler.policy)
        self._scores: list[Score] = list({id(policy.score): policy.score for policy in policies}.values())
        self._num_classes = scheduler.policy.num_classes
        # A policy is kept with its name, so that no other gets its id.
        self._names: dict[int, tuple[ThresholdPolicy, PolicyName]] = {}
        self._policies: dict[PolicyName, ThresholdPolicy] = {}

    def name(self, policy: ThresholdPolicy) -> PolicyName:
        """The name of a policy; raises `InvalidInputError` for one whose score is not of this scheduler."""
        known = self._names.get(id(policy))
        if known is not None:
            return known[1]
        numbers = [number for number, score in enumerate(self._scores) if score is policy.score]
        if policy.score is _NO_SCORE:
            numbers = [-1]
        if not numbers:
            raise InvalidInputError(
                f"the score {policy.score.name!r} is not of the served scheduler; make the controller from that one"
            )
        name = PolicyName(numbers[0], tuple(policy.thresholds.tolist()), tuple(policy.enabled.tolist()))
        self._names[id(policy)] = policy, name
        return name

    def policy(self, name: PolicyName) -> ThresholdPolicy:
        """The policy of a name."""
        kept = self._policies.get(name)
        if kept is None:
            kept = ThresholdPolicy(
                _NO_SCORE if name.score < 0 else self._scores[name.score],
                np.array(name.thresholds, dtype=np.float64),
                np.array(name.enabled, dtype=np.bool_),
                self._num_classes,
            )
            self._policies[name] = kept
        return kept
