"""Policies by name, so that they can go from one process to another, and the one without early exits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eenet.errors import InvalidInputError
from eenet.scheduler import ExitHistory, Scheduler, Score, ThresholdPolicy


class _NoScore:
    """Of a policy whose early exits are off: nothing is looked at, and the last exit answers for itself."""

    name = "none"
    uses_history = False

    def __call__(self, trail: ExitHistory) -> NDArray[np.float64]:
        return np.zeros(len(trail.evidence[-1]))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        return {}


_NO_SCORE = _NoScore()


class WholeNetwork:
    """The policy without early exits that goes with a policy: one object for as long as that one is in force.

    Only requests of one policy object are decided together.
    """

    def __init__(self) -> None:
        self._known: tuple[ThresholdPolicy, ThresholdPolicy] | None = None

    def of(self, policy: ThresholdPolicy) -> ThresholdPolicy:
        """That policy with its early exits off."""
        if self._known is None or self._known[0] is not policy:
            self._known = policy, replace(policy, score=_NO_SCORE, enabled=np.zeros_like(policy.enabled))
        return self._known[1]


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
        # A policy is kept with its name, so that its id stays its.
        self._names: dict[int, tuple[ThresholdPolicy, PolicyName]] = {}
        self._policies: dict[PolicyName, ThresholdPolicy] = {}

    def name(self, policy: ThresholdPolicy) -> PolicyName:
        """The name of a policy; raises `InvalidInputError` for one whose score is not of this scheduler."""
        found = self._names.get(id(policy))
        if found is not None:
            return found[1]
        numbers = [number for number, score in enumerate(self._scores) if score is policy.score]
        if policy.score is _NO_SCORE:
            numbers = [-1]
        if not numbers:
            raise InvalidInputError(
                f"the score {policy.score.name!r} is not of the served scheduler; use a controller made for it"
            )
        name = PolicyName(numbers[0], tuple(policy.thresholds.tolist()), tuple(policy.enabled.tolist()))
        self._names[id(policy)] = policy, name
        return name

    def policy(self, name: PolicyName) -> ThresholdPolicy:
        """The policy of a name."""
        found = self._policies.get(name)
        if found is None:
            found = ThresholdPolicy(
                _NO_SCORE if name.score < 0 else self._scores[name.score],
                np.array(name.thresholds, dtype=np.float64),
                np.array(name.enabled, dtype=np.bool_),
                self._num_classes,
            )
            self._policies[name] = found
        return found
